"""The numbers of this tree against those that were recorded of an earlier one, a case a section of ``record.py``.

On the machine that made the record (same PyTorch, processor and instruction set) hashes and choices must be the same
and numbers agree to a relative 1e-6. Kernels differ from processor to processor, so elsewhere hashes are not looked
at, and numbers have the tolerances of ``ELSEWHERE``. Where something else is chosen there (a rate, a block, a
penalty), what follows from the choice is not compared.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
SAME = 1e-6
ELSEWHERE = {"statistics": 1e-4, "trained": 2e-2}
"""Relative, on other machines."""
SHARES_ELSEWHERE = 0.05
"""Absolute, on other machines: shares are of some hundred images, of which a few may be called otherwise."""
SAME_ONLY = ("hashes", "choices", "unstable")
"""Groups that other machines are not held to."""
TINY = 1e-12
"""Absolute: what is zero but for rounding."""


def _loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"golden_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = _loaded(HERE / "record.py")
RECORD = json.loads((HERE / "golden.json").read_text(encoding="utf-8"))
DECISIVE = RECORD["machine"]["decisive"]


@pytest.fixture(scope="module")
def same_machine() -> bool:
    """Whether this is the machine that made the record; if not, it is said."""
    here = golden.machine()["decisive"]
    if here != DECISIVE:
        told = ", ".join(f"{key} {here[key]} not {DECISIVE[key]}" for key in DECISIVE if here[key] != DECISIVE[key])
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn(f"golden numbers are compared loosely, hashes not at all: {told}", stacklevel=1)
    return here == DECISIVE


def test_every_section_is_recorded():
    assert set(RECORD["sections"]) == set(golden.SECTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.SECTIONS)
def test_golden(name: str, same_machine: bool):
    if golden.needs_shared(name) and golden.shared_folder() is None:
        pytest.skip("no real images and models; point TIGHTFRAME_SHARED at them to compare their numbers too")
    found, wanted = golden.plain(golden.compute(name)), RECORD["sections"][name]
    wrong = list(differences(found, wanted, same_machine))
    assert not wrong, f"{len(wrong)} numbers differ:\n" + "\n".join(wrong[:40])
    if not same_machine and found.get("choices") != wanted.get("choices"):
        pytest.skip(f"something else was chosen on this machine: {_chosen(found, wanted)}")


def differences(found: Any, wanted: Any, same_machine: bool) -> Iterator[str]:
    """A line for each entry that is not as it was recorded."""
    if set(found) != set(wanted):
        yield f"groups {sorted(found)}, recorded {sorted(wanted)}"
        return
    alike = found.get("choices") == wanted.get("choices")
    for group in wanted:
        if not same_machine and (group in SAME_ONLY or (group == "trained" and not alike)):
            continue
        if found[group].keys() != wanted[group].keys():
            yield f"{group}: not the same entries: {sorted(found[group].keys() ^ wanted[group].keys())}"
        for key in found[group].keys() & wanted[group].keys():
            one, other = found[group][key], wanted[group][key]
            if not agree(one, other, group, same_machine):
                yield f"{group}: {key} is {one}, recorded {other}"


def agree(found: Any, wanted: Any, group: str, same_machine: bool) -> bool:
    """Whether two entries are as equal as their group asks; lists are compared as vectors."""
    if group in ("hashes", "choices"):
        return type(found) is type(wanted) and found == wanted
    ones, others = (value if isinstance(value, list) else [value] for value in (found, wanted))
    if len(ones) != len(others):
        return False
    size = max((abs(value) for value in others if isinstance(value, float | int)), default=0.0)
    allowed = SAME * size if same_machine else ELSEWHERE.get(group, 0.0) * size
    if group == "shares" and not same_machine:
        allowed = SHARES_ELSEWHERE
    return all(_near(one, other, allowed + TINY) for one, other in zip(ones, others, strict=True))


def _near(one: Any, other: Any, allowed: float) -> bool:
    if isinstance(one, float | int) and isinstance(other, float | int):
        return abs(one - other) <= allowed
    return one == other  # None, and numbers that are not finite


def _chosen(found: Any, wanted: Any) -> str:
    ours, theirs = found["choices"], wanted["choices"]
    return ", ".join(f"{key} {ours.get(key)} not {theirs[key]}" for key in theirs if ours.get(key) != theirs[key])[:500]
