"""Lists of classes: from files as people write them, and the published split."""

from __future__ import annotations

import pytest

from tightframe import load_images
from tightframe.data.class_lists import class_list
from tightframe.errors import DataError, SettingsError


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"tulip\nrose", ("tulip", "rose")),
        (b"\xef\xbb\xbftulip\r\n\r\n  rose \r\n", ("tulip", "rose")),  # as Windows writes it
        ("cafe\u0301\n".encode(), ("café",)),  # as macOS spells names of files
        (b"palm tree\n", ("palm tree",)),
    ],
)
def test_a_file_is_read(tmp_path, written, read):
    (tmp_path / "names.txt").write_bytes(written)
    assert class_list(tmp_path / "names.txt") == class_list(str(tmp_path / "names.txt")) == read


@pytest.mark.parametrize("written", [None, b"", b"\n \n", b"\xff\xfe\x00"])
def test_what_is_no_list_is_said(tmp_path, written):
    if written is not None:
        (tmp_path / "names.txt").write_bytes(written)
    with pytest.raises(DataError, match=r"names\.txt .*a name a line|names\.txt names no class"):
        class_list(tmp_path / "names.txt")


def test_published_classes_are_a_partition_of_cifar_100(shared):
    parts = {split: class_list(f"cifar-fs:{split}") for split in ("train", "val", "test")}
    assert [len(set(names)) for names in parts.values()] == [64, 16, 20]
    assert sorted(sum(parts.values(), ())) == list(load_images(shared / "data" / "cifar100").classes)
    with pytest.raises(SettingsError, match="choose train, val, test"):
        class_list("cifar-fs:tests")
