"""How far NC1, CDNV and VCI of few samples are from the population's: as they are, with an unbiased Gram, corrected.

python benchmarks/few_samples.py > benchmarks/results/few_samples.md

Populations are Gaussian with known values. Real features are cut down to a few images a class; what they should read
is not known, so they stand beside the values of all images. For these, set TIGHTFRAME_SHARED to a folder with
``data`` and ``zoo``.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.distance import pdist

import tightframe
from tightframe.features.moments import ClassMoments
from tightframe.metrics.collapse import cdnv, nc1, vci
from tightframe.metrics.correction import Estimate, corrected

POPULATIONS = ((512, 10, 0.5, 5), (1024, 10, 0.5, 5), (512, 20, 0.5, 10), (2048, 100, 0.2, 20))
DRAWS = 20
REAL = {
    "dtd10": ("mobilenetv2_100", "mobilenetv1_050"),
    "cifar100": ("resnet56_cifar10", "mobilenetv1_025"),
}
FEW = (5, 10, 20)
METRICS = ("NC1", "CDNV", "VCI")
Values = tuple[float, float, float]


def truth(means: np.ndarray, variances: np.ndarray) -> Values:
    """NC1, CDNV and VCI of classes with these means (K, d) and diagonal covariance (d,), from their definitions."""
    classes = len(means)
    _, singular, right = np.linalg.svd((means - means.mean(0)) / classes**0.5, full_matrices=False)
    right, singular = right[: classes - 1], singular[: classes - 1]
    within = (right**2 * variances).sum(1)
    pairs = pdist(means, "sqeuclidean")
    factor = right * singular[:, None]
    inside = factor / variances @ factor.T
    return (
        float((within / singular**2).sum()) / classes,
        float((variances.sum() / pairs).mean()),
        float(np.trace(np.linalg.inv(np.eye(classes - 1) + inside))) / (classes - 1),
    )


def draw(dimension: int, classes: int, signal: float, each: int, seed: int) -> tuple[ClassMoments, Values]:
    rng = np.random.default_rng(seed)
    scales = np.exp(0.5 * rng.standard_normal(dimension))
    means = signal * rng.standard_normal((classes, dimension))
    labels = np.repeat(np.arange(classes), each)
    features = means[labels] + scales * rng.standard_normal((len(labels), dimension))
    return ClassMoments.from_features(features, labels, classes), truth(means, scales**2)


def plugin(moments: ClassMoments) -> Values:
    return nc1(moments), cdnv(moments), vci(moments)


def unbiased(moments: ClassMoments) -> Values:
    """Noise taken out of Gram matrix and distances, pooled covariance over N − K; nothing else. Balanced classes."""
    classes, each = moments.classes, int(moments.counts[0])
    covariance = moments.scatter / (moments.samples - classes)
    trace = float(covariance.trace())
    means = moments.means - moments.means.mean(0)
    centering = torch.eye(classes, dtype=torch.float64) - 1 / classes
    gram = means @ means.T - trace / each * centering
    spread = means @ covariance @ means.T
    inverse = torch.linalg.pinv(gram, hermitian=True)
    apart = torch.pdist(moments.means).square() - 2 * trace / each
    between = means.T @ torch.linalg.inv(gram + torch.ones_like(gram)) @ gram @ means / classes
    explained = torch.linalg.pinv(covariance + between, hermitian=True) @ between
    return (
        float((inverse @ inverse * spread).sum()),
        float((trace / apart).mean()),
        1 - float(explained.trace()) / (classes - 1),
    )


def ours(moments: ClassMoments) -> Values:
    result = corrected(moments)
    return known(result.nc1), known(result.cdnv), known(result.vci)


def known(estimate: Estimate) -> float:
    return float("nan") if estimate.value is None else estimate.value


WAYS: dict[str, Callable[[ClassMoments], Values]] = {"plug-in": plugin, "unbiased Gram": unbiased, "corrected": ours}


def populations() -> None:
    print("## Known populations\n")
    print(
        f"Median over {DRAWS} draws of the relative error, in %; in brackets, draws in which it was not identifiable.\n"
    )
    print("| d, K, signal, n a class | " + " | ".join(f"{m} {way}" for m in METRICS for way in WAYS) + " |")
    print("|---" * (1 + len(METRICS) * len(WAYS)) + "|")
    for population in POPULATIONS:
        errors = []
        for seed in range(DRAWS):
            moments, true = draw(*population, seed)
            errors.append([np.abs(np.divide(way(moments), true) - 1) for way in WAYS.values()])
        medians = 100 * np.nanmedian(np.array(errors), axis=0)
        untold = np.isnan(np.array(errors)).sum(0)
        cells = [
            f"{medians[way, metric]:.0f}{bracketed(untold[way, metric])}"
            for metric in range(len(METRICS))
            for way in range(len(WAYS))
        ]
        print(f"| {', '.join(map(str, population))} | " + " | ".join(cells) + " |", flush=True)


def bracketed(count: int) -> str:
    return f" ({count})" if count else ""


def real(shared: Path) -> None:
    print("\n## Real features\n")
    print("Plug-in → corrected, mean of three draws; ≥: not identifiable in at least one of them, mean lower bound.\n")
    print("| images, model | n a class | NC1 | CDNV | VCI |\n|---|---|---|---|---|")
    for images, models in REAL.items():
        train = tightframe.load_images(str(shared / "data" / images)).train
        for model in models:
            backbone = tightframe.load_backbone(f"{shared / 'zoo' / 'zoo.py'}:build:{model}")
            features = tightframe.Workspace().features(backbone, train, ["penultimate"])
            rows(f"{images}, {model}", np.asarray(features["penultimate"], float), np.asarray(features.labels))


def rows(name: str, features: np.ndarray, labels: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for each in (*FEW, len(labels)):
        found = []
        for _ in range(3 if each < len(labels) else 1):
            order = rng.permutation(len(labels))
            chosen = np.concatenate([order[labels[order] == k][:each] for k in np.unique(labels)])
            moments = ClassMoments.from_features(features[chosen], labels[chosen], int(labels.max()) + 1)
            found.append((plugin(moments), corrected(moments)))
        cells = [
            f"{np.mean([plain[i] for plain, _ in found]):.3g} → {shown([(c.nc1, c.cdnv, c.vci)[i] for _, c in found])}"
            for i in range(len(METRICS))
        ]
        print(f"| {name} | {each if each < len(labels) else 'all'} | " + " | ".join(cells) + " |", flush=True)


def shown(estimates: list[Estimate]) -> str:
    known = [estimate.value for estimate in estimates if estimate.value is not None]
    if len(known) == len(estimates):
        return f"{np.mean(known):.3g}"
    return f"≥ {np.mean([estimate.lower for estimate in estimates]):.3g}"


def main() -> None:
    torch.set_num_threads(1)
    print("# NC1, CDNV and VCI from few samples a class\n")
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}, NumPy {np.__version__}"
    print(f"`python benchmarks/few_samples.py` on {platform.machine()}, one thread; {versions}.\n")
    populations()
    shared = os.environ.get("TIGHTFRAME_SHARED")
    if shared and (Path(shared) / "zoo" / "zoo.py").is_file():
        real(Path(shared).resolve())
    else:
        print("\nReal features: skipped, TIGHTFRAME_SHARED is not set to a folder with data/ and zoo/.")


if __name__ == "__main__":
    main()
