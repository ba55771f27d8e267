"""Showing work as it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Item = TypeVar("Item")
Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Shows work going on: takes an iterable, what it is and how many items, and gives the same items back."""


def silent(items: Iterable[Item], description: str, total: int) -> Iterable[Item]:
    """The ``Progress`` that shows nothing."""
    return items
