"""Every source of images, in its own format on disk, against the same list of what has to hold.

A new source is a function that writes ``Picture``s in its format, and a line in ``SOURCES``.
"""

from __future__ import annotations

import csv
import io
import json
import pickle
import shutil
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tightframe.data.loading import load_images
from tightframe.errors import BadImage, DataError

datasets = pytest.importorskip("datasets")
fsspec = pytest.importorskip("fsspec")
pandas = pytest.importorskip("pandas")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
torch = pytest.importorskip("torch")

BROKEN = b"\x89PNG\r\n\x1a\n cut short"


@dataclass(frozen=True)
class Picture:
    """A gray image, whose gray tells its class (``gray // 40``); ``content`` in place of its own bytes."""

    split: str
    cls: str
    name: str
    gray: int
    content: bytes = b""

    def image(self) -> Image.Image:
        return Image.new("RGB", (8, 8), (self.gray,) * 3)

    def bytes(self) -> bytes:
        if self.content:
            return self.content
        stream = io.BytesIO()
        self.image().save(stream, "PNG")
        return stream.getvalue()

    @property
    def path(self) -> str:
        return f"{self.split}/{self.cls}/{self.name}.png"


def world(classes: Sequence[str] = ("ant", "bee", "cow"), names: str = "{}") -> list[Picture]:
    """Four training and two test images a class, in no order."""
    pictures = [
        Picture(
            split, cls, names.format(f"{split}{index}"), 40 * number + 5 + 3 * index + (15 if split == "test" else 0)
        )
        for number, cls in enumerate(classes)
        for split, count in (("train", 4), ("test", 2))
        for index in range(count)
    ]
    return pictures[1::2] + pictures[::2]


# How each source keeps them


def folder(root: Path, pictures: Sequence[Picture]) -> dict[str, Any]:
    for one in pictures:
        (root / one.path).parent.mkdir(parents=True, exist_ok=True)
        (root / one.path).write_bytes(one.bytes())
    return {"source": root}


def zipped(root: Path, pictures: Sequence[Picture], how: int = zipfile.ZIP_DEFLATED, top: str = "") -> dict[str, Any]:
    with zipfile.ZipFile(root / "set.zip", "w", how) as archive:
        for one in pictures:
            archive.writestr(top + one.path, one.bytes())
    return {"source": root / "set.zip"}


def stored(root: Path, pictures: Sequence[Picture]) -> dict[str, Any]:
    return zipped(root, pictures, zipfile.ZIP_STORED, "everything/")


def tarred(root: Path, pictures: Sequence[Picture], mode: str = "w", name: str = "set.tar") -> dict[str, Any]:
    with tarfile.open(root / name, mode) as archive:
        for one in pictures:
            add(archive, one.path, one.bytes())
    return {"source": str(root / name)}


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def gzipped(root: Path, pictures: Sequence[Picture]) -> dict[str, Any]:
    return tarred(root, pictures, "w:gz", "set.tar.gz")


def rows(root: Path, pictures: Sequence[Picture]) -> list[dict[str, str]]:
    folder(root / "images", pictures)
    return [{"file": one.path, "class": one.cls, "fold": one.split, "who": one.name} for one in pictures]


def commas(root: Path, pictures: Sequence[Picture], delimiter: str = ",", name: str = "set.csv") -> dict[str, Any]:
    listed = rows(root, pictures)
    with (root / name).open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.DictWriter(file, ["file", "class", "fold", "who"], delimiter=delimiter, quoting=csv.QUOTE_ALL)
        table.writeheader()
        table.writerows(listed)
    return {"source": root / name, "split_column": "fold"}


def tabs(root: Path, pictures: Sequence[Picture]) -> dict[str, Any]:
    return commas(root, pictures, "\t", "set.tsv")


def semicolons(root: Path, pictures: Sequence[Picture]) -> dict[str, Any]:
    (root / "here").mkdir(exist_ok=True)
    return {**commas(root / "here", pictures, ";"), "root": root / "here" / "images"}


