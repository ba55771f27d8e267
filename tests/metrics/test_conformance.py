"""Every measure crossed with everything that must leave it unchanged, as declared beside it; and that this can fail."""

from __future__ import annotations

import ast
import inspect
import runpy
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tightframe.errors import MeasureError
from tightframe.features.moments import FIELDS, ClassMoments
from tightframe.metrics.collapse import Head
from tightframe.metrics.registry import MEASURES, Measure, measure
from tightframe.scores.transferability import transferability

CLASSES, DIMENSION = 3, 5
SLACK = {"nleep": 0.05, "parc": 1e-6}
"""What is drawn (a mixture's starts) or ranked can't be held to rounding."""
BY_SOURCE_OR_DRAWN = ("leep", "nce", "nleep", "parc")
"""They look at probabilities, draws or ranks, which no change of features in the table moves."""


@dataclass(frozen=True)
class Sample:
    """Evidence for all measures; ``cuts`` and ``kind`` say how moments come by it."""

    features: Any
    labels: Any
    weight: np.ndarray
    bias: np.ndarray
    source: Any
    cuts: tuple[int, ...] = ()
    classes: int = CLASSES

    def evidence(self) -> dict[str, Any]:
        parts = [
            ClassMoments.from_features(self.features[start:stop], self.labels[start:stop], self.classes)
            for start, stop in zip((0, *self.cuts), (*self.cuts, len(self.labels)), strict=True)
        ]
        moments = ClassMoments.zero(self.classes, self.features.shape[1])
        for part in parts:
            moments = moments.merge(part)
        features, labels = (torch.as_tensor(np.ascontiguousarray(x)) for x in (self.features, self.labels))
        head = Head(torch.from_numpy(self.weight), torch.from_numpy(self.bias))
        source = torch.as_tensor(np.ascontiguousarray(self.source))
        return {"moments": moments, "features": features, "labels": labels, "classes": self.classes} | {
            "head": head,
            "source": source,
        }


