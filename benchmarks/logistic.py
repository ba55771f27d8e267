"""Logistic regression over ten penalties: this library beside scikit-learn, in one process, at the same loss.

Run ``OMP_NUM_THREADS=2 python benchmarks/logistic.py 10000x768x10 50000x512x100`` (samples × dimension × classes).

Features look like those of a model's last layer: positive, correlated, variances falling as a power, classes that
overlap a little; some labels are wrong. scikit-learn (lbfgs) is given standardized float64 features, standardizing
not counted; it is run at its default tolerance, and again, ten times tighter at a time, until its loss is within 1e-4
of ours: only the last of those runs is counted as "same loss".
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info

from tightframe.metrics.collapse import Head
from tightframe.probes.logistic import STRENGTHS, logistic_path

TOLERANCES = tuple(10.0**-power for power in range(4, 11))
SAME = 1e-4


class Fit(NamedTuple):
    seconds: float
    loss: float
    accuracy: float


def features_of(samples: int, dimension: int, classes: int, wrong: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    rank = min(dimension, 256)
    spread = np.arange(1, rank + 1, dtype=np.float32) ** -0.5
    labels = generator.integers(0, classes, samples)
    means = generator.normal(size=(classes, rank)).astype(np.float32)
    hidden = (0.8 * means[labels] + generator.standard_normal((samples, rank), dtype=np.float32)) * spread
    mixing = generator.standard_normal((rank, dimension), dtype=np.float32)
    noise = generator.standard_normal((samples, dimension), dtype=np.float32)
    labels = np.where(generator.random(samples) < wrong, generator.integers(0, classes, samples), labels)
    return np.maximum(hidden @ mixing + 0.5 * noise, 0), labels


def sklearns(
    strength: float, tolerance: float, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> Fit:
    started = time.perf_counter()
    model = LogisticRegression(C=strength, tol=tolerance, max_iter=100_000).fit(*train)
    seconds = time.perf_counter() - started
    logits = model.decision_function(train[0])
    logits = np.stack([-logits, logits], 1) / 2 if logits.ndim == 1 else logits
    losses = logsumexp(logits - logits[np.arange(len(logits)), train[1]][:, None], axis=1)
    return Fit(seconds, float(losses.sum() + (model.coef_**2).sum() / (2 * strength)), model.score(*test))


def loss_of(head: Head, scale: np.ndarray, features: np.ndarray, labels: np.ndarray, strength: float) -> float:
    """scikit-learn's objective, whose penalty is on the weights of standardized features."""
    logits = head.logits(features).numpy()
    losses = logsumexp(logits - logits[np.arange(len(logits)), labels][:, None], axis=1)
    return float(losses.sum() + ((head.weight.numpy() * scale) ** 2).sum() / (2 * strength))


def compare(samples: int, dimension: int, classes: int) -> None:
    features, labels = features_of(samples + 5000, dimension, classes)
    seen, unseen = slice(0, samples), slice(samples, None)
    started = time.perf_counter()
    path = logistic_path(features[seen], labels[seen], classes)
    ours = time.perf_counter() - started
    center, scale = features[seen].mean(0, dtype=np.float64), features[seen].std(0, dtype=np.float64)
    scaled = (features - center) / scale
    train, test = (scaled[seen], labels[seen]), (scaled[unseen], labels[unseen])
    print(f"\n{samples} × {dimension}, {classes} classes: {ours:.2f} s for all penalties\n")
    print("| C | our loss | default tol: loss / ours − 1 | s | same loss: tol | loss / ours − 1 | s | accuracy off |")
    print("|---|---|---|---|---|---|---|---|")
    totals = np.zeros(2)
    for strength, head in zip(STRENGTHS, path, strict=True):
        loss = loss_of(head, scale, features[seen], labels[seen], strength)
        first = found = sklearns(strength, TOLERANCES[0], train, test)
        used = TOLERANCES[0]
        for used in TOLERANCES:
            found = first if used == TOLERANCES[0] else sklearns(strength, used, train, test)
            if found.loss <= loss * (1 + SAME):
                break
        totals += first.seconds, found.seconds
        points = 100 * (head.accuracy(features[unseen], labels[unseen]) - found.accuracy)
        print(
            f"| {strength:.0e} | {loss:.6g} | {first.loss / loss - 1:.0e} | {first.seconds:.1f} | {used:.0e} "
            f"| {found.loss / loss - 1:.0e} | {found.seconds:.1f} | {points:+.2f} pt |",
            flush=True,
        )
    print(
        f"\nIn all: ours {ours:.2f} s; scikit-learn {totals[0]:.1f} s at its default tolerance "
        f"({totals[0] / ours:.0f}×), {totals[1]:.1f} s for the same loss ({totals[1] / ours:.0f}×)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", default=["10000x768x10"], help="SAMPLESxDIMENSIONxCLASSES")
    warnings.simplefilter("ignore")
    print("threads:", {info["user_api"]: info["num_threads"] for info in threadpool_info()})
    small = features_of(500, 20, 3)
    logistic_path(*small, 3)  # what is done only once, when first used, is not counted
    LogisticRegression().fit(*small)
    for size in parser.parse_args().sizes:
        compare(*map(int, size.split("x")))


if __name__ == "__main__":
    main()
