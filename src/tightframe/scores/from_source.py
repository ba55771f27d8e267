"""Transferability scores read off the probabilities that the model's own head gives. Higher is better.

They ask how well the classes the model was trained on foretell yours. Probabilities come as ``source`` (n, Z), one
row an image and one column a class of the head; what matters is that rows sum to 1, not what the classes mean.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int64, Num
from torch import Tensor

from tightframe.errors import MeasureError
from tightframe.features.samples import as_tensor, check_samples
from tightframe.metrics.registry import measure

CHUNK = 4096
SUM_TOLERANCE = 1e-3
"""How far the sum of a row may be from 1: half precision rounds each of a thousand probabilities."""


@measure("score", reference="Nguyen et al., ICML 2020 (arXiv 2002.12462)")
def leep(source: Any, labels: Any, classes: int) -> float:
    """How well the model's own class probabilities foretell your labels, as a mean log likelihood (0 at best).

    Mean over images of log Σ_z P(y|z) θ_z(x), with θ(x) the probabilities of image x and P(y|z) the share of class
    y in the probability that all images together give z. Between −H(Y), no better than the shares of the classes,
    and 0. Code published with later papers (SFDA, NCTI) leaves out the log; the paper's form is ours.

    Args:
        source: probabilities, shape (n, Z).
        labels: integers 0 … classes − 1, shape (n,). A class without samples changes nothing, nor does one with one.
        classes: K.

    Raises:
        MeasureError: rows are no probabilities, a value is NaN, or labels do not fit.
    """
    source, labels = _checked(source, labels, classes)
    joint = torch.zeros(classes, source.shape[1], dtype=torch.float64, device=source.device)
    for rows, held in zip(source.split(CHUNK), labels.split(CHUNK), strict=True):
        joint.index_add_(0, held, rows.double())
    given = joint / joint.sum(0).clamp(min=torch.finfo(torch.float64).tiny)  # P(y|z); 0 for a z that never occurs
    total = 0.0
    for rows, held in zip(source.split(CHUNK), labels.split(CHUNK), strict=True):
        total += float((given[held] * rows.double()).sum(1).log().sum())
    return total / len(labels)


@measure("score", reference="Tran, Nguyen, Hassner, ICCV 2019 (arXiv 1908.08142)")
def nce(source: Any, labels: Any, classes: int) -> float:
    """How far the model's own top class settles your label: minus the entropy that remains, in nats (0 at best).

    −H(Y|Z) = Σ_yz P(y, z) log P(y|z) with Z the class of largest probability (the first of equals). Published code adds
    1e-20 (tllib) or 1e-5 (PARC) to probabilities against log 0; here 0 log 0 is 0.

    Args and errors are those of ``leep``. A class without samples changes nothing, nor does one with one sample.
    """
    source, labels = _checked(source, labels, classes)
    top = source.argmax(1)
    cells = torch.bincount(labels * source.shape[1] + top, minlength=classes * source.shape[1])
    joint = cells.view(classes, -1).double() / len(labels)
    given = joint / joint.sum(0).clamp(min=torch.finfo(torch.float64).tiny)
    return float(torch.special.xlogy(joint, given).sum())


def _checked(source: Any, labels: Any, classes: int) -> tuple[Num[Tensor, "n z"], Int64[Tensor, " n"]]:
    """Both as tensors on one device; raises unless rows are probabilities."""
    source, labels = as_tensor(source), as_tensor(labels)
    if source.ndim != 2 or 0 in source.shape:
        raise MeasureError(f"source probabilities have shape {tuple(source.shape)}; expected (samples, source classes)")
    broken = ~torch.isfinite(source).all(1)
    if broken.any():
        first = int(broken.nonzero()[0])
        raise MeasureError(
            f"{int(broken.sum())} of {len(source)} rows of source probabilities hold NaN or infinity (first: row "
            f"{first}); the model overflowed there: try precision float32, or leave those images out"
        )
    _check_probabilities(source)
    check_samples(source, labels, classes)
    return source, labels.long().to(source.device)


def _check_probabilities(source: Tensor) -> None:
    lowest = float(source.min())
    sums = torch.cat([rows.double().sum(1) for rows in source.split(CHUNK)])
    farthest = int((sums - 1).abs().argmax())
    if lowest < 0 or abs(float(sums[farthest]) - 1) > SUM_TOLERANCE:
        raise MeasureError(
            f"rows of source must be probabilities: the smallest value is {lowest:.4g} and row {farthest} sums to "
            f"{float(sums[farthest]):.4g}, not 1. Pass logits through torch.softmax(logits, dim=1) first; for "
            "a head of independent sigmoids divide each row by its sum"
        )
