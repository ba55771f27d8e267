"""Neural collapse followed through anybody's training loop, as a ``torchmetrics.Metric``.

collapse = NeuralCollapse(classes=10, dimension=512, head=model.fc)
for images, labels in loader:
    features = model.pooled(images)  # (n, 512), what model.fc is given
    collapse.update(features, labels)
values = collapse.compute()  # over all processes: nc1, cdnv, nc2_etf, nc3, …
collapse.reset()

Its state is ``ClassMoments`` in one row of float64 numbers. Rows of several processes, or of metrics that are merged,
are put below each other as torchmetrics does, and joined when they are read.
"""

from __future__ import annotations

from functools import reduce
from math import prod
from typing import Any, get_args

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from tightframe.errors import MeasureError, TightframeError
from tightframe.features.moments import FIELDS, ClassMoments, Weighting
from tightframe.features.samples import as_tensor, check_samples
from tightframe.metrics.collapse import Head, check_measurable
from tightframe.metrics.registry import measures
from tightframe.metrics.summary import collapse_metrics


class TorchmetricsMissing(TightframeError, ModuleNotFoundError):
    """``NeuralCollapse`` was asked for and its base class is not there."""


try:
    from torchmetrics import Metric
except ImportError as error:
    raise TorchmetricsMissing(
        f"NeuralCollapse is a torchmetrics.Metric, and torchmetrics can't be imported ({error}): "
        "pip install tightframe[torchmetrics]",
        name="torchmetrics",
    ) from error


class NeuralCollapse(Metric):
    """How collapsed the features seen since the last ``reset`` are: the values of ``collapse_metrics``.

    They come with the accuracy of float64, in whatever precision the features and the training loop are: ``half()``,
    ``set_dtype``, autocast and TF32 leave them alone. ``.to(device)`` moves the state; features are brought to it.
    On devices without float64 (MPS) the state stays on the CPU.

    **Too few samples.** Nothing here stops a training loop. While a class has no sample, or none has two, or once a
    feature was NaN or infinite (``overflowed`` counts such samples), every value is NaN: leaving empty classes out
    would make values of different K look like one curve. ``collapse_metrics(metric.moments)`` says what is missing.
    Labels out of range and shapes that do not fit are mistakes in the loop, and raise ``MeasureError`` at ``update``.

    **Cost.** ``update`` takes the product of a batch with itself and a few passes over d × d numbers. ``compute`` takes
    an eigendecomposition, O(d³): call it once an epoch. Calling the metric itself (``forward``) measures each batch as
    well, at that price; in loops, ``update`` is enough. The state takes 8 (d² + 2 K d) bytes; to synchronize, each
    process gathers those of all.

    **Several processes.** ``compute`` gives on every process the values of all samples together, exactly, however
    unequal the shares. The padding of a ``DistributedSampler`` repeats samples so that shares come out equal; those
    are counted like others. Evaluate with ``drop_last``, or with a sampler that does not pad.

    ``clone`` and ``deepcopy`` follow the same head as the original, unless it was copied along with them (as part of
    a model); a pickle holds a copy. States are not in a ``state_dict`` unless ``persistent(True)`` asks for it.

    Args:
        classes: number of classes, K ≥ 2; labels are 0 … K − 1.
        dimension: values in a feature, d.
        weighting: of classes in Σ_B, ``"class"`` or ``"sample"``.
        head: the linear classifier that is trained on these classes, which adds ``nc3``: its weights are read when
            ``compute`` is called. It is not registered as a submodule: the metric moves and saves no weights of it.
        options: of every ``torchmetrics.Metric``: ``process_group``, ``dist_sync_on_step`` and so on.

    Raises:
        MeasureError: fewer than two classes, no dimension, an unknown weighting, or a head of another shape.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    table: Tensor
    overflowed: Tensor

    def __init__(
        self,
        classes: int,
        dimension: int,
        weighting: Weighting = "class",
        head: nn.Linear | Head | None = None,
        **options: Any,
    ):
        super().__init__(**{"compute_with_cache": False, **options})  # a head's weights change without an update
        check_settings(classes, dimension, weighting, head)
        self.classes, self.dimension, self.weighting = classes, dimension, weighting
        self._followed = _Followed(head)
        self.add_state("table", _row(ClassMoments.zero(classes, dimension)), dist_reduce_fx="cat")
        self.add_state("overflowed", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, features: Any, labels: Any) -> None:
        """Take in one batch: features (n, d), labels (n,); tensors of any float dtype and device, or arrays.

        Raises:
            MeasureError: a shape does not fit, or a label is no integer in 0 … K − 1.
        """
        features, labels = as_tensor(features).detach(), as_tensor(labels)
        stand_in = torch.zeros(()).expand(features.shape)  # NaN is counted below, and is no error here
        check_samples(stand_in, labels, self.classes, self.dimension)
        finite = torch.isfinite(features).all(1)
        rows, labels = features[finite].to(self.table.device, torch.float64), labels.to(finite.device)[finite]
        self.overflowed = self.overflowed + (~finite).sum().to(self.overflowed.device)
        self.table = _row(self.moments.update(rows, labels))

    def compute(self) -> dict[str, Tensor]:
        """Each metric by name, as float64 tensors of shape (): see ``collapse_metrics``; NaN as the class describes."""
        moments, head = self.moments, self._followed.weights(self.table.device)
        known = ["moments"] if head is None else ["moments", "head"]
        values = {measure.name: torch.nan for measure in measures("collapse", known)}
        if _measurable(moments) and not self.overflowed:
            values = collapse_metrics(moments, head, weighting=self.weighting).by_name
        return {name: torch.tensor(value, dtype=torch.float64).to(self.table.device) for name, value in values.items()}

    @property
    def moments(self) -> ClassMoments:
        """Moments of what was seen, without samples that hold NaN or infinity; shares no memory with the metric."""
        self._check(self.table)
        return reduce(ClassMoments.merge, map(_moments, self.table.flatten(0, -2)))

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Take in all that another ``NeuralCollapse``, or its ``metric_state``, has seen; it is left as it is.

        Raises:
            MeasureError: it has other classes or another dimension, or is something else.
        """
        state: dict[str, Any] = incoming_state.metric_state if isinstance(incoming_state, Metric) else incoming_state
        if "table" not in state:
            raise MeasureError("no state of a NeuralCollapse to merge with: give another one, or its metric_state")
        self._check(state["table"])
        self._reduce_states(state)
        self._update_count += 1

    def _check(self, table: Tensor) -> None:
        classes, dimension = table.flatten(0, -2)[0, :2].long().tolist()
        if (classes, dimension) != (self.classes, self.dimension):
            raise MeasureError(
                f"this metric has {self.classes} classes and {self.dimension} values, the state given to it "
                f"{classes} and {dimension}: make both with the same classes and dimension"
            )

    def _apply(self, fn: Any, exclude_state: Any = "") -> NeuralCollapse:
        """Move states as ``fn`` would and keep their dtype: less than float64 loses the spread that collapse leaves."""

        def moved(tensor: Tensor) -> Tensor:
            try:
                return tensor.to(fn(tensor).device)
            except TypeError:  # what MPS makes of float64
                return tensor

        super()._apply(moved, exclude_state)
        return self