def sample() -> Sample:
    """Overlapping classes of unequal size and spread; a head a bit off the means; a source head of four classes."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(CLASSES), [18, 26, 22]))
    means = 1.5 * generator.normal(size=(CLASSES, DIMENSION))
    noise = generator.normal(size=(len(labels), DIMENSION)) * np.geomspace(0.3, 1.5, DIMENSION)
    features = (means[labels] + noise * (1 + labels[:, None] / 3) + 0.4).astype(np.float16).astype(float)
    source = generator.dirichlet(np.ones(4), len(labels)) + 0.8 * np.eye(4)[labels]
    weight = means + 0.5 * generator.normal(size=means.shape)
    return Sample(features, labels, weight, generator.normal(size=CLASSES), source / source.sum(1, keepdims=True))


def linear(given: Sample, matrix: np.ndarray, head: np.ndarray) -> Sample:
    return replace(given, features=given.features @ matrix, weight=given.weight @ head)


def rotated(given: Sample) -> Sample:
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(DIMENSION, DIMENSION)))[0]
    return linear(given, turn, turn)


def scaled(factor: float) -> Callable[[Sample], Sample]:
    return lambda given: linear(given, factor * np.eye(DIMENSION), np.eye(DIMENSION) / factor)


def shifted(offset: float) -> Callable[[Sample], Sample]:
    return lambda given: replace(
        given, features=given.features + offset, bias=given.bias - offset * given.weight.sum(1)
    )


def permuted(given: Sample) -> Sample:
    order = np.random.default_rng(2).permutation(len(given.labels))
    return replace(given, features=given.features[order], labels=given.labels[order], source=given.source[order])


def wide(given: Sample) -> Sample:
    """The same numbers between others in memory."""
    spread = np.repeat(np.repeat(given.features, 2, 0), 3, 1)
    return replace(given, features=spread[::2, ::3])


CHANGES: dict[str, tuple[str, Callable[[Sample], Sample], float]] = {
    "in batches, one of them empty": ("always", lambda given: replace(given, cuts=(1, 2, 30, 30, 50)), 1e-8),
    "permuted": ("always", permuted, 1e-8),
    "not contiguous": ("always", wide, 1e-8),
    "float32": ("always", lambda given: replace(given, features=given.features.astype(np.float32)), 1e-4),
    "float16": ("always", lambda given: replace(given, features=given.features.astype(np.float16)), 1e-4),
    "rotated": ("rotation", rotated, 1e-7),
    "a thousand times larger": ("scale", scaled(1e3), 1e-6),
    "a thousand times smaller": ("scale", scaled(1e-3), 1e-6),
    "shifted": ("offset", shifted(3.0), 1e-7),
    "far away": ("offset", shifted(1e3), 1e-6),
}


@cache
def reference(name: str) -> float:
    return value_of(MEASURES[name], sample())


def value_of(measure: Measure, given: Sample) -> float:
    value = measure.of(given.evidence())
    assert value is not None, "all evidence is at hand"
    return value


def same(one: float, other: float, near: float, name: str) -> bool:
    return one == pytest.approx(other, rel=max(near, SLACK.get(name, 0)), abs=1e-12)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", MEASURES)
def test_what_is_declared_holds(name: str, change: str) -> None:
    needs, function, near = CHANGES[change]
    if needs == "always" or needs in MEASURES[name].unchanged_by:
        assert same(value_of(MEASURES[name], function(sample())), reference(name), near, name)


@pytest.mark.parametrize("invariance", ["rotation", "scale", "offset"])
@pytest.mark.parametrize("name", MEASURES)
def test_what_holds_is_declared(name: str, invariance: str) -> None:
    changes = [(function, near) for needs, function, near in CHANGES.values() if needs == invariance]
    holds = all(same(value_of(MEASURES[name], f(sample())), reference(name), near, name) for f, near in changes)
    assert holds == (invariance in MEASURES[name].unchanged_by)


@pytest.mark.parametrize("name", MEASURES)
def test_evidence_is_left_as_it_was(name: str) -> None:
    evidence = sample().evidence()
    moments = evidence["moments"]
    before = {field: getattr(moments, field).clone() for field in FIELDS}
    given = {key: evidence[key].clone() for key in ("features", "labels", "source")}
    MEASURES[name].of(evidence)
    assert all(torch.equal(getattr(moments, field), before[field]) for field in FIELDS)
    assert all(torch.equal(evidence[key], kept) for key, kept in given.items())


def test_parts_merged_into_an_empty_one_are_left_as_they_were() -> None:
    given = sample()
    halves = [slice(0, 30), slice(30, None)]
    parts = [ClassMoments.from_features(given.features[half], given.labels[half], CLASSES) for half in halves]
    before = [{field: getattr(part, field).clone() for field in FIELDS} for part in parts]
    total = ClassMoments.zero(CLASSES, DIMENSION)
    for part in parts:
        total = total.merge(part)
    for part, kept in zip(parts, before, strict=True):
        assert all(torch.equal(getattr(part, field), kept[field]) for field in FIELDS)


@pytest.mark.parametrize("name", MEASURES)
def test_an_empty_class_is_refused_or_makes_no_difference(name: str) -> None:
    given = sample()
    one_more = replace(
        given, classes=CLASSES + 1, weight=np.vstack([given.weight, given.weight[:1]]), bias=np.r_[given.bias, -1e9]
    )
    try:
        found: Any = value_of(MEASURES[name], one_more)
    except MeasureError as error:
        found = str(error)
    assert "class" in found if isinstance(found, str) else same(found, reference(name), 1e-8, name)


@pytest.mark.parametrize("name", MEASURES)
def test_a_class_of_one_is_refused_or_measured(name: str) -> None:
    given = sample()
    alone = replace(
        given,
        features=np.vstack([given.features, given.features[:1] + 2]),
        labels=np.r_[given.labels, CLASSES],
        source=np.vstack([given.source, given.source[:1]]),
        weight=np.vstack([given.weight, given.weight[:1] + 1]),
        bias=np.r_[given.bias, 0],
        classes=CLASSES + 1,
    )
    try:
        found: Any = value_of(MEASURES[name], alone)
    except MeasureError as error:
        found = str(error)
    assert "class" in found if isinstance(found, str) else np.isfinite(found)


@pytest.mark.parametrize("name", MEASURES)
def test_better_features_move_it_the_way_it_says(name: str) -> None:
    given = sample()
    means = np.stack([given.features[given.labels == k].mean(0) for k in range(CLASSES)])
    if name in ("nc2_norm", "nc2_angle", "nc2_etf", "nc3", "numerical_rank", "parc"):
        return  # these look at means or at the shape of spread: tightening classes leaves them as they are
    tight = replace(
        given,
        features=0.2 * given.features + 0.8 * means[given.labels],
        source=0.5 * given.source + 0.5 * np.eye(4)[given.labels],
        weight=means - means.mean(0),
        bias=-((means - means.mean(0)) * (means + means.mean(0))).sum(1) / 2,
    )
    found = value_of(MEASURES[name], tight)
    assert found > reference(name) if MEASURES[name].higher_is_better else found < reference(name)


OPPOSITES = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}


class OneChange(ast.NodeTransformer):
    """Swap the operator at one place for its opposite."""

    def __init__(self, at: int):
        self.at, self.seen = at, -1

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        opposite = OPPOSITES.get(type(node.op))
        if opposite is None:
            return node
        self.seen += 1
        return ast.BinOp(node.left, opposite(), node.right) if self.seen == self.at else node


OURS = ("tightframe.metrics", "tightframe.scores", "tightframe.probes")


def formulas(function: Any) -> list[Any]:
    """A measure and the functions of the package's metrics that it calls, and they call."""
    found = [function]
    for one in found:
        bare = inspect.unwrap(one)
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(bare)))):
            called = bare.__globals__.get(node.id) if isinstance(node, ast.Name) else None
            ours = inspect.isfunction(called) and called.__module__.startswith(OURS)
            if ours and called not in found and not called.__name__.startswith("check"):
                found.append(called)
    return found


