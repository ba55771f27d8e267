"""Few-shot episodes in which no group has images both to learn from and to be judged on.

Groups go to one of two sides, the support's or the queries', as chance has it, but so that both sides have images
enough: which numbers of images can still be reached is kept as the bits of a number (subset sums).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tightframe.errors import MeasureError

TRIES = 200
"""How often an episode is drawn anew where groups have images of several of its classes, and these get in each other's
way."""


def can_part(sizes: Sequence[int] | np.ndarray, shots: int, queries: int) -> bool:
    """Whether groups of these ``sizes`` can go to two sides, of ``shots`` and ``queries`` images or more."""
    whole = [int(size) for size in sizes]
    return _reachable(0, _sums(whole)[0], queries, sum(whole) - shots)


def draw_apart(
    members: Sequence[np.ndarray], groups: np.ndarray, ways: int, shots: int, queries: int, seed: tuple[int, int]
) -> np.ndarray:
    """Rows (ways, queries + shots) of one episode of classes with rows ``members``, of ``groups`` 0 … G − 1, (n,).

    Raises:
        MeasureError: no such episode is found.
    """
    generator = np.random.default_rng(seed)
    for _ in range(TRIES):
        side, rows = dict[int, bool](), list[np.ndarray]()
        for one in np.argsort(generator.random(len(members)), kind="stable")[:ways]:
            shuffled = members[one][np.argsort(generator.random(len(members[one])), kind="stable")]
            own, counts = np.unique(groups[shuffled], return_counts=True)
            order = np.argsort(generator.random(len(own)), kind="stable")
            sizes = dict(zip(own[order].tolist(), counts[order].tolist(), strict=True))
            parted = _parted(sizes, side, shots, queries)
            if parted is None:
                break
            side |= parted
            asked = np.array([side[group] for group in groups[shuffled].tolist()])
            rows.append(np.concatenate([shuffled[asked][:queries], shuffled[~asked][:shots]]))
        else:
            return np.stack(rows)
    raise MeasureError(
        f"no episode of {ways} classes was found with {shots} shots and {queries} queries of different groups: groups "
        "have images of several classes; ask for fewer ways, shots or queries"
    )


def _parted(sizes: Mapping[int, int], side: Mapping[int, bool], shots: int, queries: int) -> dict[int, bool] | None:
    """Which of a class's groups, in this order and of these sizes, go to the queries, beside those in ``side``.

    ``None`` where too few images are left for one of the sides.
    """
    asked = sum(size for group, size in sizes.items() if side.get(group, False))
    free = [group for group in sizes if group not in side]
    sums, most = _sums([sizes[group] for group in free]), sum(sizes.values()) - shots
    if not _reachable(asked, sums[0], queries, most):
        return None
    parted = dict.fromkeys(free, False)
    for place, group in enumerate(free):
        if asked < queries and _reachable(asked + sizes[group], sums[place + 1], queries, most):
            asked += sizes[group]
            parted[group] = True
    return parted


def _sums(sizes: Sequence[int]) -> list[int]:
    """Sums of some of ``sizes[i:]``, as bits of the i-th number; the last is 1, for the sum of none."""
    sums = [1]
    for size in reversed(sizes):
        sums.append(sums[-1] | sums[-1] << size)
    return sums[::-1]


def _reachable(asked: int, sums: int, least: int, most: int) -> bool:
    """Whether ``asked`` and one of ``sums`` together are from ``least`` to ``most``."""
    fewest = max(least - asked, 0)
    width = most - asked - fewest + 1
    return width > 0 and bool((sums >> fewest) & ((1 << width) - 1))
