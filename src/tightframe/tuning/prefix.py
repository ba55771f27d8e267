"""The prefix cache: what stands before the tuned block is a constant, so images run through it only once.

``Suffix`` is a model from one block on. It is found by symbolic tracing (torch.fx) that steps into no module but the
ones around the block, so that hardly any model resists: the trace says which values cross from before the block to
after it, and where that is the block's own input alone, the rest can be run from it. ``inputs_of`` runs the images
and keeps what goes into one block, or into several at once, in half precision, memory-mapped.

What is left out is only ever a repeated computation: the suffix runs the very modules of the model, so training it is
training the model, up to the rounding of what was kept.
"""

from __future__ import annotations

import inspect
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from timm.layers import resample_abs_pos_embed, resample_abs_pos_embed_nhwc
from torch import Tensor, fx, nn

from tightframe.errors import TightframeError
from tightframe.features.precision import autocast
from tightframe.features.taps import submodule
from tightframe.progress import Progress, silent
from tightframe.tuning.inputs import KeptInputs, PixelInputs

GIGABYTE = 2**30
LARGEST_HALF = 6e4
"""Beyond it float16 can't hold a value."""


class CannotCut(TightframeError):
    """The model can't be run from this block on; it can be trained whole."""


class Suffix(nn.Module):
    """A model from one block on: takes what goes into the block, gives what the model gives.

    It owns no module: ``base`` does, and hooks on its modules see what they always see.

    Raises:
        CannotCut: the model does something between blocks that tracing can't follow, or more than the block's input
            is needed after it.
    """

    def __init__(self, base: nn.Module, block: str):
        super().__init__()
        graph = _traced(base, block)
        self._run = [fx.GraphModule(base, _from_block(graph, block))]  # in a list: not a submodule

    def forward(self, inputs: Shaped[Tensor, "n ..."]) -> Any:
        """What the model gives for images whose way into the block is ``inputs``."""
        return self._run[0](inputs)


class _Around(fx.Tracer):
    """Steps into modules around ``block`` only."""

    def __init__(self, block: str):
        super().__init__(autowrap_functions=(resample_abs_pos_embed, resample_abs_pos_embed_nhwc))
        self.block = block

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.block.startswith(module_qualified_name + ".")


def _traced(base: nn.Module, block: str) -> fx.Graph:
    parameters = list(inspect.signature(base.forward).parameters.values())[1:]
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    try:
        return _Around(block).trace(base, concrete_args=defaults)
    except Exception as error:  # whatever the model's own code does with values that are not there yet
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CannotCut(f"what the model does around {block} can't be followed ({why})") from error


def _from_block(graph: fx.Graph, block: str) -> fx.Graph:
    """The part of ``graph`` that depends on the block, with the block's input in place of the model's."""
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == block]
    if len(calls) != 1 or not calls[0].args or not isinstance(calls[0].args[0], fx.Node):
        raise CannotCut(f"{block} is not called once with one input")
    call, entry = calls[0], calls[0].args[0]
    after = _dependent(graph, {call})
    of_images = _dependent(graph, {node for node in graph.nodes if node.op == "placeholder"})
    needed = set(after)
    for node in reversed(graph.nodes):
        if node in needed and node is not entry:
            needed.update(node.all_input_nodes)
    if any(node in of_images and node not in after for node in needed - {entry}):
        raise CannotCut(f"after {block} the model goes back to what came before it")
    found, made = fx.Graph(), dict[fx.Node, fx.Node]()
    made[entry] = found.placeholder("inputs")
    for node in graph.nodes:
        if node in needed and node is not entry:
            made[node] = found.node_copy(node, lambda given: made[given])
    return found


def _dependent(graph: fx.Graph, start: set[fx.Node]) -> set[fx.Node]:
    found = set(start)
    for node in graph.nodes:
        if any(given in found for given in node.all_input_nodes):
            found.add(node)
    return found


