"""Which modules of a model are its layers: the blocks between which features are worth reading.

The rule, for any ``nn.Module``:

1. The head is the last linear map (``nn.Linear`` or 1 × 1 convolution) to run, if its outputs are as many as the
   model's and no block runs after it. timm models say it themselves; of two heads (a class and a distillation
   token) it is the first.
2. A block is a module of its own class that holds two linear maps or more and is reached from the root through
   ``nn.Sequential``, ``nn.ModuleList`` and stages (modules that hold such a list made of blocks, or three blocks as
   members; and modules of the same class that hold any): residual, inverted-residual, dense, inception, fire and
   transformer blocks all are.
3. A model without two blocks is read at its small sequences (one convolution with norm and activation), and one
   without those at its convolutions and linear maps.
4. Of these, the modules that run exactly once and put out one tensor with the batch first, in the order they run.
   Blocks that fold patches into the batch give way to the module around them.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tightframe.backbone import PENULTIMATE, Layer, Layout
from tightframe.errors import LayerNotFound, ModelError

LINEAR_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


class Anatomy:
    """What one forward pass of blank images tells about a model: blocks, head and shapes."""

    def __init__(self, module: nn.Module, input_size: tuple[int, int], named: tuple[str, ...] | None = None):
        self.module, self.input_size = module, input_size
        self.modules = dict(module.named_modules())
        for name in named or ():
            _require(self.modules, name)
        ran, inputs, outputs = self._run()
        declared = _declared_head(module)
        undeclared = declared is not None and declared not in inputs
        self.head = self._last_linear_map(ran, outputs) if undeclared else declared
        self.prefix_tokens = _prefix_tokens(module)
        once = [name for name, times in Counter(ran).items() if times == 1]
        wanted = (
            named if named is not None else _around_unreadable(candidates(module, self.head), self.modules, outputs)
        )
        blocks = [name for name in once if name in wanted and _readable(outputs[name])]
        self.layers = tuple(self._layer(name, outputs[name]) for name in blocks)
        last = inputs[self.head] if self.head else outputs[""]
        if not _readable(last):
            raise ModelError(f"{type(module).__name__} puts out {_described(last)}; one tensor per batch is needed")
        self.penultimate = self._layer(PENULTIMATE, last)
        missing = [name for name in named or () if name not in blocks]
        if missing:
            raise LayerNotFound(f'"{missing[0]}" does not run exactly once, or puts out no tensor that can be pooled')

    def _run(self) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
        """Run blank images; names of modules in the order they finished, what came out, and what heads were given."""
        ran: list[str] = []
        inputs: dict[str, Any] = {}
        outputs: dict[str, Any] = {}

        def watch(name: str) -> Any:
            def hook(module: nn.Module, arguments: Any, output: Any) -> None:
                ran.append(name)
                outputs[name] = _stand_in(output)
                if name and _could_be_head(module):
                    inputs[name] = _stand_in(arguments[0] if arguments else None)

            return hook

        handles = [module.register_forward_hook(watch(name)) for name, module in self.modules.items()]
        try:
            with torch.inference_mode():
                self.module(torch.zeros(2, 3, *self.input_size))
        except Exception as error:
            height, width = self.input_size
            reason = " ".join(str(error).split())[:300]
            raise ModelError(
                f"{type(self.module).__name__} can't take color images of {height} × {width} ({reason}); "
                "set --input-size to what it was built for"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        return ran, inputs, outputs

    def _last_linear_map(self, ran: list[str], outputs: dict[str, Any]) -> str | None:
        answer = first_tensor(outputs[""])
        blocks = {name for name, _ in _blocks(self.module, "", None)}
        for name in reversed(ran):
            module = self.modules[name]
            if name in blocks and outputs[name] is not answer:  # one that is may be a classifier of its own class
                return None
            if not name or not _could_be_head(module):
                continue
            width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            fits = isinstance(answer, Tensor) and answer.ndim == 2 and answer.shape[1] == width
            return name if fits else None
        return None

    def _layer(self, name: str, output: Any) -> Layer:
        output = first_tensor(output)
        layout = _layout(output, self.input_size)
        dimension = output.shape[1] if layout == "map" else output.shape[-1]
        owned = 0 if name == PENULTIMATE else sum(p.numel() for p in self.modules[name].parameters())
        return Layer(name, layout, dimension, owned, self.prefix_tokens if layout == "tokens" else 0)


def candidates(module: nn.Module, head: str | None) -> list[str]:
    """Names of the modules that rules 2 and 3 make layers, whether they run or not."""
    blocks = [name for name, _ in _blocks(module, "", head)]
    if len(blocks) > 1:
        return blocks
    small = [n for n, m in module.named_modules() if _is_small_sequence(m) and _linear_maps(m) == 1]
    small = [name for name in small if name and not _inside(head, name)]
    return small or [n for n, m in module.named_modules() if n and isinstance(m, LINEAR_MAPS) and n != head]


def first_tensor(output: Any) -> Any:
    """The output itself, or the first element of a tuple or list."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


def _stand_in(output: Any) -> Any:
    """What is looked at of an output: its first tensor, and of a large one no more than the shape."""
    output = first_tensor(output)
    return torch.empty_like(output, device="meta") if isinstance(output, Tensor) and output.ndim > 2 else output


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
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))


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
    output = first_tensor(output)
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
    output = first_tensor(output)
    return f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"


def _require(modules: dict[str, nn.Module], name: str) -> None:
    if name and name in modules:
        return
    near = difflib.get_close_matches(name, [n for n in modules if n], n=3, cutoff=0)
    raise LayerNotFound(f'no layer "{name}" in this model; nearest: ' + ", ".join(f'"{n}"' for n in near))
