"""Classes that are too small or too unequal, and images that are unlike all others."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from tightframe.checks.finding import Finding

UNEQUAL = 10.0
"""Largest by smallest class from which sizes are called unequal."""
NEIGHBORS = 5
FAR = 5.0
"""Robust standard deviations (of the logarithm of distances) from which an image is far from all others."""
CHUNK = 1024


def size_findings(labels: np.ndarray, classes: list[str] | tuple[str, ...]) -> list[Finding]:
    """What sizes of classes (of training images ``labels``) say."""
    counts = np.bincount(labels, minlength=len(classes))
    found = [
        Finding("empty class", "it has no training image that can be read", label=classes[k])
        for k in np.flatnonzero(counts == 0)
    ]
    found += [
        Finding("class of one image", "it has a single training image", int(np.flatnonzero(labels == k)[0]))
        for k in np.flatnonzero(counts == 1)
    ]
    present = counts[counts > 0]
    if len(present) and present.max() >= UNEQUAL * present.min():
        most, least = int(counts.argmax()), int(np.where(counts > 0, counts, counts.max() + 1).argmin())
        words = f"{counts[most]:,} training images of {classes[most]}, {counts[least]:,} of {classes[least]}"
        found.append(Finding("imbalance", words, label=classes[least]))
    return found


def outliers(features: np.ndarray) -> list[tuple[int, float]]:
    """Images far from all others in ``features`` (n, d), and how far in robust standard deviations, farthest first.

    Far is by the mean angle to the nearest neighbors of any class (Sun et al., ICML 2022).
    """
    if len(features) < 4 * NEIGHBORS:
        return []
    values = torch.from_numpy(np.asarray(features, dtype=np.float32))
    values = functional.normalize(values - values.mean(0), dim=1)
    distances = torch.cat([_distance(chunk, values) for chunk in values.split(CHUNK)])
    spread = distances.clamp(min=1e-6).log()
    middle = spread.median()
    scale = 1.4826 * (spread - middle).abs().median()
    if float(scale) <= 0:
        return []
    far = ((spread - middle) / scale).tolist()
    return sorted(((index, value) for index, value in enumerate(far) if value >= FAR), key=lambda pair: -pair[1])


def _distance(chunk: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    near = (chunk @ values.T).topk(NEIGHBORS + 1, 1).values[:, 1:]  # the nearest is the image itself
    return 1 - near.mean(1)
