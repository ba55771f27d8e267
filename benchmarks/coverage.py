"""How often 95 % intervals hold what they are about, and how wide they are.

python benchmarks/coverage.py > benchmarks/results/coverage.md

Populations are Gaussian with known values. An interval around a plug-in value is about its mean over draws, one around
a corrected value about the population's, one over classes about the mean over classes drawn anew.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from few_samples import truth

from tightframe.features.moments import ClassMoments
from tightframe.metrics.collapse import cdnv, nc1
from tightframe.metrics.folds import Folds
from tightframe.metrics.intervals import Interval, collapse_intervals, corrected_intervals
from tightframe.metrics.summary import collapse_metrics

DRAWS = 400
EACH = 100
"""Draws from one population; then means and scales are drawn anew."""
FEW = 8
"""Draws that an interval around a corrected value is made of here, for time: Student's t makes up for it."""


class Setting(NamedTuple):
    dimension: int
    signal: float
    counts: tuple[int, ...]

    def __str__(self) -> str:
        sizes = sorted(set(self.counts))
        each = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]}–{sizes[-1]}"
        return f"{self.dimension}, {len(self.counts)}, {self.signal}, {each}"


SETTINGS = (
    Setting(64, 0.5, (20,) * 5),
    Setting(256, 0.5, (20,) * 10),
    Setting(512, 0.5, (5,) * 10),
    Setting(512, 0.5, (10,) * 20),
    Setting(128, 0.5, (3, 5, 8, 12, 20, 30, 40, 60)),
    Setting(64, 0.5, (100,) * 10),
)


class Draw(NamedTuple):
    seed: int
    population: int
    folds: Folds
    truth: dict[str, float]


def draws(setting: Setting, number: int, each: int = EACH) -> list[Draw]:
    made = []
    for index in range(number):
        population = index // each
        rng = np.random.default_rng([population, 0])
        scales = np.exp(0.5 * rng.standard_normal(setting.dimension))
        means = setting.signal * rng.standard_normal((len(setting.counts), setting.dimension))
        labels = np.repeat(np.arange(len(means)), setting.counts)
        noise = np.random.default_rng([index, 1]).standard_normal((len(labels), setting.dimension))
        folds = Folds.of(means[labels] + scales * noise, labels, len(means), folds=2)
        true = dict(zip(("nc1", "cdnv", "vci"), truth(means, scales**2), strict=True))
        made.append(Draw(index, population, folds, true))
    return made


class Found(NamedTuple):
    """Share of intervals that hold what they are about, and how wide they are in units of the value."""

    coverage: float
    width: float

    def __str__(self) -> str:
        return f"{100 * self.coverage:.1f} ({100 * self.width:.0f})"


def judged(made: Sequence[Interval], about: np.ndarray) -> Found:
    held = [one.low <= target <= one.high for one, target in zip(made, about, strict=True)]
    return Found(float(np.mean(held)), float(np.nanmedian([(one.high - one.low) / abs(one.value) for one in made])))


def around_mean(given: list[Draw], make: Callable[..., dict[str, Interval]]) -> dict[str, Found]:
    made = [make(draw.folds, seed=draw.seed) for draw in given]
    of = np.array([draw.population for draw in given])
    found = {}
    for name in made[0]:
        values = np.array([one[name].value for one in made])
        means = np.array([values[of == population].mean() for population in of])
        if values.any():
            found[name] = judged([one[name] for one in made], means)
    return found


def around_truth(given: list[Draw]) -> dict[str, Found]:
    made = [corrected_intervals(draw.folds, draws=FEW, seed=draw.seed) for draw in given]
    found = {}
    for name in made[0]:
        about = np.array([draw.truth[name] for draw in given])
        known = [one[name] for one in made]
        found[f"corrected {name}"] = judged(known, about)
    return found


def bootstrap(folds: Folds, seed: int, resamples: int = 200) -> dict[str, Interval]:
    """The percentile bootstrap of images, class by class: what not to do."""
    rng = np.random.default_rng(seed)
    metrics = {"nc1": nc1, "cdnv": cdnv}
    rows = []
    for _ in range(resamples):
        chosen = np.concatenate(
            [rng.choice(own, len(own)) for own in (np.flatnonzero(folds.labels == k) for k in folds.labels.unique())]
        )
        moments = ClassMoments.from_features(folds.features[chosen], folds.labels[chosen], folds.total.classes)
        rows.append([metric(moments) for metric in metrics.values()])
    low, high = np.quantile(rows, [0.025, 0.975], axis=0)
    values = [metric(folds.total) for metric in metrics.values()]
    return {name: Interval(*ends) for name, *ends in zip(metrics, values, low, high, strict=True)}


def cost() -> None:
    print("\n## Cost\n\nSeconds on one thread; N samples, float32.\n")
    print("| d, K, N | moments | collapse metrics | their intervals | corrected intervals |\n|---|---|---|---|---|")
    for dimension, classes, samples in ((512, 10, 5000), (512, 100, 50_000), (2048, 100, 50_000), (2048, 1000, 50_000)):
        rng = np.random.default_rng(0)
        labels = np.arange(samples) % classes
        means = 0.3 * rng.standard_normal((classes, dimension), dtype=np.float32)
        features = means[labels] + rng.standard_normal((samples, dimension), dtype=np.float32)
        seconds = [time.perf_counter()]
        total = ClassMoments.from_features(features, labels, classes)
        seconds.append(time.perf_counter())
        folds = Folds(torch.from_numpy(features), torch.from_numpy(labels), classes, (torch.arange(samples),))
        collapse_metrics(total)
        seconds.append(time.perf_counter())
        collapse_intervals(folds)
        seconds.append(time.perf_counter())
        few = 2
        corrected_intervals(folds, draws=few)
        seconds.append(seconds[-1] + (time.perf_counter() - seconds[-1]) * 25 / (few + 1))
        print(f"| {dimension}, {classes}, {samples} | " + " | ".join(f"{s:.1f}" for s in np.diff(seconds)) + " |")


def table(title: str, rows: dict[str, dict[str, Found]]) -> None:
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    print(
        f"\n## {title}\n\n| d, K, signal, n a class | "
        + " | ".join(names)
        + " |"
        + "\n|---"
        + "|---" * len(names)
        + "|"
    )
    for setting, row in rows.items():
        print(f"| {setting} | " + " | ".join(str(row.get(name, "–")) for name in names) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=DRAWS)
    number = parser.parse_args().draws
    torch.set_num_threads(1)
    print("# Coverage of 95 % intervals\n")
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}, NumPy {np.__version__}"
    print(f"`python benchmarks/coverage.py` on {platform.machine()}, one thread; {versions}.")
    print(f"{number} draws each: coverage in %, in brackets the median width in % of the value.")
    print("VCI of no more samples than dimensions is 0, and left out.")
    given = {setting: draws(setting, number) for setting in SETTINGS}
    table("Plug-in values", {str(s): around_mean(d, collapse_intervals) for s, d in given.items()})
    table("Percentile bootstrap, for comparison", {str(s): around_mean(given[s], bootstrap) for s in SETTINGS[:3:2]})
    cost()
    table(
        f"Corrected values, each of another population, {FEW} draws an interval",
        {str(s): around_truth(draws(s, number, each=1)) for s in SETTINGS},
    )


if __name__ == "__main__":
    main()
