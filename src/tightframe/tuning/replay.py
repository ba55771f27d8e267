"""A model run from one of its blocks on: what ran before the block is not run again.

The model's own code runs, whatever it does; only modules that had finished when the block began return blanks of the
right shape, and the block is given its input in place of what it would get. That nothing else comes through is seen
once, on blanks that are not a number.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from tightframe.features.capture import CannotCut
from tightframe.features.taps import submodule

BATCHES = (2, 3)
"""Images that are run to see what of a module's output goes by images."""
CLOSE = 1e-3


class Suffix:
    """A model from one block on: takes the block's input and returns the model's output.

    It runs the modules of ``base``, whose hooks see what they always see.

    Args:
        base: the model.
        block: dotted name.
        shape: of one input of the model, such as (3, height, width).

    Raises:
        CannotCut: the block is not run exactly once, or more than its input is needed after it.
    """

    def __init__(self, base: nn.Module, block: str, shape: Sequence[int]):
        self._base, self._block, self._shape = base, submodule(base, block), tuple(shape)
        was_training = [(module, module.training) for module in base.modules()]
        try:
            base.eval()
            with torch.no_grad():
                self._learn(block)
        finally:
            for module, training in was_training:
                module.training = training

    def __call__(self, inputs: Shaped[Tensor, "n ..."]) -> Any:
        """The model's output for images from which ``inputs`` of the block were computed."""
        return self._replayed(inputs, _empty)

    def _learn(self, block: str) -> None:
        device = next((parameter.device for parameter in self._base.parameters()), None)
        luck = torch.Generator().manual_seed(0)
        seen = [
            _recorded(self._base, self._block, torch.randn(count, *self._shape, generator=luck).to(device))
            for count in BATCHES
        ]
        first, second = seen
        if first.inputs is None or [m for m, _ in first.before] != [m for m, _ in second.before]:
            raise CannotCut(f"{block} is not called once with one input")
        self._entries = first.entries
        self._before = [
            (module, one.blank(other)) for (module, one), (_, other) in zip(first.before, second.before, strict=True)
        ]
        for value in (math.nan, 1.0, -1.0):  # of which a model that looks at its values takes each another way
            try:
                found = self._replayed(first.inputs, partial(_filled, value))
            except Exception as error:  # whatever the model's own code does with values that are no numbers
                why = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise CannotCut(f"what the model does around {block} can't be followed ({why})") from error
            if not _same(found, first.output):
                raise CannotCut(f"after {block} the model goes back to what came before it")

    def _replayed(self, inputs: Tensor, blank: Callable[..., Tensor]) -> Any:
        called = list[nn.Module]()

        def given(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            called.append(module)
            if arguments:
                return (inputs, *arguments[1:]), named
            return arguments, named | {next(iter(named)): inputs}

        images = blank((len(inputs), *self._shape), torch.float32, inputs.device)
        handles = [module.register_forward_pre_hook(given, with_kwargs=True) for module in self._entries]
        try:
            with _standing_in(self._before, lambda tree: tree.made(inputs, blank)):
                output = self._base(images)
        finally:
            for handle in handles:
                handle.remove()
        if self._block not in called:
            raise CannotCut("it takes another way for other images")
        return output


class _Tree(NamedTuple):
    """What a module put out: values, and how they are arranged in tuples, lists and dictionaries."""

    leaves: list[Any]
    structure: Any

    def with_input(self, made: list[Any], given: Any) -> _Tree:
        """The same, with a mark in place of those that were ``made`` as the very tensor that is ``given``."""
        marked = [_INPUT if one is given else leaf for one, leaf in zip(made, self.leaves, strict=True)]
        return self._replace(leaves=marked)

    def blank(self, other: _Tree) -> _Tree:
        """What of it is constant and what goes by images, seen from another run."""
        if self.structure != other.structure:
            raise CannotCut("what comes before it depends on the number of images")
        pairs = zip(self.leaves, other.leaves, strict=True)
        return self._replace(leaves=[_Leaf.of(*pair) for pair in pairs])

    def made(self, inputs: Tensor, blank: Callable[..., Tensor]) -> Any:
        """The output of leaves for so many images."""
        return tree_unflatten([leaf.made(inputs, blank) for leaf in self.leaves], self.structure)


class _Record(NamedTuple):
    """One run.

    Attributes:
        before: modules that had finished when the block began, of those within each other the outermost, and outputs.
        entries: the block, and modules around it that were given the same input.
        inputs: of the block; ``None`` where it is called never, twice, or without a tensor that comes first.
        output: of the model.
    """

    before: list[tuple[nn.Module, _Tree]]
    entries: list[nn.Module]
    inputs: Tensor | None
    output: Any


def _recorded(base: nn.Module, block: nn.Module, images: Tensor) -> _Record:
    """Run ``base`` and note what had been done when ``block`` began."""
    done, running = list[tuple[nn.Module, list[Any], _Tree]](), list[tuple[nn.Module, int, Any]]()
    before, entries, inputs = list[tuple[nn.Module, _Tree]](), list[nn.Module](), list[Any]()

    def begin(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        first = next(iter((*arguments, *named.values())), None)
        running.append((module, len(done), first))
        if module is block:
            inputs.append(first.clone() if isinstance(first, Tensor) else None)
            entries[:] = [outer for outer, _, given in running if given is first]
            before[:] = [(ended, tree.with_input(made, first)) for ended, made, tree in done]

    def end(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        _, start, _ = running.pop()
        if not inputs:
            made, structure = tree_flatten(output)
            copies = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in made]  # what follows may change it
            done[start:] = [(module, made, _Tree(copies, structure))]

    hooks: list[Any] = []
    for module in base.modules():
        hooks += [module.register_forward_pre_hook(begin, with_kwargs=True), module.register_forward_hook(end)]
    try:
        output = base(images)
    finally:
        for hook in hooks:
            hook.remove()
    return _Record(before, entries, inputs[0] if len(inputs) == 1 else None, output)


_REPLACED = ("forward", "_forward_hooks", "_forward_pre_hooks")
"""Attributes of a module for which others stand in."""
_INPUT = "the block's input"
"""In the place of a value that is the same tensor as the block's input."""


@dataclass(frozen=True)
class _Leaf:
    """A value that a module put out: a constant, or a tensor whose sizes grow with the number of images.

    Attributes:
        value: the constant, if it is one; with ``sizes`` the row that is the same for every image.
        sizes: of each axis, the size for one image and whether it is to be multiplied by the number of images.
        dtype: of the tensor.
    """

    value: Any
    sizes: tuple[tuple[int, bool], ...] | None = None
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, one: Any, other: Any) -> _Leaf:
        if not isinstance(one, Tensor) or not isinstance(other, Tensor):
            if type(one) is not type(other) or one != other:
                raise CannotCut("what comes before it depends on the number of images")
            return cls(one)
        if one.shape == other.shape and torch.equal(one, other):
            return cls(one)
        few, more = BATCHES
        sizes = list[tuple[int, bool]]()
        for size, larger in zip(one.shape, other.shape, strict=True):
            if size != larger and size * more != larger * few:
                raise CannotCut("sizes of what comes before it don't go by the number of images")
            sizes.append((size, False) if size == larger else (size // few, True))
        alike = sizes[0] == (1, True) and torch.equal(
            torch.cat([one, other]), one[:1].expand(few + more, *one.shape[1:])
        )
        return cls(one[:1] if alike else None, tuple(sizes), one.dtype)

    def made(self, inputs: Tensor, blank: Callable[..., Tensor]) -> Any:
        """The constant, the block's ``inputs``, or a blank for as many images."""
        constant = self.value.to(inputs.device) if isinstance(self.value, Tensor) else self.value
        if self.sizes is None:
            return inputs if self.value is _INPUT else constant
        if constant is not None:
            return constant.repeat(len(inputs), *[1] * (constant.ndim - 1))
        shape = tuple(size * len(inputs) if by_images else size for size, by_images in self.sizes)
        return blank(shape, self.dtype, inputs.device)


@contextmanager
def _standing_in(before: list[tuple[nn.Module, _Tree]], made: Callable[[_Tree], Any]) -> Iterator[None]:
    """Let the first calls of each module return blanks, in their order and unseen by hooks; later ones run it."""
    waiting: dict[nn.Module, list[_Tree]] = {}
    for module, tree in before:
        waiting.setdefault(module, []).append(tree)
    own = {module: {name: vars(module).get(name) for name in _REPLACED} for module in waiting}

    def put_back(module: nn.Module) -> None:
        for name, part in own.pop(module, {}).items():
            if part is None:
                del vars(module)[name]
            else:
                setattr(module, name, part)

    def blank(module: nn.Module, *arguments: Any, **named: Any) -> Any:
        tree = waiting[module].pop(0)
        if not waiting[module]:
            put_back(module)
        return made(tree)

    try:
        for module in waiting:
            module.forward = partial(blank, module)
            module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()
        yield
    finally:
        for module in waiting:
            put_back(module)


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Whatever is in memory, which costs nothing; zeros where they may be used as indices."""
    make = torch.empty if dtype.is_floating_point else torch.zeros
    return make(shape, dtype=dtype, device=device)


def _filled(value: float, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full(shape, value if dtype.is_floating_point else 0, dtype=dtype, device=device)


def _same(found: Any, wanted: Any) -> bool:
    """Whether all tensors of both are close; those that are not a number are not."""
    pairs = zip(tree_flatten(found)[0], tree_flatten(wanted)[0], strict=True)
    return all(
        one.shape == other.shape and torch.allclose(one, other, rtol=CLOSE, atol=CLOSE * float(other.abs().max()))
        for one, other in pairs
        if isinstance(one, Tensor) and isinstance(other, Tensor) and one.numel()
    )