def inputs_of(
    base: nn.Module,
    blocks: Sequence[str],
    images: PixelInputs,
    count: int,
    *,
    device: torch.device,
    precision: str,
    budget: float,
    views: int = 1,
    batch_size: int = 64,
    progress: Progress = silent,
) -> dict[str, KeptInputs]:
    """What goes into each of ``blocks`` for ``count`` images, from one pass a view in eval mode.

    Args:
        base: the model.
        budget: gigabytes that all of it may take on disk.
        views: of each image, the image as it is among them.

    Raises:
        CannotCut: it would take more.
    """
    kept: dict[str, tuple[Tensor, bool]] = {}
    base.train(False)
    batches = progress(
        _each_view(images, count, views, batch_size),
        f"keeping what goes into {', '.join(blocks)}",
        views * -(-count // batch_size),
    )
    for rows, batch in batches:
        with torch.inference_mode(), autocast(device, precision), _Listening(base, blocks) as seen:
            base(batch.to(device))
        found = {block: _channels_last(seen[block]) for block in blocks}
        if not kept:
            _check_budget(found, views * count / len(rows), budget)
            kept = {block: (_mapped(views * count, one), seen[block].ndim == 4) for block, one in found.items()}
        for block, one in found.items():
            kept[block][0][rows] = one.cpu().to(kept[block][0].dtype)
    return {block: KeptInputs(values, maps, views) for block, (values, maps) in kept.items()}


def features_of_views(
    features: Callable[[Tensor], Tensor],
    images: PixelInputs,
    count: int,
    views: int,
    *,
    device: torch.device,
    precision: str,
    batch_size: int = 64,
    progress: Progress = silent,
) -> KeptInputs:
    """What ``features`` gives, (b, d), for ``count`` images in each of their views."""
    batches = _each_view(images, count, views, batch_size)
    found = []
    with torch.inference_mode(), autocast(device, precision):
        for _, batch in progress(batches, "features of all views", views * -(-count // batch_size)):
            found.append(features(batch.to(device)).float().cpu())
    return KeptInputs(torch.cat(found), views=views)


def _each_view(images: PixelInputs, count: int, views: int, size: int) -> Iterator[tuple[list[int], Tensor]]:
    """Rows of what is kept, and inputs, view by view."""
    for view in range(views):
        for indices, batch in images.batches(range(count), size, np.full(count, view)):
            yield [view * count + index for index in indices], batch


class _Listening:
    """What goes into each block during a forward pass."""

    def __init__(self, base: nn.Module, blocks: Sequence[str]):
        self._modules = {block: submodule(base, block) for block in blocks}

    def __enter__(self) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}

        def listen(block: str) -> Any:
            def keep(module: nn.Module, given: tuple[Any, ...]) -> None:  # a mask may follow the inputs
                seen[block] = given[0].clone()  # the block may work in place

            return self._modules[block].register_forward_pre_hook(keep)

        self._handles = [listen(block) for block in self._modules]
        return seen

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def _channels_last(values: Tensor) -> Tensor:
    return values.permute(0, 2, 3, 1) if values.ndim == 4 else values


def _check_budget(rows: dict[str, Tensor], batches: float, budget: float) -> None:
    needed = sum(2 * one.numel() for one in rows.values()) * batches / GIGABYTE
    if needed > budget:
        raise CannotCut(f"what goes into {', '.join(rows)} takes {needed:.1f} GB, more than the {budget:g} allowed")


def _mapped(count: int, rows: Tensor) -> Tensor:
    """A file of ``count`` rows like these, which is gone once nothing refers to it."""
    half = torch.bfloat16 if rows.dtype == torch.bfloat16 or bool(rows.abs().max() > LARGEST_HALF) else torch.float16
    shape = (count, *rows.shape[1:])
    with tempfile.NamedTemporaryFile(prefix="tightframe-", dir=Path(tempfile.gettempdir())) as file:
        _allocate(file.fileno(), 2 * math.prod(shape))
        array = np.memmap(file.name, dtype=np.int16, mode="w+", shape=shape)
    return torch.from_numpy(array).view(half)


def _allocate(descriptor: int, size: int) -> None:
    """Take the room at once: running out of it later would end the process. Raises ``CannotCut``."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        where = tempfile.gettempdir()
        raise CannotCut(
            f"{where} has no room for {size / GIGABYTE:.2g} GB ({error.strerror}); TMPDIR moves it"
        ) from error
