"""Options made of the parameters of functions: what is typed reaches them, and what is not leaves their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from cyclopts import App

from tightframe.cli.options import GROUPS, Source, command


def job(
    data: str,
    rate: float = 0.1,
    *,
    shots: Sequence[int] = (1, 5),
    layers: Sequence[str] | None = None,
    folder: Path | str | None = None,
    seed: int = 0,
    skip: bool = False,
    pretrained: bool = True,
) -> dict[str, object]:
    """Return what it is given."""
    return locals()


def other(seed: int = 7) -> int:
    """Return what it is given."""
    return seed


NAMES = ("data", "rate", "shots", "layers", "folder", "seed", "skip", "pretrained")


@pytest.fixture
def typed(monkeypatch):
    """What ``job`` and ``other`` are given for a command line."""

    @command(
        Source(job, NAMES, GROUPS["Options"], {"folder": "cache"}, ["data"]), Source(other, ["seed"], GROUPS["Images"])
    )
    def run(given):
        return given.call(job), given.call(other)

    def typed(*arguments):
        app = App(result_action="return_value", exit_on_error=False, print_error=False)
        app.default(run)
        return app(arguments)

    return typed


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (("--rate", "0.5"), "rate", 0.5),
        (("--shots", "2", "3"), "shots", (2, 3)),
        (("--layers", "a", "b"), "layers", ("a", "b")),
        (("--cache", "kept"), "folder", Path("kept")),
        (("--skip",), "skip", True),
        (("--no-pretrained",), "pretrained", False),
        (("--rate", "0"), "rate", 0.0),
    ],
)
def test_what_is_typed_reaches_the_function_and_the_rest_keeps_its_default(typed, arguments, name, value):
    (plain, _), (given, _) = typed("flowers"), typed("flowers", *arguments)
    assert plain == job("flowers")
    assert given == plain | {name: value}
    assert given != plain


def test_an_option_of_two_functions_is_given_to_both(typed):
    given, seed = typed("flowers", "--seed", "3")
    assert (given["seed"], seed) == (3, 3)