def lines(root: Path, pictures: Sequence[Picture]) -> dict[str, Any]:
    (root / "set.jsonl").write_text("\n".join(json.dumps(row) for row in rows(root, pictures)), encoding="utf-8")
    return {"source": root / "set.jsonl", "split_column": "fold", "label_column": "class"}


def columnar(root: Path, pictures: Sequence[Picture]) -> dict[str, Any]:
    parquet.write_table(pyarrow.Table.from_pylist(rows(root, pictures)), root / "set.parquet")
    return {"source": root / "set.parquet", "split_column": "fold"}


def frame(root: Path, pictures: Sequence[Picture]) -> dict[str, Any]:
    listed = pandas.DataFrame(rows(root, pictures))
    return {"source": listed, "split_column": "fold", "root": root}


def shards(root: Path, pictures: Sequence[Picture], note: str = ".cls") -> dict[str, Any]:
    names = list(dict.fromkeys(one.cls for one in sorted(pictures, key=lambda one: one.gray)))
    splits = sorted({one.split for one in pictures})
    for split in splits:
        with tarfile.open(root / f"{split}-000.tar", "w") as archive:
            for one in (one for one in pictures if one.split == split):
                said = str(names.index(one.cls)) if note == ".cls" else json.dumps({"label": one.cls})
                key = one.path.removesuffix(".png").replace(".", "")
                add(archive, f"{key}{note}", said.encode())
                add(archive, f"{key}.png", one.bytes())
    if note == ".cls":
        (root / "classes.txt").write_text("\n".join(names), encoding="utf-8")
    return {"source": f"webdataset:{root}/{{{','.join(splits)}}}-000.tar"}


def noted(root: Path, pictures: Sequence[Picture]) -> dict[str, Any]:
    return {**shards(root, pictures, ".json"), "source": f"webdataset:{root}/*-{{000..000}}.tar"}


def hub_images(root: Path, pictures: Sequence[Picture]) -> dict[str, Any]:
    return {"source": f"hf/{folder(root / 'set', pictures)['source']}"}


def hub_split(pictures: Sequence[Picture]) -> Any:
    names = list(dict.fromkeys(one.cls for one in sorted(pictures, key=lambda one: one.gray)))
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    made = {}
    for split in ("train", "test"):
        kept = [one for one in pictures if one.split == split]
        content = [{"bytes": one.bytes(), "path": None} for one in kept]
        columns = {"image": content, "label": [names.index(one.cls) for one in kept]}
        made[split] = datasets.Dataset.from_dict(columns, features=kinds)
    return datasets.DatasetDict({split: one for split, one in made.items() if len(one)})


def hub_saved(root: Path, pictures: Sequence[Picture]) -> dict[str, Any]:
    hub_split(pictures).save_to_disk(root / "set")
    return {"source": f"hf/{root / 'set'}"}


def hub_parquet(root: Path, pictures: Sequence[Picture]) -> dict[str, Any]:
    for split, one in hub_split(pictures).items():
        (root / "set" / "data").mkdir(parents=True, exist_ok=True)
        one.to_parquet(root / "set" / "data" / f"{split}-00000-of-00001.parquet")
    return {"source": f"hf/{root / 'set'}"}


def hub_object(root: Path, pictures: Sequence[Picture]) -> dict[str, Any]:
    return {"source": hub_split(pictures)}


class Pets(torch.utils.data.Dataset):
    """As people write them; ``classes`` in order of gray."""

    def __init__(self, pictures: Sequence[Picture], kind: str) -> None:
        self.pictures, self.kind = list(pictures), kind
        self.classes = list(dict.fromkeys(one.cls for one in sorted(pictures, key=lambda one: one.gray)))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        one = self.pictures[index]
        image = Image.open(io.BytesIO(one.bytes()))
        values = np.asarray(image)
        tensor = torch.from_numpy(values.copy()).permute(2, 0, 1).float() / 255
        return {"pil": image, "array": values, "tensor": tensor}[self.kind], self.classes.index(one.cls)


def by_split(pictures: Sequence[Picture], make: Callable[[list[Picture]], Any]) -> dict[str, Any]:
    both = {split: [one for one in pictures if one.split == split] for split in ("train", "test")}
    return {"source": {split: make(some) for split, some in both.items() if some}}


