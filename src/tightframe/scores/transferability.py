"""Every measure that the evidence at hand allows, from one call."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch

from tightframe.errors import MeasureError
from tightframe.features.moments import ClassMoments
from tightframe.features.samples import as_tensor
from tightframe.metrics import collapse  # noqa: F401 - importing it is what registers its measures
from tightframe.metrics.collapse import Head, check_measurable
from tightframe.metrics.registry import MEASURES
from tightframe.scores import fisher, from_features, from_moments, from_source  # noqa: F401 - and theirs

SLOW = frozenset({"nleep"})
"""Left out unless asked for: a Gaussian mixture of five components a class takes minutes, the rest seconds."""


def transferability(
    given: Any,
    labels: Any = None,
    *,
    classes: int | None = None,
    head: Head | None = None,
    source: Any = None,
    only: Collection[str] | None = None,
) -> dict[str, float]:
    """Scores by name, higher is better, for features or for their moments alone.

    Args:
        given: ``ClassMoments``, or features of shape (n, d).
        labels: integers (n,), with features.
        classes: K; the largest label and one more unless given.
        head: a linear classifier trained on these classes (K, d), for what needs one.
        source: probabilities (n, K_source) that the model's own head gives, for LEEP and NCE.
        only: names of measures to compute, collapse metrics included. All scores but the slow ones (``nleep``)
            unless given; then one that these features have no meaning for (PARC's in one dimension) is left out.

    Returns:
        A value for each measure that the evidence allows. With moments alone: ``h_score``, ``h_score_shrunk``,
        ``logme`` and ``gbc``. ``docs/measures.md`` lists all of them.

    Raises:
        MeasureError: an unknown name, one that needs what was not given, or features that don't fit their labels.
    """
    evidence = _evidence(given, labels, classes, head, source)
    only = [only] if isinstance(only, str) else only
    for name in only or ():
        if name not in MEASURES:
            raise MeasureError(f'no measure "{name}"; choose of {", ".join(MEASURES)}')
        missing = [need for need in MEASURES[name].needs if evidence.get(need) is None]
        if missing:
            raise MeasureError(f"{name} needs {', '.join(missing)} as well; give them too")
    found = dict(_all(evidence)) if only is None else {name: MEASURES[name].of(evidence) for name in only}
    return {name: value for name, value in found.items() if value is not None}


def _all(evidence: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Every score; what features are refused for is said, and what only one score refuses them for leaves it out."""
    check_measurable(evidence["moments"])
    for measure in MEASURES.values():
        if measure.kind != "score" or measure.name in SLOW:
            continue
        try:
            yield measure.name, measure.of(evidence)
        except MeasureError:
            if "features" not in measure.needs:
                raise


def _evidence(given: Any, labels: Any, classes: int | None, head: Head | None, source: Any) -> dict[str, Any]:
    rest = {"head": head, "source": None if source is None else as_tensor(source)}
    if isinstance(given, ClassMoments):
        known = None if labels is None else as_tensor(labels)
        return {"moments": given, "labels": known, "classes": given.classes, **rest}
    if labels is None:
        raise MeasureError("features need their labels: transferability(features, labels)")
    features, labels = as_tensor(given), as_tensor(labels)
    if classes is None:
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise MeasureError(f"labels must be integers from 0 on, not {labels.dtype}")
        classes = int(labels.max()) + 1 if labels.numel() else 1  # moments say what is wrong with none
    moments = ClassMoments.from_features(features, labels, classes)
    return {"moments": moments, "features": features, "labels": labels, "classes": classes, **rest}
