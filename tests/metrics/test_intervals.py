"""Intervals hold what they are about as often as they say; the populations drawn from vary as samples do."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from tightframe.errors import MeasureError
from tightframe.features.moments import ClassMoments
from tightframe.metrics.collapse import nc1, numerical_rank, vci
from tightframe.metrics.correction import corrected
from tightframe.metrics.folds import Folds
from tightframe.metrics.intervals import Interval, _interval, _quantile, collapse_intervals, corrected_intervals
from tightframe.metrics.population import Population, wishart
from tightframe.metrics.registry import MEASURES, measures
from tightframe.scores.from_moments import h_score_shrunk, logme

COLLAPSE = {measure.name: measure.compute for measure in measures("collapse", ["moments"])}
BALANCED, IMBALANCED = (64, (20,) * 5), (48, (2, 3, 5, 8, 12, 20, 30, 40))
FEWER = (96, (6,) * 8)


Setting = tuple[int, tuple[int, ...]]
SIGNAL = 0.5


def scales(dimension: int) -> np.ndarray:
    return np.exp(0.5 * np.random.default_rng(7).standard_normal(dimension))


def class_means(setting: Setting, classes: int) -> np.ndarray:
    return SIGNAL * np.random.default_rng([classes, 0]).standard_normal((len(setting[1]), setting[0]))


def drawn(setting: Setting, index: int, classes: int = 0) -> Folds:
    """Sample ``index`` of Gaussian classes around the means ``classes``."""
    dimension, counts = setting
    labels = np.repeat(np.arange(len(counts)), counts)
    noise = np.random.default_rng([classes, index, 1]).standard_normal((len(labels), dimension))
    return Folds.of(class_means(setting, classes)[labels] + scales(dimension) * noise, labels, len(counts), folds=2)


@cache
def samples(setting: Setting, number: int = 40) -> list[Folds]:
    return [drawn(setting, index) for index in range(number)]


def coverage(made: list[Interval]) -> float:
    """Of the mean over samples of one population."""
    about = np.mean([one.value for one in made])
    return float(np.mean([one.low <= about <= one.high for one in made]))


@pytest.mark.slow
@pytest.mark.parametrize("setting", [BALANCED, IMBALANCED, FEWER])
def test_collapse_intervals_hold_the_mean_over_samples(setting: Setting) -> None:
    made = [collapse_intervals(folds, draws=10, seed=index) for index, folds in enumerate(samples(setting))]
    for metric in COLLAPSE:
        found = [one[metric] for one in made]
        if any(one.value for one in found):  # VCI of no more samples than dimensions is 0
            assert coverage(found) >= 0.86, metric
            true = np.log([one.value for one in found]).std(ddof=1)
            told = np.mean([np.log(one.high / one.low) for one in found]) / 2 / 2.26
            assert 0.65 < told / true < 1.5, metric


@pytest.mark.slow
def test_percentile_bootstrap_fails_the_same_check() -> None:
    rng = np.random.default_rng(0)
    made = []
    for folds in samples(FEWER)[:30]:
        features, labels = folds.features.numpy(), folds.labels.numpy()
        again = []
        for _ in range(30):
            rows = np.concatenate([rng.choice(own, len(own)) for own in np.split(np.arange(48), 8)])
            again.append(nc1(ClassMoments.from_features(features[rows], labels[rows], 8)))
        low, high = np.quantile(again, [0.025, 0.975])
        made.append(Interval(nc1(folds.total), float(low), float(high)))
    assert coverage(made) < 0.6


@pytest.mark.slow
def test_corrected_intervals_hold_the_value_of_the_population() -> None:
    held, wrong = np.zeros(3), 0
    for classes in range(25):
        folds = drawn(BALANCED, 0, classes=classes)
        made = corrected_intervals(folds, draws=5, seed=classes)
        plugin = collapse_intervals(folds, draws=5, seed=classes)["vci"]
        true = population_values(classes)
        held += [made[name].low <= true[name] <= made[name].high for name in made]
        wrong += plugin.low <= true["vci"] <= plugin.high
    assert (held >= 21).all(), held
    assert wrong <= 6  # plug-in values are about something else


def population_values(classes: int) -> dict[str, float]:
    """From their definitions."""
    means, variances = class_means(BALANCED, classes), scales(BALANCED[0]) ** 2
    within, centered = np.diag(variances), means - means.mean(0)
    between = centered.T @ centered / len(means)
    apart = [((a - b) ** 2).sum() for i, a in enumerate(means) for b in means[:i]]
    return {
        "nc1": float(np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / len(means)),
        "cdnv": float(np.mean(variances.sum() / np.array(apart))),
        "vci": float(1 - np.trace(np.linalg.solve(within + between, between)) / (len(means) - 1)),
    }


def direct(folds: Folds, measures: dict[str, Any], draws: int, seed: int = 0) -> dict[str, Interval]:
    """Intervals of any measures of moments, from draws in all dimensions."""
    population, rng = Population.of(folds), np.random.default_rng(seed)
    drawn = [population.draw(rng) for _ in range(draws)]
    quantile = _quantile(0.95, draws - 1)
    return {
        name: _interval(measure(folds.total), np.array([measure(one) for one in drawn]), quantile)
        for name, measure in measures.items()
    }


@pytest.mark.parametrize("weighting", ["class", "sample"])
def test_intervals_are_those_of_draws_in_all_dimensions(weighting: str) -> None:
    folds = drawn(IMBALANCED if weighting == "sample" else BALANCED, 0)
    evaluated = {
        name: lambda moments, name=name: MEASURES[name].of({"moments": moments}, weighting=weighting)
        for name in COLLAPSE
        if (name, weighting) != ("nc1_ratio", "sample")  # only the shortcut lets squared lengths vary as they do
    }
    slow = direct(folds, evaluated, 60)
    short = collapse_intervals(folds, draws=60, weighting=weighting)  # type: ignore[arg-type]
    for metric in slow:
        widths = [np.log(made[metric].high / made[metric].low) for made in (slow, short)]
        assert widths[0] == pytest.approx(widths[1], rel=0.35), metric
        assert slow[metric].value == short[metric].value


@pytest.mark.slow
def test_draws_in_all_dimensions_vary_as_scores_do() -> None:
    for score in (logme, h_score_shrunk):
        made = [direct(folds, {"it": score}, 8, i)["it"] for i, folds in enumerate(samples(BALANCED)[:16])]
        true = np.std([score(folds.total) for folds in samples(BALANCED)], ddof=1)
        told = np.mean([one.high - one.low for one in made]) / 2 / 2.36
        assert 0.7 < told / true < 1.7, score


def test_wishart_has_its_mean_and_variance() -> None:
    rng, factor = np.random.default_rng(0), torch.tensor([[2.0, 0], [1, 1]], dtype=torch.float64)
    for freedom in (1.0, 7.5):
        found = torch.stack([wishart(factor, freedom, rng) for _ in range(2000)]) / freedom
        covariance = factor @ factor.T
        assert torch.allclose(found.mean(0), covariance, rtol=0.1)
        variance = (covariance.square() + covariance.diagonal()[:, None] * covariance.diagonal()) / freedom
        assert torch.allclose(found.var(0), variance, rtol=0.2)


def test_traces_are_those_of_the_population() -> None:
    found = np.mean([Population.of(folds).known.traces for folds in samples(BALANCED)], 0)
    assert found == pytest.approx([(scales(64) ** (2 * power)).sum() for power in (1, 2, 3, 4)], rel=0.15)


def test_heavy_tails_widen_intervals() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    light = rng.standard_normal((400, 20)) + np.eye(4, 20)[labels] * 4
    heavy = light + (light - np.eye(4, 20)[labels] * 4) * rng.standard_exponential((400, 1))
    widths = []
    for features in (light, heavy):
        made = collapse_intervals(Folds.of(features, labels, 4))
        widths.append([np.log(made[name].high / made[name].low) for name in ("nc1_ratio", "numerical_rank")])
    assert (np.divide(*widths[::-1]) > 1.3).all()


def assert_defined(folds: Folds) -> None:
    made = collapse_intervals(folds, draws=3)
    if float(folds.total.scatter.trace()) > 0:
        made |= direct(folds, {"score": logme}, 3)
    for name, one in made.items():
        assert one.low <= one.value <= one.high or not np.isfinite(one.value), name
    if folds.total.classes >= folds.total.dimension:
        return
    for name, one in corrected_intervals(folds, draws=3).items():
        assert one.low <= one.value <= one.high or (np.isnan(one.value) and one.low <= one.high), name


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(1, 1, 1, 2), (1, 2, 2), (2, 2), (1, 9, 6), (3,) * 12, (2,) * 16], ids=str)
@pytest.mark.parametrize("dimension", [1, 3, 33])
def test_hard_samples_have_defined_intervals(counts: tuple[int, ...], dimension: int) -> None:
    assert_defined(drawn((dimension, counts), 0))


def hard(kind: str) -> tuple[Any, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = rng.standard_normal((60, 6)) + np.eye(3, 6)[labels] * 3
    if kind == "constant values":
        features[:, 2:4] = 5
    if kind == "repeated values":
        features = np.concatenate([features, features], 1)
    if kind == "far from zero":
        features += 1e6
    if kind == "two classes alike":
        features[labels == 1] = features[labels == 0]
    if kind == "all classes alike":
        features = np.repeat(features[:20], 3, 0)
    return features, labels


@pytest.mark.parametrize(
    "kind", ["constant values", "repeated values", "far from zero", "two classes alike", "all classes alike"]
)
def test_hard_features_have_defined_intervals(kind: str) -> None:
    assert_defined(Folds.of(*hard(kind), 3))


@pytest.mark.slow
def test_values_that_never_count_do_not_widen_vci() -> None:
    features, labels = hard("plain")
    widened = np.concatenate([features, np.full((60, 5), 2.0)], 1)
    made = [collapse_intervals(Folds.of(given, labels, 3), draws=200)["vci"] for given in (features, widened)]
    assert made[0].high - made[0].low == pytest.approx(made[1].high - made[1].low, rel=0.05)


def test_collapsed_classes_are_certain() -> None:
    labels = np.arange(20) % 4
    folds = Folds.of(np.eye(4, 9)[labels], labels, 4)
    assert all(one.low == one.value == one.high for one in collapse_intervals(folds).values())
    assert corrected_intervals(folds)["nc1"] == Interval(0.0, 0.0, 0.0)


def test_intervals_depend_on_their_seed_only_and_narrow_with_the_level() -> None:
    folds = drawn(BALANCED, 0)
    before = folds.total.means.clone()
    assert collapse_intervals(folds, seed=3) == collapse_intervals(folds, seed=3) != collapse_intervals(folds, seed=4)
    wide, narrow = (collapse_intervals(folds, level)["nc1"] for level in (0.95, 0.5))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    assert torch.equal(folds.total.means, before)


def test_values_are_those_of_the_metrics_themselves() -> None:
    folds = drawn(IMBALANCED, 0)
    for metric, one in collapse_intervals(folds, draws=3).items():
        assert one.value == COLLAPSE[metric](folds.total)
    for name, one in corrected_intervals(folds, draws=3).items():
        assert one.value == pytest.approx(getattr(corrected(folds.total), name).value or np.nan, nan_ok=True)


def test_the_population_turns_and_grows_with_the_features() -> None:
    folds = drawn(BALANCED, 0)
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))
    turned = Folds.of(7 * folds.features.numpy() @ turn, folds.labels.numpy(), 5, folds=2)
    one, other = Population.of(folds), Population.of(turned)
    rotation = torch.from_numpy(7 * turn)
    assert torch.allclose(one.means @ rotation, other.means)
    assert torch.allclose(rotation.T @ one.factor @ one.factor.T @ rotation, other.factor @ other.factor.T)
    assert one.whitened is not None
    assert other.whitened is not None
    assert torch.allclose(one.whitened @ one.whitened.T, other.whitened @ other.whitened.T)
    assert one.known.freedom == pytest.approx(other.known.freedom)
    assert one.known.unevenness == pytest.approx(other.known.unevenness)
    assert one.rank_error() == pytest.approx(other.rank_error())


def test_what_cannot_be_is_refused() -> None:
    folds = drawn((8, (5, 5, 5)), 0)
    with pytest.raises(MeasureError, match="1 draws"):
        collapse_intervals(folds, draws=1)
    with pytest.raises(MeasureError, match="level 95"):
        collapse_intervals(folds, level=95.0)
    with pytest.raises(MeasureError, match="no samples for class 3"):
        collapse_intervals(Folds.of(folds.features, folds.labels, 4, folds=2))


def test_population_has_as_much_spread_and_signal_as_the_one_sampled() -> None:
    means = class_means(BALANCED, 0)
    signal, spread, ranks = [], [], []
    for folds in samples(BALANCED)[:40]:
        made = Population.of(folds)
        signal.append(float((made.means - made.means.mean(0)).square().sum()))
        spread.append(float(made.factor.square().sum()))
        ranks.append(made.rank_error())
    assert np.mean(signal) == pytest.approx(((means - means.mean(0)) ** 2).sum(), rel=0.08)
    assert np.mean(spread) == pytest.approx((scales(64) ** 2).sum(), rel=0.02)
    true = np.std([np.log(numerical_rank(folds.total)) for folds in samples(BALANCED)], ddof=1)
    assert np.mean(ranks) == pytest.approx(true, rel=0.25)
    assert vci(Population.of(samples(BALANCED)[0]).draw_whitened(np.random.default_rng(0))) > 0


@pytest.mark.parametrize("setting", [(200, (6,) * 4), (60, (5, 7, 9, 6))])  # many directions beside the span, and few
def test_draws_in_the_span_of_few_samples_vary_as_those_in_all_dimensions(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = drawn(setting, 0)
    narrow = Population.of(folds)
    with monkeypatch.context() as patched:
        patched.setattr("tightframe.metrics.debiasing.span", lambda moments: None)
        whole = Population.of(folds)
    assert narrow.means.shape[1] < whole.means.shape[1] == setting[0]
    assert narrow.known.traces == pytest.approx(whole.known.traces, rel=1e-9)
    assert narrow.doubt == pytest.approx(whole.doubt, rel=1e-9)
    drawers = (Population.draw, Population.draw_along)
    for draw in drawers:
        seen = []
        for population in (narrow, whole):
            rng = np.random.default_rng(0)
            made = [draw(population, rng) for _ in range(200)]
            names = ("nc1", "cdnv", "nc1_ratio", "nc2_norm", "numerical_rank")[: 5 if draw is Population.draw else 4]
            seen.append(np.log([[COLLAPSE[name](one) for name in names] for one in made]))
        few, many = seen
        spread = many.std(0)
        assert (abs(few.mean(0) - many.mean(0)) < 4 * spread * (2 / 200) ** 0.5).all(), draw
        np.testing.assert_allclose(few.std(0), spread, rtol=0.25)


def test_4096_values_of_24_images_take_no_decomposition_of_4096_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGG's penultimate features: everything that n images say is in n directions."""
    folds = drawn((4096, (6,) * 4), 0)
    largest = []
    for name in ("cholesky", "cholesky_ex", "eigh", "qr"):
        plain = getattr(torch.linalg, name)

        def watched(matrix: torch.Tensor, *rest: Any, plain: Any = plain, **further: Any) -> Any:
            largest.append(min(matrix.shape))
            return plain(matrix, *rest, **further)

        monkeypatch.setattr(torch.linalg, name, watched)
    collapse_intervals(folds, draws=2)
    corrected_intervals(folds, draws=2)
    assert largest
    assert max(largest) <= 2 * 24 + 16
