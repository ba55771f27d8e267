"""Which classes to take, by name: a file with one name a line, or a published split of few-shot evaluation.

- ``path/to/file``: one class name a line; empty lines are passed over
- ``cifar-fs:train``, ``cifar-fs:val``, ``cifar-fs:test``: of CIFAR-100's classes 64, 16 and 20 (Bertinetto et al.,
  ICLR 2019), as torchmeta lists them
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

from tightframe.errors import DataError, SettingsError

_CIFAR_FS = {
    "train": """
        apple aquarium_fish bear bee bottle bowl boy bridge bus can castle caterpillar chair clock cloud cockroach
        couch cup dinosaur dolphin elephant forest girl hamster house kangaroo keyboard lawn_mower lion lizard
        lobster mountain mouse mushroom oak_tree orange orchid palm_tree pear pine_tree plate porcupine possum
        rabbit raccoon ray road seal shrew skunk skyscraper snake spider squirrel streetcar sunflower tank tiger
        train trout tulip turtle willow_tree wolf
    """,
    "val": """
        beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea shark
        television tractor
    """,
    "test": """
        baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper table
        telephone wardrobe whale woman worm
    """,
}


def class_list(uri: str | Path) -> tuple[str, ...]:
    """Class names, in the order of the file or of the alphabet.

    Raises:
        DataError: the file can't be read as text, or names no class.
        SettingsError: ``cifar-fs:`` with another word than train, val or test.

    """
    scheme, colon, split = str(uri).partition(":")
    if isinstance(uri, str) and colon and scheme == "cifar-fs":
        if split not in _CIFAR_FS:
            raise SettingsError(f"CIFAR-FS has no split {split!r}; choose {', '.join(_CIFAR_FS)}")
        return tuple(_CIFAR_FS[split].split())
    try:
        lines = Path(uri).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{uri} can't be read as a list of classes ({error}); give a text file, a name a line"
        ) from error
    names = tuple(unicodedata.normalize("NFC", line.strip()) for line in lines if line.strip())
    if not names:
        raise DataError(f"{uri} names no class; write one name a line")
    return names
