"""Neural collapse followed through anybody's training loop, as a ``torchmetrics.Metric``.

collapse = NeuralCollapse(classes=10, dimension=512, head=model.fc)
for images, labels in loader:
    features = model.pooled(images)  # (n, 512), what model.fc is given
    collapse.update(features, labels)
values = collapse.compute()  # over all processes: nc1, cdnv, nc2_etf, nc3, …
collapse.reset()

Its state is ``ClassMoments`` in one float64 table, of which the shape says how many classes and values there are, so
that processes exchange one tensor and join what they get without knowing anything else.
"""

from __future__ import annotations

from copy import deepcopy
from functools import reduce
from typing import Any, get_args

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from tightframe.errors import MeasureError, TightframeError
from tightframe.features.moments import CHUNK, ClassMoments, Weighting, as_tensor, check_samples, work_type
from tightframe.metrics.collapse import Head, check_measurable
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

NAMES = ("nc1", "nc1_ratio", "cdnv", "numerical_rank", "vci", "nc2_norm", "nc2_angle", "nc2_etf")


class NeuralCollapse(Metric):
    """How collapsed the features seen since the last ``reset`` are: the values of ``collapse_metrics``.

    They come with the accuracy of float64, in whatever precision the features and the training loop are: ``half()``,
    ``set_dtype``, autocast and TF32 leave them alone. ``.to(device)`` moves the state; features are brought to it.
    On devices without float64 (MPS) the state stays on the CPU.

    **Too few samples.** Nothing here stops a training loop. While a class has no sample, or none has two, or once a
    feature was NaN or infinite (``overflowed`` counts such samples), every value is NaN: leaving empty classes out
    would make values of different K look like one curve. ``collapse_metrics(metric.moments)`` says what is missing.
    Labels out of range and shapes that do not fit are mistakes in the loop, and raise ``MeasureError`` at ``update``.

    **Cost.** Samples wait until there are ``CHUNK`` of them, so ``update`` with a small batch is a copy of it.
    ``compute`` takes an eigendecomposition, O(d³): call it once an epoch. Calling the metric itself (``forward``)
    measures each batch as well, at that price; in loops, ``update`` is enough. The state takes 8 (d² + 2 K d) bytes,
    besides the waiting samples; to synchronise, each process gathers those of all.

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
    features: list[Tensor]
    labels: list[Tensor]

    def __init__(
        self,
        classes: int,
        dimension: int,
        weighting: Weighting = "class",
        head: nn.Linear | Head | None = None,
        **options: Any,
    ):
        super().__init__(**{"compute_with_cache": head is None, **options})  # weights change without an update
        check_settings(classes, dimension, weighting, head)
        self.classes, self.dimension, self.weighting = classes, dimension, weighting
        self._followed = _Followed(head)
        self.add_state("table", _table(ClassMoments.zero(classes, dimension)), dist_reduce_fx=merged)
        self.add_state("overflowed", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("features", [], dist_reduce_fx=None)  # batches that wait: none are left when processes meet
        self.add_state("labels", [], dist_reduce_fx=None)

    def update(self, features: Any, labels: Any) -> None:
        """Take in one batch: features (n, d), labels (n,); tensors of any float dtype and device, or arrays.

        Raises:
            MeasureError: a shape does not fit, or a label is no integer in 0 … K − 1.
        """
        features, labels = as_tensor(features).detach(), as_tensor(labels)
        stand_in = torch.zeros(()).expand(features.shape)  # NaN is counted when folded, and is no error here
        check_samples(stand_in, labels, self.classes, self.dimension)
        device = self.table.device
        # New lists: torchmetrics lets the metrics of a collection, and the dict given to load_state_dict, share them.
        self.features = [*self.features, features.to(device, work_type(features), copy=True)]
        self.labels = [*self.labels, labels.to(device, torch.int64, copy=True)]
        if sum(map(len, self.labels)) >= CHUNK:
            self._fold()

    def compute(self) -> dict[str, Tensor]:
        """Each metric by name, as float64 tensors of shape (): see ``collapse_metrics``; NaN as the class describes."""
        moments, head = self.moments, self._followed.weights(self.table.device)
        values = dict.fromkeys(NAMES if head is None else (*NAMES, "nc3"), torch.nan)
        if _measurable(moments) and not self.overflowed:
            values = collapse_metrics(moments, head, weighting=self.weighting).by_name
        return {name: torch.tensor(value, dtype=torch.float64).to(self.table.device) for name, value in values.items()}

    @property
    def moments(self) -> ClassMoments:
        """Moments of what this process has seen, without samples that hold NaN or infinity; shares no memory."""
        self._fold()
        return _moments(self.table)

    def reset(self) -> None:
        """Forget all samples."""
        self.features, self.labels = [], []  # rather than emptied by torchmetrics, wherever else they are in use
        super().reset()

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Exchange states with the other processes; arguments as in torchmetrics."""
        self._fold()
        super().sync(*args, **kwargs)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Take in all that another ``NeuralCollapse``, or its ``metric_state``, has seen; it is left as it is.

        Raises:
            MeasureError: it has other classes or another dimension, or is something else.
        """
        state: dict[str, Any] = incoming_state.metric_state if isinstance(incoming_state, Metric) else incoming_state
        if "table" not in state:
            raise MeasureError("no state of a NeuralCollapse to merge with: give another one, or its metric_state")
        if state["table"].shape != self.table.shape:
            raise MeasureError(f"states can't be merged: {self._mismatch(state['table'])}")
        self._reduce_states(state)
        self._fold()  # so that nothing is shared with the other
        self._changed(incoming_state.update_count if isinstance(incoming_state, Metric) else 1)

    def clone(self) -> NeuralCollapse:
        """Make a copy of the metric, which follows the same head."""
        return deepcopy(self)

    def _fold(self) -> None:
        """Join the samples that wait to the moments.

        In float64, whatever their dtype: its products alone are safe from autocast and TF32, which a training loop
        may have switched on, and cost little beside the training itself.
        """
        if not self.labels:
            return
        device = self.table.device
        rows, labels = (torch.cat([part.to(device) for part in parts]) for parts in (self.features, self.labels))
        self.features, self.labels = [], []
        finite = torch.isfinite(rows).all(1)
        if not finite.all():
            self.overflowed = self.overflowed + (~finite).sum()
            rows, labels = rows[finite], labels[finite]
        moments = _moments(self.table)
        for some, which in zip(rows.split(CHUNK), labels.split(CHUNK), strict=True):
            moments = moments.update(some.double(), which)
        self.table = _table(moments)

    def _changed(self, updates: int) -> None:
        """Note that the state was changed other than by ``update``: a kept result would be stale."""
        self._computed = None
        self._update_count += updates

    def _mismatch(self, table: Tensor) -> str:
        other = _shape(table)
        return (
            f"one is of {self.classes} classes and {self.dimension} values, the other of {other[0]} and {other[1]}: "
            "make both with the same classes and dimension"
        )

    def _apply(self, fn: Any, exclude_state: Any = "") -> NeuralCollapse:
        """Move states as ``fn`` would and keep their dtype: less than float64 loses the spread that collapse leaves."""

        def moved(tensor: Tensor) -> Tensor:
            try:
                device = fn(tensor).device
            except TypeError:  # what MPS makes of float64
                return tensor
            return tensor.to(device)

        super()._apply(moved, exclude_state)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *further: Any) -> None:
        saved, *_, errors = state_dict.get(f"{prefix}table"), *further
        if saved is not None and saved.shape != self.table.shape:
            errors.append(f"{prefix}table does not fit: {self._mismatch(saved)}")
            return
        device = self.table.device
        if saved is not None:
            self.features, self.labels = [], []
        super()._load_from_state_dict(state_dict, prefix, *further)
        if saved is not None:
            self.table, self.overflowed = self.table.to(device), self.overflowed.to(device)
            self._changed(1)


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


def merged(tables: Float64[Tensor, "p r c"]) -> Float64[Tensor, "r c"]:
    """The table of all samples from those of p processes, stacked as torchmetrics does."""
    return _table(reduce(ClassMoments.merge, map(_moments, tables)))


def _table(moments: ClassMoments) -> Float64[Tensor, "r c"]:
    """Moments as one tensor (2K + d + 1, d + 1), new; counts are exact to 2⁵³."""
    table = moments.means.new_zeros(2 * moments.classes + moments.dimension + 1, moments.dimension + 1)
    means, variances, rest = _blocks(table)
    means[:, :-1], means[:, -1], variances[:, :-1] = moments.means, moments.counts, moments.variances
    rest[:-1, :-1], rest[:-1, -1], rest[-1, -1] = moments.scatter, moments.third, moments.fourth
    return table


def _moments(table: Float64[Tensor, "r c"]) -> ClassMoments:
    means, variances, rest = _blocks(table)
    fields = (means[:, :-1], rest[:-1, :-1], variances[:, :-1], rest[:-1, -1], rest[-1, -1])
    own = (field.clone(memory_format=torch.contiguous_format) for field in fields)
    return ClassMoments(means[:, -1].long(), *own)


def _blocks(table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    classes, dimension = _shape(table)
    means, variances, rest = table.split([classes, classes, dimension + 1])
    return means, variances, rest


def _shape(table: Tensor) -> tuple[int, int]:
    rows, columns = table.shape
    return (rows - columns) // 2, columns - 1


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