class _Followed:
    """A head that copies of the metric share, so that ``clone`` reads weights that are still trained."""

    def __init__(self, head: nn.Linear | Head | None):
        self.head = head

    def __deepcopy__(self, memo: dict[int, Any]) -> _Followed:
        return _Followed(memo.get(id(self.head), self.head))

    def weights(self, device: torch.device) -> Head | None:
        """The head as it is now, in float64."""
        if self.head is None:
            return None
        weight = self.head.weight.detach().to(device, torch.float64)
        return Head(weight, weight.new_zeros(len(weight)))  # NC3 does not look at the bias


def _row(moments: ClassMoments) -> Float64[Tensor, "1 s"]:
    """Moments as one row: K, d and then all fields; counts are exact to 2⁵³."""
    shape = torch.tensor(moments.means.shape).to(moments.means)
    return torch.cat([shape, *(getattr(moments, name).double().flatten() for name in FIELDS)])[None]


def _moments(row: Float64[Tensor, " s"]) -> ClassMoments:
    k, d = row[:2].long().tolist()
    shapes = [(k,), (k, d), (d, d), (k, d), (d,), ()]
    parts = row[2:].clone().split([prod(shape) for shape in shapes])
    counts, *rest = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
    return ClassMoments(counts.long(), *rest)


def _measurable(moments: ClassMoments) -> bool:
    try:
        check_measurable(moments)
    except MeasureError:
        return False
    return bool(torch.isfinite(moments.scatter).all())  # squares of float64 features can overflow


def check_settings(classes: int, dimension: int, weighting: str, head: Any) -> None:
    """Raise ``MeasureError`` unless a metric can be made with these."""
    if classes < 2 or dimension < 1:
        raise MeasureError(f"{classes} classes of {dimension} values: collapse compares at least two classes, of one")
    if weighting not in get_args(Weighting):
        raise MeasureError(f'no weighting "{weighting}"; choose "class" or "sample"')
    if not isinstance(head, nn.Linear | Head | None):
        raise MeasureError(f"the head is of type {type(head).__name__}: give its nn.Linear, or a tightframe.Head")
    if head is not None and tuple(head.weight.shape) != (classes, dimension):
        outputs, inputs = head.weight.shape
        raise MeasureError(
            f"the head maps {inputs} values to {outputs} classes, the metric has {dimension} and {classes}: "
            "NC3 needs the head trained on these classes, and the features that it is given"
        )
