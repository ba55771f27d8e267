"""Where images come from, by name: a folder, a table, or the handwritten digits that come with scikit-learn.

- ``path/to/folder``: see ``tightframe.data.folder`` for the layouts
- ``path/to/table.csv``: see ``tightframe.data.table``, for miniImageNet's splits
- ``digits``, ``digits:0-4``, ``digits:1,3,8``: see ``tightframe.data.digits``

A folder that is itself called ``digits`` is ``./digits``, or a ``Path``, which always means a folder.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tightframe.data.digits import load_digits_images
from tightframe.data.folder import load_folder
from tightframe.data.selection import at_most, check_per_class, check_share
from tightframe.data.table import load_listed
from tightframe.images import ImageSplits
from tightframe.progress import Progress, silent


def load_images(
    uri: str | Path,
    *,
    test_share: float = 0.25,
    seed: int = 0,
    shots: int | None = None,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> ImageSplits:
    """Labeled images for training, and for testing where there are any.

    Args:
        uri: a folder of images, a CSV table of them, or ``digits`` with an optional choice of classes.
        test_share: share of every class held out where ``uri`` comes with no test set, in [0, 1); 0 for no test set.
        seed: which images are held out, and which are the shots.
        shots: at most so many training images a class; None for all. The test set stays whole.
        skip_bad: leave out what can't be read, and list it in ``skipped``, where it would be an error.
        progress: ``progress(iterable, description, total)``, called as tqdm is, around whatever takes long.

    Raises:
        BadImage: a file can't be used and ``skip_bad`` is off.
        DataError: the images are not laid out in classes, ``digits:`` names unknown classes, or ``shots`` is below 1.
        SettingsError: ``test_share`` or ``seed`` is out of range.

    """
    check_share(test_share)
    if shots is not None:
        check_per_class(shots)  # before hours of checking images
    scheme, colon, rest = str(uri).partition(":")
    if isinstance(uri, str) and scheme == "digits":
        splits = load_digits_images(rest if colon else None, test_share=test_share, seed=seed)
    else:
        load = load_listed if Path(uri).suffix.lower() == ".csv" and not Path(uri).is_dir() else load_folder
        splits = load(Path(uri), test_share=test_share, seed=seed, skip_bad=skip_bad, progress=progress)
    return splits if shots is None else replace(splits, train=at_most(splits.train, shots, seed))
