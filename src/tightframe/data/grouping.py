r"""Groups read off file names: frames of one film, slices of one patient, crops of one picture.

A pattern is a regular expression that is searched for in each image's name. What its parentheses matched names the
image's group, or all that it matched where it has none, or where none of them took part in the match: with
``.*?film(\d+)_|.+`` every image whose name has no film in it is a group by itself. Images of several classes may be in
one group.

Python's regular expressions have no time limit, and a pattern with repeats in repeats, as ``(a+)+$``, can take forever:
patterns are for the user's own command line, not for a stranger's request.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from tightframe.errors import DataError, SettingsError
from tightframe.images import ImageSplits

EXAMPLE = r"give one like 'film(\d+)_', whose parentheses hold what images of one group have in common"


def compiled(pattern: str) -> re.Pattern[str]:
    """The regular expression. Raises ``SettingsError`` for one that Python can't read, or that is empty."""
    if not pattern:
        raise SettingsError(f"--groups-from is empty; {EXAMPLE}")
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise SettingsError(f"--groups-from {pattern!r} is no regular expression ({error}); {EXAMPLE}") from error


def grouped(splits: ImageSplits, pattern: re.Pattern[str]) -> ImageSplits:
    """The same images, each in the group that ``pattern`` finds in its name.

    Raises:
        SettingsError: the source has groups of its own.
        DataError: the pattern is not found in some names.
    """
    parts = [splits.train, *([splits.test] if splits.test is not None else [])]
    if any(part.groups is not None for part in parts):
        raise SettingsError(
            f"{splits.name} has groups of its own; leave out --groups-from, or the column of groups (--group-column)"
        )
    names = [name for part in parts for name in part.identifiers]
    found = [pattern.search(name) for name in names]
    if missing := [name for name, match in zip(names, found, strict=True) if match is None]:
        part = f"(?:{pattern.pattern})" if pattern.groups else f"({pattern.pattern})"
        raise DataError(
            f"--groups-from {pattern.pattern!r} is not found in the names of {len(missing)} of {len(names)} images, "
            f"the first being {missing[0]}. Correct it, or give '.*?{part}|.+' to let images like that stand alone"
        )
    keys = [_key(match) for match in found if match is not None]
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    groups = np.array([numbers[key] for key in keys], dtype=np.int64)
    train, test = groups[: len(splits.train)], groups[len(splits.train) :]
    unseen = splits.test and replace(splits.test, groups=test)
    return replace(splits, train=replace(splits.train, groups=train), test=unseen)


def _key(match: re.Match[str]) -> tuple[str, ...]:
    """What names the group: a whole match is no one's parentheses."""
    if all(part is None for part in match.groups()):
        return "", match.group()
    return "(", *(part or "" for part in match.groups())
