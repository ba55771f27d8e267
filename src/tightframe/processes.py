"""The processes that a launcher started together: which one this is, and how they share the work of training.

``accelerate launch`` or ``torchrun`` starts them, and Hugging Face Accelerate joins them. All make the same choices
from the same seeds; each runs its part of every batch, sums are taken over all of them, and the first alone writes (see
``files``). PyTorch is imported only where there is more than one process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from tightframe.errors import SettingsError, needed_by

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")


def is_first() -> bool:
    """Whether this process is the only one or the first of several: the one that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Team:
    """The processes at work.

    Attributes:
        rank: number of this process, 0 for the first.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    def check(self, batch_size: int) -> None:
        """Raise ``SettingsError`` for batches of fewer images than there are processes."""
        if batch_size < self.size:
            raise SettingsError(
                f"a batch of {batch_size} has fewer images than the {self.size} processes that share it: "
                "raise --batch-size"
            )

    def share(self, order: np.ndarray, batch_size: int) -> tuple[np.ndarray, int]:
        """Positions in ``order`` of this process's part of every batch, and the size of its part of a full batch.

        A last batch of fewer images than there are processes is left out.
        """
        positions = np.arange(len(order))
        rest = len(order) % batch_size
        if 0 < rest < self.size:
            positions = positions[:-rest]
        mine = positions[positions % batch_size % self.size == self.rank]
        return mine, len(range(self.rank, batch_size, self.size))

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.size > 1:
            from torch import distributed

            for tensor in tensors:
                distributed.all_reduce(tensor)

    def gather(self, rows: Tensor) -> Tensor:
        """Rows (b_i, d) of all processes, in the order of the batch that they are parts of."""
        if self.size == 1:
            return rows
        from accelerate.utils import gather_object

        parts = gather_object([rows.cpu()])
        found = rows.new_empty(sum(map(len, parts)), *rows.shape[1:], device="cpu")
        for rank, part in enumerate(parts):
            found[rank :: self.size] = part
        return found

    def agree(self, value: Value) -> Value:
        """The first process's value."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            from torch import distributed

            distributed.barrier()


def together() -> Team:
    """All processes that a launcher started together; this one alone without a launcher.

    Raises:
        PackageMissing: there are several processes, and Accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team()
    with needed_by("training in several processes", "accelerate"):
        from accelerate import PartialState
    import torch

    state = PartialState(cpu=not torch.cuda.is_available())
    return Team(state.process_index, state.num_processes)
