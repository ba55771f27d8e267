"""Which of several classifiers to use: one rule for methods, trained or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tightframe.decide.evidence import Estimate, Evidence


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
        return Choice(name, f"{name} is used: held out, it loses {told(gains[name])} less an image than {first}")
    if not gains:
        return Choice(first, f"{first} is used")
    nearest = max(gains, key=lambda name: gains[name].value)
    gain = gains[nearest]
    if gain.high < 0:
        worse = Estimate(-gain.value, -gain.high, -gain.low)
        return Choice(first, f"{first} is used: held out, {nearest} loses {told(worse)} more an image")
    doubt = f"held out, {nearest} does not lose less beyond doubt (the difference is {told(gain)} an image)"
    return Choice(first, f"{first} is used: {doubt}")


def told(gain: Estimate) -> str:
    """Such as "0.12 nats (0.05 to 0.19)"."""
    return f"{gain.value:.2g} nats ({gain.low:.2g} to {gain.high:.2g})"
