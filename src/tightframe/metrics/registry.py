"""The one door through which every metric, score and probe comes in: its name, what it needs, how it is read.

A measure is a plain function. Its parameters without a default say what it needs, by name:

- ``moments``: ``ClassMoments`` of the features;
- ``features``: (n, d), with ``labels``: integers (n,) in 0 … ``classes`` − 1;
- ``head``: the linear classifier trained on these classes;
- ``source``: probabilities (n, K_source) that the model's own head gives.

The decorator only notes the function down, so it can still be called by itself. Tables, the page that lists all
measures and the conformance tests are made from these notes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Kind = Literal["collapse", "score", "probe"]
Invariance = Literal["rotation", "scale", "offset"]
Function = TypeVar("Function", bound=Callable[..., float])
EVIDENCE = ("moments", "features", "labels", "classes", "head", "source")


@dataclass(frozen=True)
class Measure:
    """One registered measure.

    Attributes:
        name: of the function.
        kind: ``"collapse"`` (how collapsed), ``"score"`` (how transferable), ``"probe"`` (accuracy of a classifier).
        compute: the function.
        needs: its parameters without a default, of ``EVIDENCE``.
        higher_is_better: which way good features move it.
        unchanged_by: of rotation, scale and offset, those under which the value must not change.
        reference: where it comes from.
        meaning: one line for a reader: the first of the function's docstring.
    """

    name: str
    kind: Kind
    compute: Callable[..., float]
    needs: tuple[str, ...]
    higher_is_better: bool
    unchanged_by: frozenset[Invariance]
    reference: str
    meaning: str

    def of(self, evidence: Mapping[str, Any]) -> float | None:
        """The value on the evidence at hand; ``None`` where something it needs is not there."""
        if any(evidence.get(need) is None for need in self.needs):
            return None
        return self.compute(**{need: evidence[need] for need in self.needs})


MEASURES: dict[str, Measure] = {}
"""All measures by name, in the order in which they were registered."""


def measure(
    kind: Kind, *, better: Literal["lower", "higher"], unchanged_by: set[Invariance], reference: str
) -> Callable[[Function], Function]:
    """Register the function below under its own name."""

    def register(function: Function) -> Function:
        needs = tuple(
            name
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.default is inspect.Parameter.empty
        )
        unknown = set(needs) - set(EVIDENCE)
        if unknown:
            raise TypeError(f"{function.__name__} asks for {', '.join(sorted(unknown))}; known are {EVIDENCE}")
        meaning = (inspect.getdoc(function) or "").partition("\n")[0]
        MEASURES[function.__name__] = Measure(
            function.__name__,
            kind,
            function,
            needs,
            better == "higher",
            frozenset(unchanged_by),
            reference,
            meaning,
        )
        return function

    return register
