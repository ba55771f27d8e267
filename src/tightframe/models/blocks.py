"""Which modules of a model are its layers: the blocks between which features are worth reading.

The rule, for any ``nn.Module``:

1. The head is the last linear map (``nn.Linear`` or 1 × 1 convolution) to run, if its outputs are as many as the
   model's and no block runs after it. timm models say it themselves. Of several outputs it makes the first.
2. A block is a module of its own class that holds two linear maps or more and is reached from the root through
   ``nn.Sequential``, ``nn.ModuleList`` and stages (modules that hold such a list made of blocks, or three blocks as
   members; and modules of the same class that hold any): residual, inverted-residual, dense, inception, fire and
   transformer blocks all are.
3. A model without two blocks is read at its small sequences (one convolution with norm and activation), and one
   without those at its convolutions and linear maps.
4. Of these, the modules that run exactly once and put out a tensor with the batch first, in the order they run.
   Of several outputs the first with a row an image is read. Blocks that fold patches into the batch give way to the
   module around them. What the head sees depends on each.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tightframe.backbone import PENULTIMATE, Layer, Layout
from tightframe.errors import LayerNotFound, ModelError
from tightframe.models.wrapping import OwnLogits, maps_of

LINEAR_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)

SAME = 1e-4
"""Largest difference between a head's outputs and the model's own, as a share of them and of the largest."""


class UnfitSize(ModelError):
    """The model can't take images of this size."""


class SeveralMaps(ModelError):
    """The model puts out maps (n, d, h, w), several of them, and nothing else."""


