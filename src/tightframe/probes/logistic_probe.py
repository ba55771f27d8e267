"""Logistic regression as a probe: its penalty and its honest accuracy from cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tightframe.metrics.folds import Folds
from tightframe.probes.calibration import calibration_error
from tightframe.probes.logistic import logistic_path
from tightframe.probes.results import ProbeResult, judged


class LogisticProbe(NamedTuple):
    """A cross-validated logistic regression: what came of it, and how far its held-out probabilities can be trusted."""

    result: ProbeResult
    log_loss: float
    calibration_error: float


STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Where logistic regression on standardized features of models is at its best; ``logistic_path`` takes any."""


def cross_validated_logistic(folds: Folds, strengths: Sequence[float] = STRENGTHS) -> LogisticProbe:
    """Logistic regression at the strength (scikit-learn's ``C``) of least held-out log-loss, in nats a sample.

    A class that a fold's training samples lack is given a chance of 1e-12 there.
    """
    classes = folds.total.classes
    logits = torch.empty(len(strengths), len(folds.labels), classes, dtype=torch.float64)
    everything = torch.ones(len(folds.labels), dtype=torch.bool)
    for rows in folds.held:
        seen = everything.clone()
        seen[rows] = False
        path = logistic_path(folds.features[seen], folds.labels[seen], classes, tuple(strengths))
        for at, head in enumerate(path.heads):
            logits[at, rows] = head.logits(folds.features[rows]).cpu()
    losses = torch.stack([_loss(said, folds.labels.cpu()) for said in logits])
    best = int(losses.argmin())
    head = logistic_path(folds.features, folds.labels, classes, (strengths[best],)).heads[0]
    result = judged(folds, logits[best].argmax(1).to(folds.labels.device), head, strengths[best])
    return LogisticProbe(result, float(losses[best]), calibration_error(logits[best].softmax(1), folds.labels.cpu()))


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.nll_loss(logits.log_softmax(1).clamp(min=-27.6), labels)
