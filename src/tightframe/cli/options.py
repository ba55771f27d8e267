"""Command-line options made of the parameters of functions: their names, types, defaults and docstrings.

No option is described twice: its help is the sentence in the function's ``Args`` (for a dataclass, ``Attributes``), its
default the signature's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser
from cyclopts import Group, Parameter

from tightframe.cli import terminal
from tightframe.errors import SettingsError

GROUPS = {
    name: Group.create_ordered(name) for name in ("Options", "Images", "Models", "Training", "More training options")
}
MACHINE = Group.create_ordered("Machine")
REQUIRED = inspect.Parameter.empty
"""The default of an option that has to be given."""
JSON_HELP = "Also write rows, settings and versions to this file; - for standard output, in place of the tables."


@dataclass(frozen=True)
class Source:
    """A function, or dataclass, and which of its parameters become options.

    Attributes:
        function: what they are handed to.
        names: of the parameters, in the order of the help.
        group: under which the help shows them.
        renamed: what the option of a parameter is called, where it is called otherwise.
        positional: parameters that need no option's name.
        defaults: in place of the signature's.
        written: files that are made: refused at once where they can't be.
    """

    function: Callable[..., Any]
    names: Sequence[str]
    group: Group
    renamed: dict[str, str] = field(default_factory=dict)
    positional: Sequence[str] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    written: Sequence[str] = ()

    def parameters(self) -> Iterable[inspect.Parameter]:
        """What the command line reads."""
        plain = isinstance(self.function, type) and not is_dataclass(self.function)
        hints = get_type_hints(self.function.__init__ if plain else self.function)
        said = {one.arg_name: one.description for one in docstring_parser.parse(self.function.__doc__ or "").params}
        known = inspect.signature(self.function).parameters
        for name in self.names:
            default = self.defaults.get(name, known[name].default)
            kind = _readable(hints[name])
            option = Parameter(
                help=" ".join((said.get(name) or "").replace("``", "").split()),
                group=self.group,
                consume_multiple=get_origin(_bare(kind)) is list,
                negative=None if default is True else "",
                show_choices=False,
                validator=_check_writable if name in self.written else None,
                show_default=_shown if not isinstance(default, bool | NoneType) and default not in ((), "") else False,
            )
            yield inspect.Parameter(
                self.renamed.get(name, name),
                inspect.Parameter.POSITIONAL_OR_KEYWORD if name in self.positional else inspect.Parameter.KEYWORD_ONLY,
                default=None if default == () else default,
                annotation=Annotated[kind | None if default in ((), None) else kind, option],
            )


class Given:
    """What was typed: by option, for the functions that take it."""

    def __init__(self, values: dict[str, Any], sources: Sequence[Source]):
        self.values, self._sources = values, sources

    def __getattr__(self, name: str) -> Any:
        return self.values[name]

    def call(self, function: Callable[..., Any], *given: Any, **more: Any) -> Any:
        """``function`` with what was typed for it, beside what is ``given``."""
        known, typed = inspect.signature(function).parameters, dict[str, Any]()
        for source in (one for one in self._sources if one.function is function):
            for name in source.names:
                value = self.values[source.renamed.get(name, name)]
                if value is not None or known[name].default is None:
                    typed[name] = tuple(value) if isinstance(value, list) else value
        for name in [*known][: len(given)]:
            typed.pop(name, None)
        return function(*given, **{**typed, **more})


def command(*sources: Source, json: bool = True) -> Callable[[Callable[[Given], Any]], Callable[..., Any]]:
    """Make a function that takes what was ``Given`` into a command with the options of all ``sources``.

    An option that several take is shown once, and each is given it.
    """

    def decorate(run: Callable[[Given], Any]) -> Callable[..., Any]:
        found: dict[str, inspect.Parameter] = {}
        for source in sources:
            for one in source.parameters():
                found.setdefault(one.name, one)
        if json:
            option = Parameter(
                help=JSON_HELP, group=GROUPS["Options"], validator=_check_writable, allow_leading_hyphen=True
            )
            found["json"] = inspect.Parameter(
                "json", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, option]
            )
        ordered = sorted(found.values(), key=lambda one: (one.kind, one.default is not inspect.Parameter.empty))
        signature = inspect.Signature(ordered)

        def typed(*arguments: Any, **options: Any) -> Any:
            bound = signature.bind(*arguments, **options)
            bound.apply_defaults()
            with terminal.tables_aside(str(bound.arguments.get("json")) == "-"):
                return run(Given(bound.arguments, sources))

        typed.sources = sources  # type: ignore[attr-defined]
        typed.__signature__ = signature  # type: ignore[attr-defined]
        typed.__annotations__ = {one.name: one.annotation for one in ordered}
        return typed

    return decorate


def _bare(kind: Any) -> Any:
    """A type without ``None``."""
    if get_origin(kind) not in (Union, UnionType):
        return kind
    return next(one for one in get_args(kind) if one is not NoneType)


def _readable(annotation: Any) -> Any:
    """The type that the command line reads for an annotation: lists for sequences, text for what has names."""
    if get_origin(annotation) in (Union, UnionType):
        kinds: list[Any] = [_readable(one) for one in get_args(annotation) if one is not NoneType]
        best = next((kind for kind in kinds if isinstance(kind, GenericAlias)), kinds[0])
        return best | None if NoneType in get_args(annotation) else best
    if get_origin(annotation) is Literal or annotation in (str, int, float, bool, Path):
        return annotation
    origin = get_origin(annotation)
    if isinstance(origin, type) and issubclass(origin, Iterable) and not issubclass(origin, Mapping):
        return list[_bare(_readable(get_args(annotation)[0]))]  # type: ignore[misc]
    return str


def _check_writable(kind: Any, path: Path | None) -> None:
    """Refuse a file that can't be made, before hours of work."""
    import os

    if path is not None and str(path) != "-" and (path.is_dir() or not os.access(path.parent, os.W_OK)):
        raise ValueError(f"{path} can't be written; name a file in a folder that exists")


def as_size(given: list[int] | None) -> int | tuple[int, ...] | None:
    """``--input-size`` as ``load_backbone`` takes it."""
    if given and len(given) > 2:
        raise SettingsError("--input-size takes one number, or height and width")
    return given[0] if given and len(given) == 1 else tuple(given) if given else None


def _shown(default: Any) -> str:
    """A default as it would be typed."""
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
