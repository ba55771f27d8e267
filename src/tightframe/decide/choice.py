"""Which of several classifiers to use: one rule for methods, trained or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tightframe.decide.evidence import Evidence
from tightframe.probes.results import standard_error

CLEARLY = 2.0
"""Standard errors by which the mean difference has to speak for a rival."""


class Choice(NamedTuple):
    """The classifier chosen, by name, and the reason in words, if it had rivals."""

    name: str
    reason: str = ""

    @property
    def why(self) -> str:
        """The choice in a sentence."""
        return f"{self.name} is used" + (f": {self.reason}" if self.reason else "")


class Gain(NamedTuple):
    """By how much less a classifier loses than another, in nats an image, and the standard error of that."""

    value: float
    error: float

    @classmethod
    def of(cls, one: Evidence, other: Evidence) -> Gain:
        """Of ``one`` over ``other``."""
        gains, groups = one.gains_over(other)
        return cls(float(gains.mean()), standard_error(gains, groups)[0])

    def __str__(self) -> str:
        """Such as "lower by 0.12 (standard error 0.05)"."""
        return f"{'lower' if self.value >= 0 else 'higher'} by {abs(self.value):.2g} (standard error {self.error:.2g})"


def choose(evidence: Mapping[str, Evidence], first: str, errors: float = CLEARLY) -> Choice:
    """The classifier to use of those that ``evidence`` was collected of, on the same images and folds.

    ``first`` is used unless the mean paired difference of log loss speaks for another by more than so many standard
    ``errors``. Of several such, the one with the least log loss is used. One error is enough for a rival that is
    seldom worse, such as a mean with ``first`` in it (Breiman et al. 1984 choose the size of trees by one).
    """
    gains = {name: Gain.of(one, evidence[first]) for name, one in evidence.items() if name != first}
    better = [name for name, gain in gains.items() if gain.value > errors * gain.error]
    if better:
        name = min(better, key=lambda name: evidence[name].log_loss)
        return Choice(name, f"on held-out images its log loss is {gains[name]} than {first}'s")
    if not gains:
        return Choice(first)
    nearest = max(gains, key=lambda name: gains[name].value)
    if gains[nearest].value < -errors * gains[nearest].error:
        return Choice(first, f"on held-out images the log loss of {nearest} is {gains[nearest]}")
    return Choice(first, f"on held-out images {nearest} is not clearly better: its log loss is {gains[nearest]}")


def beside(plain: str, reading: Evidence, name: str, trained: Evidence) -> str:
    """What was trained by the method ``name``, which a user asked for, beside what ``plain`` gives without training."""
    gain = Gain.of(reading, trained)
    told = f"the log loss of {plain} is {gain}, its accuracy {100 * reading.correct.mean():.1f} % against "
    told += f"{100 * trained.correct.mean():.1f} %"
    if gain.value > CLEARLY * gain.error:
        return (
            f"{plain}, which trains nothing, does better than {name} on held-out images: {told}. --method {plain} "
            "uses it; --method auto uses it or, where that is better, its mean with what is trained"
        )
    if gain.value < -CLEARLY * gain.error:
        return f"{name} does better on held-out images than {plain}, which trains nothing: {told}"
    return f"held-out images can't tell {name} from {plain}, which trains nothing: {told}"
