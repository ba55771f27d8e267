"""Damaged and hostile files: some hundred of each kind by ``benchmarks/fuzz.py``, and all that ever failed."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CORPUS = sorted((HERE / "fuzz" / "corpus").glob("*-*"))
OUTCOMES = ("answer", "BadImage", "DataError", "SavedError", "ModelError", "SettingsError", "HubUnreachable")
CASES = {"images": 300, "tables": 150, "archives": 100, "saved": 60, "models": 40, "runs": 100, "caches": 100}


@pytest.fixture(scope="module")
def fuzzer():
    found = importlib.util.spec_from_file_location("fuzz_of_files", HERE.parent / "benchmarks" / "fuzz.py")
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def quietly(tmp_path, monkeypatch):
    monkeypatch.setenv("TIGHTFRAME_CACHE", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow's, about odd metadata
        yield


@pytest.mark.parametrize("kind", CASES)
def test_changed_files_are_read_or_named(fuzzer, kind):
    told = fuzzer.fuzz(kind, CASES[kind])
    assert sum(told.get(name, 0) for name in OUTCOMES) == CASES[kind]


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_what_failed_once_is_read_or_named(fuzzer, path):
    kind, _, name = path.name.split("-", 2)
    fuzzer.read_once(fuzzer.KINDS[kind](), name.replace("+", ":"), path.read_bytes())


def test_the_fuzzer_finds_what_is_wrong(fuzzer, monkeypatch, tmp_path):
    def reads_anything(path):
        if path.read_bytes()[:1] != b"{":
            raise KeyError("a traceback")

    monkeypatch.setattr(fuzzer, "CORPUS", tmp_path)
    monkeypatch.setitem(fuzzer.KINDS, "bad", lambda: fuzzer.Kind({"a.txt": b"{" * 50}, reads_anything))
    with pytest.raises(KeyError, match="a traceback"):
        fuzzer.fuzz("bad", 200)
    (kept,) = tmp_path.iterdir()
    assert len(kept.read_bytes()) <= 50
    assert kept.name.startswith("bad-")


def test_the_fuzzer_sees_files_outside(fuzzer):
    kind = fuzzer.Kind({"a": b""}, lambda path: (path.parents[1] / "stray").touch())
    with pytest.raises(AssertionError, match="stray"):
        fuzzer.read_once(kind, "a", b"")