class _Seen:
    """What hooks on all modules see in one forward pass.

    Attributes:
        ran: names of modules in the order in which they finished.
        inputs: what modules that could be a head were given.
        outputs: what modules put out, or the element of it that is read.
        elements: which that is.
        answer: the output of the model itself.
    """

    def __init__(self, modules: dict[str, nn.Module], declared: str):
        self.modules, self.declared = modules, declared
        self.ran: list[str] = []
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self.elements: dict[str, int] = {}
        self.answer: Any = None
        self._made: dict[str, Tensor] = {}
        self._nodes: dict[str, Any] = {}
        self._fed: dict[str, Any] = {}

    def hooks(self) -> list[RemovableHandle]:
        return [module.register_forward_hook(self._watch(name)) for name, module in self.modules.items()]

    def _watch(self, name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            self.ran.append(name)
            self.outputs[name], self._nodes[name] = _stand_in(output), _node(output)
            self.elements[name] = element_of(output)
            if not name:
                self.answer = output
            elif _could_be_head(module):
                given = arguments[0] if arguments else None
                self.inputs[name], self._fed[name] = _stand_in(given), _node(given)
                self._made = {k: made for k, made in self._made.items() if k == self.declared or made.ndim == 2}
                self._made[name] = first_tensor(output).detach().clone()  # what follows may work in place

        return hook

    def logits(self, head: str) -> Any:
        """What the head made, as far as it is known."""
        return self._made.get(head)

    def feeding(self, head: str | None, names: Iterable[str]) -> list[str]:
        """Those of the modules on whose outputs depends what the head is given, or the output where there is none.

        All of them, if the model runs such that no gradient could tell.
        """
        end = self._fed.get(head) if head else self._nodes[""]
        waiting, found = [end], set[Any]()
        while waiting:
            node = waiting.pop()
            if node is not None and node not in found:
                found.add(node)
                waiting += [before for before, _ in node.next_functions]
        return [name for name in names if end is None or self._nodes.get(name) in found]


class Anatomy:
    """What one forward pass of noise tells about a model: blocks, head and shapes.

    Attributes:
        head: dotted name of the classifier, ``None`` if there is none.
        whole: whether the head's outputs, averaged over places, are the model's own output.
    """

    def __init__(self, module: nn.Module, input_size: tuple[int, int], named: tuple[str, ...] | None = None):
        self.module, self.input_size = module, input_size
        self.modules = dict(module.named_modules())
        for name in named or ():
            _require(self.modules, name)
        declared = _declared_head(module)
        seen = _Seen(self.modules, declared or "")
        self._run(seen)
        if maps_of(seen.answer):
            raise SeveralMaps(f"{type(module).__name__} puts out several maps; one tensor per batch is needed")
        ran, inputs, outputs = seen.ran, seen.inputs, seen.outputs
        undeclared = declared is not None and declared not in inputs
        self.head = self._last_linear_map(seen) if undeclared else declared
        self.prefix_tokens = _prefix_tokens(module)
        last = inputs[self.head] if self.head else outputs[""]
        once = [name for name, times in Counter(ran).items() if times == 1]
        wanted = named
        if wanted is None:
            found = _around_unreadable(candidates(module, self.head), self.modules, outputs)
            wanted = tuple(seen.feeding(self.head, found))
        blocks = [name for name in once if name in wanted and _readable(outputs[name])]
        self.layers = tuple(self._layer(name, outputs[name], seen.elements[name]) for name in blocks)
        self.whole = self.head is None or _alike(seen.logits(self.head), first_tensor(seen.answer))
        if not _readable(last):
            raise ModelError(f"{type(module).__name__} puts out {_described(last)}; one tensor per batch is needed")
        self.penultimate = self._layer(PENULTIMATE, last)
        missing = [name for name in named or () if name not in blocks]
        if missing:
            raise LayerNotFound(f'"{missing[0]}" does not run exactly once, or puts out no tensor that can be pooled')

    def _run(self, seen: _Seen) -> None:
        """Run two images of noise; nothing is kept for a backward pass, of which only the graph is looked at."""
        noise = torch.randn(2, 3, *self.input_size, generator=torch.Generator().manual_seed(0))
        nothing = torch.autograd.graph.saved_tensors_hooks(lambda kept: kept.new_empty(0), lambda kept: kept)
        handles = seen.hooks()
        try:
            with nothing, torch.enable_grad():
                self.module(noise.requires_grad_() * 1)  # models may work in place, but not on a leaf
        except Exception as error:
            height, width = self.input_size
            reason = " ".join(str(error).split())[:300]
            raise UnfitSize(
                f"{type(self.module).__name__} can't take color images of {height} × {width} ({reason}); "
                "set --input-size to what it was built for"
            ) from error
        finally:
            for handle in handles:
                handle.remove()

    def _last_linear_map(self, seen: _Seen) -> str | None:
        answer = first_tensor(seen.answer)
        others = seen.answer[1:] if isinstance(seen.answer, (tuple, list)) else ()
        blocks = {name for name, _ in _blocks(self.module, "", None)}
        for name in reversed(seen.ran):
            module, made = self.modules[name], seen.outputs[name]
            if any(made is other for other in others):  # the logits of another task
                continue
            if name in blocks and made is not answer:  # one that is may be a classifier of its own class
                return None
            if not name or not _could_be_head(module):
                continue
            width = module.out_features if isinstance(module, nn.Linear) else getattr(module, "out_channels", 0)
            fits = isinstance(answer, Tensor) and answer.ndim == 2 and answer.shape[1] == width
            return name if fits else None
        return None

    def _layer(self, name: str, output: Any, element: int = 0) -> Layer:
        layout = _layout(output, self.input_size)
        dimension = output.shape[1] if layout == "map" else output.shape[-1]
        owned = 0 if name == PENULTIMATE else sum(p.numel() for p in self.modules[name].parameters())
        return Layer(name, layout, dimension, owned, self.prefix_tokens if layout == "tokens" else 0, element)


def candidates(module: nn.Module, head: str | None) -> list[str]:
    """Names of the modules that rules 2 and 3 make layers, whether they run or not."""
    blocks = [name for name, _ in _blocks(module, "", head)]
    if len(blocks) > 1:
        return blocks
    small = [n for n, m in module.named_modules() if _is_small_sequence(m) and _linear_maps(m) == 1]
    small = [name for name in small if name and not _inside(head, name)]
    return small or [n for n, m in module.named_modules() if n and isinstance(m, LINEAR_MAPS) and n != head]


def element_of(output: Any) -> int:
    """Which element of a tuple or list is read: the first tensor with a row an image, or the first of all."""
    parts = output if isinstance(output, (tuple, list)) else ()
    return next((index for index, part in enumerate(parts) if isinstance(part, Tensor) and _readable(part)), 0)


def first_tensor(output: Any) -> Any:
    """The output itself, or of a tuple or list the element that is read."""
    return output[element_of(output)] if isinstance(output, (tuple, list)) and output else output


def _stand_in(output: Any) -> Any:
    """What is looked at of an output: its first tensor, and of a large one no more than the shape."""
    output = first_tensor(output)
    return torch.empty_like(output, device="meta") if isinstance(output, Tensor) and output.ndim > 2 else output


def _node(output: Any) -> Any:
    """Where the first tensor of an output is in the graph of what depends on the images."""
    output = first_tensor(output)
    return output.grad_fn if isinstance(output, Tensor) else None


def _alike(made: Any, answer: Any) -> bool:
    """Whether what a head made, averaged over places, is the model's answer."""
    if made is None or not isinstance(answer, Tensor):
        return made is answer
    made, answer = made.detach(), answer.detach()
    while made.ndim > answer.ndim:
        made = made.mean(-1) if made.shape[1] == answer.shape[1] else made.mean(1)
    near = SAME * float(answer.abs().max())
    return made.shape == answer.shape and torch.allclose(made, answer, rtol=SAME, atol=near)


def _around_unreadable(names: list[str], modules: dict[str, nn.Module], outputs: dict[str, Any]) -> list[str]:
    """The names, and around those that ran and can't be read the nearest module that can, unless it holds others."""
    readable = [name for name in names if _readable(outputs.get(name))]
    for name in names:
        outer = name if name in outputs else ""
        while outer and (not _readable(outputs.get(outer)) or isinstance(modules[outer], nn.Sequential)):
            outer = outer.rpartition(".")[0]
        if outer and not any(_inside(other, outer) for other in readable):
            readable.append(outer)
    return readable


def _blocks(
    module: nn.Module, prefix: str, head: str | None, stages: set[type[nn.Module]] | None = None
) -> Iterator[tuple[str, nn.Module]]:
    if stages is None:
        stages = {type(m) for m in module.modules() if _is_stage(m)}
    for child_name, child in module.named_children():
        name = f"{prefix}.{child_name}" if prefix else child_name
        if name == head:
            continue
        listed = isinstance(child, (nn.Sequential, nn.ModuleList))
        inner: list[tuple[str, nn.Module]] = []
        if _inside(head, name) or (listed and not _is_small_sequence(child)) or type(child) in stages:
            inner = list(_blocks(child, name, head, stages))
        if inner:
            yield from inner
        elif not listed and not _inside(head, name) and _linear_maps(child) >= 2:
            yield name, child


def _is_stage(module: nn.Module) -> bool:
    """Whether it repeats a block: in a list at any depth, or as three or more members of its own."""
    lists = [m for m in module.modules() if isinstance(m, (nn.Sequential, nn.ModuleList)) and m is not module]
    return any(_repeats_block(members, 1) for members in lists) or _repeats_block(module, 3)


def _repeats_block(module: nn.Module, at_least: int) -> bool:
    """Whether all members with parameters are of one class of its own, each with two linear maps or more."""
    members = [child for child in module.children() if any(True for _ in child.parameters())]
    if isinstance(module, nn.ModuleDict) or len(members) < at_least or len({type(m) for m in members}) != 1:
        return False
    own_class = not isinstance(members[0], (*LINEAR_MAPS, nn.Sequential, nn.ModuleList))
    return own_class and all(_linear_maps(member) >= 2 for member in members)


def _is_small_sequence(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and all(not list(child.children()) for child in module.children())


def _linear_maps(module: nn.Module) -> int:
    return sum(isinstance(m, LINEAR_MAPS) for m in module.modules())


def _could_be_head(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, OwnLogits)) or (
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    )


def _declared_head(module: nn.Module) -> str | None:
    """The head that a timm model names: its module name, ``None`` for "no head", ``""`` for "not declared"."""
    if not hasattr(module, "get_classifier"):
        return ""
    head: Any = module.get_classifier()  # type: ignore[operator]
    if isinstance(head, (tuple, list, nn.ModuleList)):
        head = head[0]
    if isinstance(head, nn.Identity):
        return None
    maps = [child for child in head.modules() if _could_be_head(child)] if isinstance(head, nn.Module) else []
    return next((name for name, child in module.named_modules() if maps and child is maps[-1]), "")


def _inside(name: str | None, outer: str | None) -> bool:
    """Whether the module ``name`` is ``outer`` or lies within it."""
    return name is not None and outer is not None and (name == outer or name.startswith(f"{outer}."))


def _prefix_tokens(module: nn.Module) -> int:
    declared = getattr(module, "num_prefix_tokens", None)
    if isinstance(declared, int):
        return declared
    tokens = {"cls_token", "class_token", "class_embedding"}
    return int(any(name.rpartition(".")[2] in tokens for name, _ in module.named_parameters()))


def _readable(output: Any) -> bool:
    return isinstance(output, Tensor) and output.ndim in (2, 3, 4) and output.shape[0] == 2


def _layout(output: Tensor, input_size: tuple[int, int]) -> Layout:
    """Tell (n, d, h, w) from (n, h, w, d) by which two axes have the shape of the image."""
    if output.ndim == 2:
        return "vector"
    if output.ndim == 3:
        return "tokens"
    _, first, second, third = output.shape
    aspect = input_size[0] / input_size[1]

    def misfit(height: int, width: int) -> float:
        return abs(height / width / aspect - 1)

    return "map_last" if misfit(first, second) < misfit(second, third) else "map"


def _described(output: Any) -> str:
    return f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"


def _require(modules: dict[str, nn.Module], name: str) -> None:
    if name and name in modules:
        return
    near = difflib.get_close_matches(name, [n for n in modules if n], n=3, cutoff=0)
    raise LayerNotFound(f'no layer "{name}" in this model; nearest: ' + ", ".join(f'"{n}"' for n in near))