def pytorch(root: Path, pictures: Sequence[Picture]) -> dict[str, Any]:
    return by_split(pictures, lambda some: Pets(some, "tensor"))


def pairs(root: Path, pictures: Sequence[Picture]) -> dict[str, Any]:
    folder(root, pictures)
    return by_split(pictures, lambda some: ([root / one.path for one in some], [one.cls for one in some]))


def arrays(root: Path, pictures: Sequence[Picture]) -> dict[str, Any]:
    return by_split(
        pictures, lambda some: (np.stack([np.asarray(one.image()) for one in some]), [one.cls for one in some])
    )


def elsewhere(make: Callable[..., dict[str, Any]]) -> Callable[[Path, Sequence[Picture]], dict[str, Any]]:
    """The same at an address: ``memory://``, a file system of fsspec's for tests."""

    def copied(root: Path, pictures: Sequence[Picture]) -> dict[str, Any]:
        made = make(root, pictures)
        memory = fsspec.filesystem("memory")
        for path in (one for one in root.rglob("*") if one.is_file()):
            memory.pipe_file(f"memory:/{path}", path.read_bytes())
        made["source"] = str(made["source"]).replace(str(root), f"memory:/{root}")
        shutil.rmtree(root)
        return made

    return copied


@dataclass(frozen=True)
class Source:
    """One line of the table.

    Attributes:
        make: writes pictures, and returns the arguments of ``load_images``.
        names: whether images are called by their own names.
        files: whether an image may be damaged.
        deep: whether images may lie deeper than in the folder of their class.
    """

    make: Callable[[Path, Sequence[Picture]], dict[str, Any]]
    names: bool = True
    files: bool = True
    deep: bool = True


