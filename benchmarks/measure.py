"""How long everything that moments can say takes, in products of the features with themselves.

    OMP_NUM_THREADS=2 python benchmarks/measure.py > benchmarks/results/measure.md

Add `ours` to leave peers out.

Every line is timed in turn with the float32 product XᵀX of the same features (best of three rounds), since only ratios
carry over from one machine, and one hour, to the next. Memory is the largest growth of the process while it runs.
"""

from __future__ import annotations

import gc
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.linalg import svds

from tightframe.features.moments import ClassMoments
from tightframe.metrics.folds import Folds
from tightframe.metrics.summary import collapse_metrics, quick_collapse
from tightframe.probes.linear import cross_validated_ridge, lda, nearest_center
from tightframe.scores.from_moments import h_score, h_score_shrunk, logme

SIZES = [(10_000, 768, 10), (50_000, 512, 100), (50_000, 2048, 100), (50_000, 2048, 1000)]
PENALTIES = tuple(np.logspace(-6, 3, 20))


def sample(count: int, dimension: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    means = 0.2 * torch.randn(classes, dimension, generator=generator)
    scales = torch.exp(0.5 * torch.randn(dimension, generator=generator))
    return means[labels] + torch.randn(count, dimension, generator=generator) * scales, labels


def moments_alone(features: torch.Tensor, labels: torch.Tensor, classes: int) -> None:
    ClassMoments.from_features(features, labels, classes)


def updates(features: torch.Tensor, labels: torch.Tensor, classes: int) -> None:
    moments = ClassMoments.zero(classes, features.shape[1])
    for start in range(0, len(features), 8192):
        moments = moments.update(features[start : start + 8192], labels[start : start + 8192])


def quick(features: torch.Tensor, labels: torch.Tensor, classes: int) -> None:
    quick_collapse(features, labels, classes)


def everything(features: torch.Tensor, labels: torch.Tensor, classes: int) -> None:
    """Moments, all of section 2, H-score twice, LogME, ridge over 20 penalties × 5 folds, LDA, nearest center."""
    folds = Folds.of(features, labels, classes, 5)
    moments = folds.total
    collapse_metrics(moments)
    h_score(moments), h_score_shrunk(moments), logme(moments)
    cross_validated_ridge(folds, PENALTIES)
    lda(moments, (1e-2,)), nearest_center(moments)


def notebook_nc1(features: torch.Tensor, labels: torch.Tensor, classes: int) -> None:
    """NC1 as notebooks write it: class by class, and a truncated SVD of the d × d between-class covariance."""
    rows, which = features.numpy(), labels.numpy()
    center, dimension = rows.mean(0), rows.shape[1]
    within, between = np.zeros((dimension, dimension), np.float32), np.zeros((dimension, dimension), np.float32)
    for label in range(classes):
        members = rows[which == label]
        mean = members.mean(0)
        within += (members - mean).T @ (members - mean) / len(rows)
        between += np.outer(mean - center, mean - center) / classes
    vectors, values, _ = svds(between, k=min(classes - 1, dimension - 1))
    np.trace(within @ (vectors / values) @ vectors.T)


def published_logme(features: torch.Tensor, labels: torch.Tensor, classes: int) -> None:
    """LogME as published: SVD of the features, then the fixed point class by class (at most 11 rounds each)."""
    rows = features.numpy().astype(np.float64)
    left, singular, _ = np.linalg.svd(rows, full_matrices=False)
    values = singular**2
    for label in range(classes):
        target = (labels.numpy() == label).astype(np.float64)
        inner = (left.T @ target) ** 2
        outside = target @ target - inner.sum()
        alpha = beta = 1.0
        for _ in range(11):
            ratio = alpha / beta
            gamma = (values / (values + ratio)).sum()
            size = (values * inner / (ratio + values) ** 2).sum()
            misfit = (inner / (1 + values / ratio) ** 2).sum() + outside
            alpha, beta = gamma / (size + 1e-5), (len(rows) - gamma) / (misfit + 1e-5)
            if abs(alpha / beta - ratio) / ratio <= 1e-3:
                break


def torchmetrics_style(features: torch.Tensor, labels: torch.Tensor, classes: int) -> None:
    """Σ h hᵀ, Σ h by class and counts summed batch by batch (256) in float32: four sums, no centering."""
    total, sums = torch.zeros(features.shape[1], features.shape[1]), torch.zeros(classes, features.shape[1])
    counts = torch.zeros(classes)
    for start in range(0, len(features), 256):
        rows, which = features[start : start + 256], labels[start : start + 256]
        total += rows.T @ rows
        sums.index_add_(0, which, rows)
        counts += torch.bincount(which, minlength=classes)


LINES: list[tuple[str, str, Callable[[torch.Tensor, torch.Tensor, int], None], set[int]]] = [
    ("moments, all features at once", "≤ 1.3", moments_alone, {0, 1, 2, 3}),
    ("moments, updates of 8192", "≤ 1.3", updates, {0, 1, 2, 3}),
    ("NC1 + CDNV + NC2 alone", "< 1 at K 100", quick, {0, 1, 2, 3}),
    ("everything from moments", "≤ 4; 5 at K 1000", everything, {0, 1, 2, 3}),
    ("uncentered float32 sums, batches of 256", "", torchmetrics_style, {0, 1, 2, 3}),
    ("NC1 as in notebooks (svds)", "", notebook_nc1, {0, 1, 2}),
    ("LogME as published", "", published_logme, {0, 1, 2}),
]
PEERS = (torchmetrics_style, notebook_nc1, published_logme)


def ratio(function: Callable[[], object], floor: Callable[[], object], rounds: int = 3) -> tuple[float, float]:
    """Seconds of both, each the best of its rounds, taken in turn."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for place, timed in enumerate((floor, function)):
            gc.collect()
            started = time.perf_counter()
            timed()
            best[place] = min(best[place], time.perf_counter() - started)
    return best[1], best[0]


def resident_peak(forget: bool = True) -> int:
    """Most kilobytes that this process held since its peak was last forgotten (Linux): now, that is, if it is now."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def grown(count: int, dimension: int, classes: int) -> float:
    """Megabytes by which a fresh process grows while it does everything, beyond its features."""
    code = (
        "import sys; sys.path.insert(0, 'benchmarks'); import measure\n"
        "small = measure.sample(3000, 64, 3); measure.everything(*small, 3)\n"
        f"given = measure.sample({count}, {dimension}, {classes})\n"
        "before = measure.resident_peak()\n"
        f"measure.everything(*given, {classes})\n"
        "print((measure.resident_peak(forget=False) - before) / 1024)"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    threads = int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads()))
    torch.set_num_threads(threads)
    print("# Measures from moments, in products XᵀX of the features (float32 GEMM)\n")
    print(f"{platform.processor() or platform.machine()}, {threads} threads, torch {torch.__version__}, ", end="")
    print(f"NumPy {np.__version__}, Python {platform.python_version()}; `python benchmarks/measure.py`.\n")
    heads = [f"{n // 1000}k×{d}, K {k}" for n, d, k in SIZES]
    table = {name: [name, target] for name, target, *_ in LINES}
    floors = []
    for place, size in enumerate(SIZES):
        features, labels = sample(*size)
        floor = float("inf")
        for name, _, function, sizes in LINES:
            if place not in sizes or ("ours" in sys.argv and function in PEERS):
                table[name].append("–")
                continue
            rounds = 3 if name.startswith(("moments", "NC1 +", "everything")) else 1
            given = (features, labels, size[2])
            taken, product = ratio(partial(function, *given), partial(torch.mm, features.T, features), rounds)
            floor = min(floor, product)
            table[name].append(f"{taken / product:.2f} ({taken:.2f} s)")
            print(f"{heads[place]} {name}: {taken / product:.2f}", file=sys.stderr)
        floors.append(f"1 ({floor:.3f} s)")
    print("| what | target | " + " | ".join(heads) + " |")
    print("|---" * (len(SIZES) + 2) + "|")
    print("| float32 XᵀX | | " + " | ".join(floors) + " |")
    for row in table.values():
        print("| " + " | ".join(row) + " |")
    n, d, k = SIZES[2]
    allowed = 4 * d * d * 8 / 2**20 + 64
    print(f"\nMemory above the features, everything, {heads[2]}: {grown(n, d, k):.0f} MB (target {allowed:.0f} MB).")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
