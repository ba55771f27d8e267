"""Proves that the tests catch the faults in `known.py`.

    python tests/faults/prove.py [WORDS OF A NAME …]

Each fault is put into a copy of the source, and the test that has to catch it is run on the copy. First those tests
must pass on the source as it is. The exit code is 0 if all faults are caught. Needs the packages of `.[dev]`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from known import FAULTS, Fault

ROOT = Path(__file__).parents[2]
PASSED, FAILED = 0, 1
"""Exit codes of pytest; any other means that it found no test to run."""


def exit_code(source: Path, tests: Iterable[str]) -> int:
    """What pytest says of ``tests`` run on the package in the folder ``source``."""
    nodes = [str(ROOT / "tests" / test) for test in tests]
    options = ["-q", "-x", "-p", "no:cacheprovider", "-o", f"pythonpath={source}"]
    command = [sys.executable, "-m", "pytest", *options, *nodes]
    found = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=found, stdout=subprocess.DEVNULL).returncode


def verdict(fault: Fault, source: Path) -> str:
    """Whether the fault is caught, once put into ``source``, which is left as it was."""
    path = source / "tightframe" / fault.file
    sound = path.read_text(encoding="utf-8")
    if sound.count(fault.old) != 1:
        return f"OUT OF DATE: its old text is not once in {fault.file}"
    path.write_text(sound.replace(fault.old, fault.new), encoding="utf-8")
    try:
        code = exit_code(source, [fault.test])
    finally:
        path.write_text(sound, encoding="utf-8")
    return {PASSED: f"MISSED by {fault.test}", FAILED: "caught"}.get(code, f"OUT OF DATE: no test {fault.test}")


def main(words: list[str]) -> int:
    """Try the faults whose names hold one of ``words``, or all; 1 if one was not caught."""
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(shutil.copytree(ROOT / "src", Path(folder) / "src"))
        if exit_code(source, sorted({fault.test for fault in chosen})) != PASSED:
            print("The tests fail on the source as it is: mend that first.")
            return 1
        caught = 0
        for fault in chosen:
            told = verdict(fault, source)
            caught += told == "caught"
            print(f"{told:8} {fault.name}", flush=True)
    print(f"{caught} of {len(chosen)} faults were caught")
    return int(caught < len(chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
