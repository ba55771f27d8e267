"""A model from one block on, so that training the block need not run what stands before it.

``Suffix`` is found by symbolic tracing (torch.fx) that steps into no module but the ones around the block, so that
hardly any model resists: the trace says which values cross from before the block to after it, and where that is the
block's own input alone, the rest can be run from it. Only repeated computation is left out: the suffix runs the very
modules of the model, so training it is training the model, up to the rounding of the inputs that were kept.
"""

from __future__ import annotations

import inspect
from typing import Any

from jaxtyping import Shaped
from timm.layers import resample_abs_pos_embed, resample_abs_pos_embed_nhwc
from torch import Tensor, fx, nn

from tightframe.features.capture import CannotCut


class Suffix:
    """A model from one block on: takes the block's input and returns the model's output.

    It runs the modules of ``base``, whose hooks see what they always see.

    Raises:
        CannotCut: the model does something between blocks that tracing can't follow, or more than the block's input
            is needed after it.
    """

    def __init__(self, base: nn.Module, block: str):
        self._run = fx.GraphModule(base, _from_block(_traced(base, block), block))

    def __call__(self, inputs: Shaped[Tensor, "n ..."]) -> Any:
        """The model's output for images from which ``inputs`` of the block were computed."""
        return self._run(inputs)


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
