"""The deliberate faults are ones that the source could have: `tests/faults/prove.py` proves that each is caught."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FAULTS = runpy.run_path(str(TESTS / "faults" / "known.py"))["FAULTS"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_up_to_date(fault):
    text = (TESTS.parent / "src" / "tightframe" / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.old) == 1
    ast.parse(text.replace(fault.old, fault.new))
    file, _, name = fault.test.partition("::")
    assert f"\ndef {name}(" in (TESTS / file).read_text(encoding="utf-8")


def test_faults_are_many_and_differ():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 20
    assert len({fault.file.partition("/")[0] for fault in FAULTS}) >= 8
