"""The one door through which every metric, score and probe comes in: its name, what it needs, how it is read.

A measure is a plain function. Its parameters without a default say what it needs, by name:

- ``moments``: ``ClassMoments`` of the features;
- ``features``: (n, d), with ``labels``: integers (n,) in 0 … ``classes`` − 1;
- ``head``: the linear classifier trained on these classes;
- ``source``: probabilities (n, K_source) that the model's own head gives.

The decorator only notes the function down, so it can still be called by itself. Tables, the page that lists all
measures and the conformance tests are made from these notes, and so is every list of names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

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
    """

    name: str
    kind: Kind
    compute: Callable[..., float]
    needs: tuple[str, ...]
    higher_is_better: bool
    unchanged_by: frozenset[Invariance]
    reference: str

    @property
    def meaning(self) -> str:
        """One line for a reader: the first of the function's docstring."""
        return (inspect.getdoc(self.compute) or "").partition("\n")[0]

    def of(self, evidence: Mapping[str, Any], **options: Any) -> float | None:
        """The value on the evidence at hand; ``None`` where something it needs is missing.

        Of the ``options``, such as ``weighting``, it is given those that it takes.
        """
        if any(evidence.get(need) is None for need in self.needs):
            return None
        taken = inspect.signature(self.compute).parameters
        known = {name: value for name, value in options.items() if name in taken}
        return self.compute(**{need: evidence[need] for need in self.needs}, **known)


MEASURES: dict[str, Measure] = {}
"""All measures by name, in the order in which they were registered."""


def measures(kind: Kind, evidence: Collection[str] = EVIDENCE) -> list[Measure]:
    """The measures of one kind that need nothing but this ``evidence``, in the order of ``MEASURES``."""
    return [one for one in MEASURES.values() if one.kind == kind and set(one.needs) <= set(evidence)]


def measure(kind: Kind, *, reference: str, changed_by: Collection[Invariance] = ()) -> Callable[[Function], Function]:
    """Register the function below under its own name.

    Args:
        kind: collapse metrics are better the lower, scores and probes the higher.
        reference: where it comes from.
        changed_by: of rotation, scale and offset of the features, those that change the value.
    """

    def register(function: Function) -> Function:
        parameters = inspect.signature(function).parameters.values()
        needs = tuple(each.name for each in parameters if each.default is inspect.Parameter.empty)
        if unknown := set(needs) - set(EVIDENCE):
            raise TypeError(f"{function.__name__} asks for {', '.join(sorted(unknown))}; known are {EVIDENCE}")
        unchanged = frozenset(get_args(Invariance)) - set(changed_by)
        name, higher = function.__name__, kind != "collapse"
        MEASURES[name] = Measure(name, kind, function, needs, higher, unchanged, reference)
        return function

    return register
