"""The one way to labeled images, wherever they are, named by one argument."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tightframe.data.decoding import MAX_PIXELS, WHITE, decoding
from tightframe.data.grouping import compiled, grouped
from tightframe.data.records import Columns, Reading
from tightframe.data.selection import at_most, check_per_class, check_seed, check_share, hold_out
from tightframe.data.sources.door import load_source
from tightframe.images import ImageSplits
from tightframe.progress import Progress, silent


def load_images(
    source: object,
    *,
    test_share: float = 0.25,
    seed: int = 0,
    max_per_class: int | None = None,
    groups_from: str | None = None,
    skip_bad: bool = False,
    root: Path | str | None = None,
    download: bool = False,
    max_pixels: int = MAX_PIXELS,
    white_level: int = WHITE,
    min_classes: int = 2,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
    progress: Progress = silent,
) -> ImageSplits:
    r"""Load labeled images: a training set and, where there are images for one, a test set.

    From Python ``source`` may also be a PyTorch ``Dataset`` of (image, label), a pair ``(images, labels)`` of paths,
    arrays or images of Pillow's, a ``datasets.Dataset``, a pandas ``DataFrame``, or a dictionary of such by split:
    ``{"train": …, "test": …}``.

    Args:
        source: The images: a folder, zip or tar with train/CLASS/… and test/CLASS/… (or val/CLASS/…), or CLASS/… alone;
            a table of paths and labels (CSV, TSV, JSONL, parquet); torchvision/NAME; hf/NAME[/CONFIG][:SPLIT] or
            hf/PATH; webdataset:PATTERN; an address of any of these (s3://…); or the built-in digits, as in digits:0-4
            and digits:1,3,8 (a folder of that name is ./digits).
        test_share: Share of each class held out for testing (0 for none) where there is no test set.
        seed: Seed of every random choice.
        max_per_class: Most training images to use from each class; the test set stays whole.
        groups_from: Regular expression for what images that belong together share in their names, such as 'film(\d+)_';
            they stay on one side of every split.
        skip_bad: Leave out files that can't be read, and say how many, instead of stopping.
        root: Folder that a table's images, or torchvision's datasets, lie in.
        download: Fetch torchvision/NAME if it is not there.
        max_pixels: Most pixels that an image may declare: a larger file may be made to fill the memory. JPEGs beyond it
            are decoded at a fraction of their size.
        white_level: The 16-bit gray that becomes white, such as 4095 where images of 12 bits are kept in 16.
        min_classes: Fewest classes to go on with: 1 where a model of more is to be judged on images of one.
        image_column: Column of a table with paths, if its name is unusual.
        label_column: Column of a table with labels, if its name is unusual.
        split_column: Column of a table that says train, val or test.
        group_column: Column of a table by which images belong together.
        progress: Called as progress(iterable, description, total) around whatever takes long, like tqdm.

    The pattern is searched for in the path below the data folder; what its parentheses match, or all of it if it has
    none, names the group. Intervals are over groups then.

    Raises:
        BadImage: files can't be used, and ``skip_bad`` is off.
        DataError: there is nothing of that name, its images are not laid out in classes, files are missing, or
            ``groups_from`` is not found in some names.
        PackageMissing: an optional package is needed.
        SettingsError: ``test_share``, ``seed``, ``max_per_class``, ``max_pixels`` or ``white_level`` is out of range,
            an option has no meaning here, or ``groups_from`` is no regular expression.
    """
    check_share(test_share)
    check_seed(seed)
    if max_per_class is not None:
        check_per_class(max_per_class)  # before hours of checking images
    how = decoding(max_pixels, white_level)
    pattern = None if groups_from is None else compiled(groups_from)
    held_out = test_share if pattern is None else 0.0  # groups are found before anything is held out
    columns = Columns(image_column, label_column, split_column, group_column)
    place = None if root is None else Path(root).expanduser()
    splits = load_source(
        source, Reading(held_out, seed, skip_bad, progress, place, download, columns, how, min_classes)
    )
    if pattern is not None:
        splits = grouped(splits, pattern)
        if splits.test is None:
            splits = hold_out(splits.name, splits.train, test_share, seed, splits.skipped)
    return splits if max_per_class is None else replace(splits, train=at_most(splits.train, max_per_class, seed))