SOURCES = {
    "folder": Source(folder),
    "zip": Source(zipped),
    "zip, stored, in one folder": Source(stored),
    "tar": Source(tarred),
    "tar.gz": Source(gzipped),
    "csv": Source(commas),
    "tsv": Source(tabs),
    "semicolons, root": Source(semicolons),
    "jsonl": Source(lines),
    "parquet": Source(columnar),
    "data frame": Source(frame),
    "webdataset, cls": Source(shards),
    "webdataset, json": Source(noted),
    "hf, image folder": Source(hub_images, names=False, deep=False),
    "hf, saved": Source(hub_saved, names=False),
    "hf, parquet": Source(hub_parquet, names=False),
    "hf, object": Source(hub_object, names=False),
    "pytorch": Source(pytorch, names=False),
    "paths": Source(pairs),
    "arrays": Source(arrays, names=False, files=False),
    "folder elsewhere": Source(elsewhere(folder)),
    "zip elsewhere": Source(elsewhere(zipped)),
    "csv elsewhere": Source(elsewhere(commas)),
    "webdataset elsewhere": Source(elsewhere(shards)),
    "hf elsewhere": Source(elsewhere(hub_parquet), names=False),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIGHTFRAME_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    return tmp_path / "cache"


@pytest.fixture(params=SOURCES.values(), ids=SOURCES.keys())
def source(request: pytest.FixtureRequest) -> Source:
    return request.param


@pytest.fixture
def load(source: Source, tmp_path: Path) -> Callable[..., Any]:
    """Write pictures as the source does, and load them."""

    def load(pictures: Sequence[Picture], **more: Any) -> Any:
        root = tmp_path / "set"
        root.mkdir(exist_ok=True)
        return load_images(**{**source.make(root, pictures), **more})

    return load


def grays(images: Any) -> list[int]:
    return [images[index].getpixel((0, 0))[0] for index in range(len(images))]


def test_images_have_their_labels_and_splits(load) -> None:
    data = load(world())
    assert data.classes == ("ant", "bee", "cow")
    assert data.train.labels.tolist() == [gray // 40 for gray in grays(data.train)]
    assert data.test.labels.tolist() == [gray // 40 for gray in grays(data.test)]
    for split, images in (("train", data.train), ("test", data.test)):
        assert sorted(grays(images)) == sorted(one.gray for one in world() if one.split == split)
    assert data.skipped == ()
    assert not data.leaks


def test_the_same_files_are_the_same_data(source, tmp_path) -> None:
    (tmp_path / "set").mkdir()
    made = source.make(tmp_path / "set", world())
    first, again = load_images(**made), load_images(**made)
    assert first.train.identifiers == again.train.identifiers
    assert first.train.fingerprint == again.train.fingerprint != first.test.fingerprint
    assert len({*first.train.identifiers, *first.test.identifiers}) == 18
    assert str(tmp_path) not in repr(first)


def test_other_pixels_are_other_data(source, tmp_path) -> None:
    found = []
    for change in (0, 1):
        (tmp_path / f"{change}").mkdir()
        pictures = [replace(one, gray=one.gray + change * (one.name == "train2")) for one in world()]
        found.append(load_images(**source.make(tmp_path / f"{change}", pictures)).train.fingerprint)
    assert found[0] != found[1]


def test_a_process_can_be_handed_them(load) -> None:
    data = load(world())
    again = pickle.loads(pickle.dumps(data.train))
    assert again.fingerprint == data.train.fingerprint
    assert grays(again) == grays(data.train)
    assert pickle.loads(pickle.dumps(data.train.subset([2]))).identifiers == data.train.identifiers[2:3]


def test_without_a_test_set_a_share_is_held_out(load) -> None:
    data = load([one for one in world() if one.split == "train"], test_share=0.5)
    assert np.bincount(data.train.labels).tolist() == np.bincount(data.test.labels).tolist() == [2, 2, 2]
    assert data.train.labels.tolist() == [gray // 40 for gray in grays(data.train)]


def test_a_damaged_image_is_named_or_left_out(source, load) -> None:
    if not source.files:
        pytest.skip("arrays can't be damaged")
    pictures = [replace(one, content=BROKEN if one.gray == 48 else b"") for one in world()]
    with pytest.raises(BadImage) as raised:
        grays(load(pictures).train)
    assert not source.names or "train1" in str(raised.value)
    data = load(pictures, skip_bad=True)
    assert len(data.train) == 11
    assert 48 not in grays(data.train)
    assert len(data.skipped) == 1


def test_names_may_be_in_any_language(load) -> None:
    classes = (unicodedata.normalize("NFD", "Blüte"), "猫", "the rose, wild")
    data = load(world(sorted(classes), "фото {} 写真"))
    assert set(data.classes) == {unicodedata.normalize("NFC", one) for one in classes}
    assert len(grays(data.train)) == 12


def test_labels_are_text(load) -> None:
    data = load(world(("01", "1", "10")))
    assert data.classes == ("01", "1", "10")
    assert data.train.labels.tolist() == [gray // 40 for gray in grays(data.train)]


def test_a_class_without_training_images_is_named_or_left_out(source, load) -> None:
    pictures = [one for one in world() if not (one.cls == "cow" and one.split == "train")]
    with pytest.raises(DataError, match="cow"):
        load(pictures)
    if source.make is folder or source is SOURCES["folder elsewhere"]:
        return  # an error even so: splits may be meant to differ in classes
    data = load(pictures, skip_bad=True)
    assert data.classes == ("ant", "bee")
    assert sorted(grays(data.test)) == [20, 23, 60, 63]
    assert any("cow" in line for line in data.skipped)


def test_images_of_one_name_are_told_apart(load) -> None:
    names = {
        name: f"{number % 4}" for number, name in enumerate(("train0", "train1", "train2", "train3", "test0", "test1"))
    }
    data = load([replace(one, name=names[one.name]) for one in world()])
    assert len({*data.train.identifiers, *data.test.identifiers}) == 18
    assert len(set(grays(data.train))) == 12


def test_images_may_lie_deeper(source, load) -> None:
    if not source.deep:
        with pytest.raises(DataError, match="no column of labels"):  # datasets takes the last folder for the class
            load(world(names="2020/may/{}"))
        return
    data = load(world(names="2020/may/{}"))
    assert data.train.labels.tolist() == [gray // 40 for gray in grays(data.train)]
    assert len(data.train) == 12
