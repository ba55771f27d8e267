"""The numbers of this tree against those that were recorded of an earlier one, a case a section of ``record.py``.

On the machine that made the record (same PyTorch, processor and instruction set) hashes and choices must be the same
and numbers agree to a relative 1e-6. Kernels differ from processor to processor, so elsewhere hashes are not looked
at, and numbers have the tolerances of ``ELSEWHERE``. Where something else is chosen there (a rate, a block, a
penalty), what follows from the choice is not compared.

Three kinds of entries were recorded anew after the project was rebuilt, because what they show changed on purpose; all
others are those of the tree before. ``changed.json`` lists them by the reason: pre-training draws its augmentation from
other generators (without augmentation its weights are the same to the last bit), logistic probes reach their
optimum (LP-FT, which starts from one, is the same to the last bit where it starts from the same head), and intervals of
few samples come from other draws of the same distribution. What changed by less than anyone can use is held to the
tolerances of ``LOOSER`` instead.
"""

from __future__ import annotations

import importlib.util
import json
import re
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
LOOSER = (
    # NC1 of a tuned block is judged on its inputs as they were kept for training, in half precision; judged on the
    # whole model in float32, it is as recorded to the last digit.
    (r".*/tune: (scl|layer)\b.*", r"nc1", 2e-3),
    # Drawn class means span one direction less than there are classes, so rounding picks the last direction in which
    # their spread is drawn; where nearly all spread lies along class means, the trace shows it. Features that are moved
    # by 1e-12 of their size show as much.
    (r".*/measure of .*", r".*/nc1_ratio_(low|high)", 1e-2),
    # Layer norm leaves a direction without variance, which PARC scales up to that of all others.
    (r"digits/rank", r"vit/parc", 1e-4),
    # The logarithm in NCTI was taken in float32; scaling over a pool of models alike magnifies its rounding.
    (r".*/rank", r".*/ncti", 1e-5),
)
"""Section and key, as regular expressions, of entries with a relative tolerance of their own."""


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
    wrong = list(differences(name, found, wanted, same_machine))
    assert not wrong, f"{len(wrong)} numbers differ:\n" + "\n".join(wrong[:40])
    if not same_machine and found.get("choices") != wanted.get("choices"):
        pytest.skip(f"something else was chosen on this machine: {_chosen(found, wanted)}")


def differences(name: str, found: Any, wanted: Any, same_machine: bool) -> Iterator[str]:
    """A line for each entry of the section ``name`` that is not as it was recorded."""
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
            if not agree(one, other, group, same_machine, looser(name, key)):
                yield f"{group}: {key} is {one}, recorded {other}"


def looser(name: str, key: str) -> float:
    """The tolerance of its own that an entry has, or 0."""
    return next((at for section, entry, at in LOOSER if re.fullmatch(section, name) and re.fullmatch(entry, key)), 0.0)


def agree(found: Any, wanted: Any, group: str, same_machine: bool, own: float) -> bool:
    """Whether two entries are as equal as their group, or their ``own`` tolerance, asks; lists are vectors."""
    if group in ("hashes", "choices"):
        return type(found) is type(wanted) and found == wanted
    ones, others = (value if isinstance(value, list) else [value] for value in (found, wanted))
    if len(ones) != len(others):
        return False
    size = max((abs(value) for value in others if isinstance(value, float | int)), default=0.0)
    allowed = max(SAME if same_machine else ELSEWHERE.get(group, 0.0), own) * size
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
