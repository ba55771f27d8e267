"""Which of several classifiers to use: one rule for methods, trained or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tightframe.decide.evidence import Evidence
from tightframe.metrics.intervals import Interval


class Choice(NamedTuple):
    """The classifier chosen, by name, and why in words."""

    name: str
    why: str


def choose(evidence: Mapping[str, Evidence], first: str) -> Choice:
    """The classifier to use of those that ``evidence`` was collected of, on the same images and folds.

    ``first`` is used unless another loses less, image by image, beyond doubt: where the 95 % interval of the mean
    paired difference of log loss lies above zero. Of several such, the one with the least log loss is used.
    """
    gains = {name: one.gain_over(evidence[first]) for name, one in evidence.items() if name != first}
    better = {name: gain for name, gain in gains.items() if gain.low > 0}
    if better:
        name = min(better, key=lambda name: evidence[name].log_loss)
        return Choice(name, f"{name} is used: on held-out images its log loss is {told(gains[name])} than {first}'s")
    if not gains:
        return Choice(first, f"{first} is used")
    nearest = max(gains, key=lambda name: gains[name].value)
    if gains[nearest].high < 0:
        return Choice(first, f"{first} is used: on held-out images {nearest}'s log loss is {told(gains[nearest])}")
    doubt = f"on held-out images {nearest} is not better beyond doubt: its log loss is {told(gains[nearest])}"
    return Choice(first, f"{first} is used: {doubt}")


def told(gain: Interval) -> str:
    """Such as "lower by 0.12 (95 % interval 0.05 to 0.19)"."""
    value, low, high = (gain.value, gain.low, gain.high) if gain.value >= 0 else (-gain.value, -gain.high, -gain.low)
    return f"{'lower' if gain.value >= 0 else 'higher'} by {value:.2g} (95 % interval {low:.2g} to {high:.2g})"
