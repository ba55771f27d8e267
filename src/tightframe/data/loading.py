"""The one way to labeled images: a folder, a table or the built-in digits, named by one argument."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tightframe.data.digits import load_digit_images
from tightframe.data.folder import load_folder
from tightframe.data.grouping import compiled, grouped
from tightframe.data.selection import at_most, check_per_class, check_seed, check_share, hold_out
from tightframe.data.table import load_table
from tightframe.images import ImageSplits
from tightframe.progress import Progress, silent


def load_images(
    source: str | Path,
    *,
    test_share: float = 0.25,
    seed: int = 0,
    max_per_class: int | None = None,
    groups_from: str | None = None,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> ImageSplits:
    r"""Load labeled images: a training set and, where there are images for one, a test set.

    Args:
        source: The images: a folder with train/CLASS/… and test/CLASS/… (or val/CLASS/…), a folder with CLASS/… alone,
            a CSV table with the columns filename and label (its images beside it or in images/), or the built-in
            digits, of which digits:0-4 and digits:1,3,8 take some (a folder of that name is ./digits).
        test_share: Share of each class held out for testing (0 for none) where there is no test set.
        seed: Seed of every random choice.
        max_per_class: Most training images to use from each class; the test set stays whole.
        groups_from: Regular expression for what images that belong together share in their names, such as 'film(\d+)_';
            they stay on one side of every split.
        skip_bad: Leave out files that can't be read, and say how many, instead of stopping.
        progress: Called as progress(iterable, description, total) around whatever takes long, like tqdm.

    The pattern is searched for in the path below the data folder; what its parentheses match, or all of it if it has
    none, names the group. Intervals are over groups then.

    Raises:
        BadImage: files can't be used, and ``skip_bad`` is off.
        DataError: the images are not laid out in classes, ``digits:`` names unknown ones, or ``groups_from`` is not
            found in some names.
        SettingsError: ``test_share``, ``seed`` or ``max_per_class`` is out of range, or ``groups_from`` is no regular
            expression.
    """
    check_share(test_share)
    check_seed(seed)
    if max_per_class is not None:
        check_per_class(max_per_class)  # before hours of checking images
    pattern = None if groups_from is None else compiled(groups_from)
    held_out = test_share if pattern is None else 0.0  # groups are found before anything is held out
    scheme, colon, digits = str(source).partition(":")
    if isinstance(source, str) and scheme == "digits":
        splits = load_digit_images(digits if colon else None, test_share=held_out, seed=seed)
    else:
        path = Path(source)
        load = load_table if path.suffix.lower() == ".csv" and not path.is_dir() else load_folder
        splits = load(path, test_share=held_out, seed=seed, skip_bad=skip_bad, progress=progress)
    if pattern is not None:
        splits = grouped(splits, pattern)
        if splits.test is None:
            splits = hold_out(splits.name, splits.train, test_share, seed, splits.skipped)
    return splits if max_per_class is None else replace(splits, train=at_most(splits.train, max_per_class, seed))