def mutants(function: Any) -> Iterator[Any]:
    """Copies of a function, each broken at one operator."""
    bare = inspect.unwrap(function)
    for at in range(60):
        tree, change = ast.parse(textwrap.dedent(inspect.getsource(bare))), OneChange(at)
        tree = ast.fix_missing_locations(change.visit(tree))
        if change.seen < at:
            return
        tree.body[0].decorator_list = []
        space = dict(bare.__globals__)
        exec(compile(tree, inspect.getfile(bare), "exec"), space)
        yield space[bare.__name__]


def caught(name: str, patch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether the table sees it, for every place at which the formula can be broken."""
    for function in formulas(MEASURES[name].compute):
        for mutant in mutants(function):
            with patch.context() as patched:
                for module in [m for key, m in sys.modules.items() if key.startswith(OURS)]:
                    for attribute in [key for key, value in vars(module).items() if value is function]:
                        patched.setattr(module, attribute, mutant)
                yield breaks_the_table(name, mutant if function is MEASURES[name].compute else MEASURES[name].compute)


def breaks_the_table(name: str, compute: Callable[..., float]) -> bool:
    broken = replace(MEASURES[name], compute=compute)
    try:
        before = value_of(broken, sample())
        for needs, change, near in CHANGES.values():
            must_hold = needs == "always" or needs in broken.unchanged_by
            if must_hold and not same(value_of(broken, change(sample())), before, near, name):
                return True
    except Exception:  # a broken formula may break in any way
        return True
    return False


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in MEASURES if name not in BY_SOURCE_OR_DRAWN])
def test_a_broken_formula_breaks_the_table(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not breaks_the_table(name, MEASURES[name].compute), "the formula itself must pass"
    assert any(caught(name, monkeypatch))


def test_what_is_asked_for_must_be_there() -> None:
    evidence = sample().evidence()
    with pytest.raises(MeasureError, match='no measure "nc5"; choose of nc1'):
        transferability(evidence["moments"], only=["nc5"])
    with pytest.raises(MeasureError, match="leep needs source, labels as well"):
        transferability(evidence["moments"], only=["leep"])
    with pytest.raises(MeasureError, match="features need their labels"):
        transferability(evidence["features"])


def test_moments_and_features_give_the_same_and_features_more() -> None:
    evidence = sample().evidence()
    few = transferability(evidence["moments"])
    many = transferability(sample().features, sample().labels, source=evidence["source"])
    assert set(few) == {"h_score", "h_score_shrunk", "logme", "gbc"}
    assert {name: many[name] for name in few} == pytest.approx(few)
    assert set(many) > {*few, "leep", "nce", "transrate", "sfda", "parc"}
    assert "nleep" not in many
    assert list(transferability(evidence["moments"], only=["nc1", "h_score"])) == ["nc1", "h_score"]


def test_only_known_evidence_can_be_asked_for() -> None:
    with pytest.raises(TypeError, match="asks for images; known are"):

        @measure("score", reference="nowhere")
        def wrong(images: Any) -> float:
            return 0.0

    assert "wrong" not in MEASURES


def test_the_page_of_measures_is_up_to_date() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = runpy.run_path(str(docs / "make_measures.py"))["page"]()
    assert (docs / "measures.md").read_text(encoding="utf-8") == page, "run python docs/make_measures.py"
    assert all(f"| `{name}` |" in page for name in MEASURES)
