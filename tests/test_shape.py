"""The shape of the source: no import cycles, few modules a package, no long files, as `benchmarks/size.py` counts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
MODULES_PER_PACKAGE = 12


@pytest.fixture(scope="module")
def size():
    spec = importlib.util.spec_from_file_location("size_of_source", ROOT / "benchmarks" / "size.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def modules(size):
    return size.modules_of(ROOT / "src" / "tightframe")


def crowded(size, modules):
    return {name: count for name, count in size.modules_per_package(modules).items() if count > MODULES_PER_PACKAGE}


@pytest.mark.slow
@pytest.mark.parametrize(
    "exceptions",
    [
        pytest.param(lambda size, modules: size.cycles(size.import_graph(modules)), id="import cycles"),
        pytest.param(crowded, id="crowded packages"),
        pytest.param(lambda size, modules: size.long_files(modules), id="long files"),
    ],
)
def test_the_source_keeps_its_shape(size, modules, exceptions):
    assert not exceptions(size, modules)


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "toy"
    (folder / "deep").mkdir(parents=True)
    files = {
        "__init__.py": "",
        "a.py": '"""Docs\nof a."""\n\nfrom toy import b  # b\n\n\ndef f(\n    x,\n):\n    """Docs."""\n    return x\n',
        "b.py": "def g():\n    from toy.deep.c import C\n    return C\n",
        "deep/__init__.py": "from .c import C\n",
        "deep/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..a import f\nclass C: ...\n",
        "deep/d.py": "import toy.a, os\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_comments_docstrings_and_blank_lines_are_not_counted(size, package):
    lines = {module.name: module.code for module in size.modules_of(package)}
    assert lines["toy.a"] == {4, 7, 8, 9, 11}
    (a,) = [module for module in size.modules_of(package) if module.name == "toy.a"]
    assert a.functions == {"toy.a.f:7": 4}


def test_imports_count_wherever_they_stand(size, package):
    modules = size.modules_of(package)
    graph = size.import_graph(modules)
    assert graph == {
        "toy": set(),
        "toy.a": {"toy.b"},
        "toy.b": {"toy.deep.c"},
        "toy.deep": {"toy.deep.c"},
        "toy.deep.c": {"toy.a"},
        "toy.deep.d": {"toy.a"},
    }
    assert size.cycles(graph) == [["toy.a", "toy.b", "toy.deep.c"]]
    assert size.modules_per_package(modules) == {"toy": 2, "toy.deep": 2}
    assert size.long_files(modules, limit=4) == {"toy.a": 11}


def test_the_report_names_every_figure(size, package):
    text = "\n".join(size.report(package))
    for figure in ("| toy.deep | 2 | 6 |", "| **total** | 4 | **14** |", "median", "p90", "toy.a ↔ toy.b"):
        assert figure in text


def test_annotations_are_checked_while_tests_run():
    from tightframe.metrics.folds import fold_of
    from tightframe.probes.logistic import standardize

    with pytest.raises(jaxtyping.TypeCheckError):
        standardize(torch.zeros(3))
    with pytest.raises(jaxtyping.TypeCheckError):
        fold_of(np.zeros(4, dtype=np.int64), "2", 0)
