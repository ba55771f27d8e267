"""What Python has already, and how what can't be used is said; addresses; and what of a hub's dataset is not read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, RandomCrop, ToTensor

from tightframe.data.loading import load_images
from tightframe.errors import BadImage, DataError, PackageMissing

PIXELS = np.stack([np.full((6, 6, 3), 10 * index, dtype=np.uint8) for index in range(8)])
LABELS = [0, 1] * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, label in enumerate(LABELS):
        path = tmp_path / "set" / ("ant", "bee")[label] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[index]).save(path)
    return tmp_path / "set"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIGHTFRAME_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def grays(images: Any) -> list[int]:
    return [images[index].getpixel((0, 0))[0] for index in range(len(images))]


@pytest.mark.parametrize(
    "labels",
    [LABELS, np.array(LABELS), torch.tensor(LABELS), [str(one) for one in LABELS], [float(one) for one in LABELS]],
)
def test_labels_are_numbers_or_names(labels) -> None:
    data = load_images((PIXELS, labels), test_share=0.0).train
    assert data.classes == ("0", "1")
    assert data.labels.tolist() == LABELS
    assert grays(data) == [10 * index for index in range(8)]


def test_numbers_are_in_the_order_of_their_values() -> None:
    assert load_images((PIXELS, [10, 9, 2, 10, 9, 2, 2, 9]), test_share=0.0).classes == ("2", "9", "10")


@pytest.mark.parametrize(
    "images",
    [
        [Image.fromarray(one) for one in PIXELS],
        list(PIXELS),
        [Image.fromarray(one).convert("L") for one in PIXELS],
        torch.from_numpy(PIXELS),
    ],
)
def test_images_of_any_kind(images) -> None:
    assert grays(load_images((images, LABELS), test_share=0.0).train) == [10 * index for index in range(8)]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ((PIXELS, LABELS[1:]), "8 images and 7 labels"),
        ((PIXELS.astype(float), LABELS), "give paths, or bytes"),
        ((PIXELS, [None] * 8), "None is no label"),
        (("abc", [1, 2, 3]), "is not a list of images"),
        (([PIXELS], [1]), "8 images in one array"),
        (([Path(__file__).parent], [1]), "is a folder"),
        (7, "is no source of images; give a path"),
        ({}, "without splits"),
        (None, "is no source of images"),
    ],
)
def test_what_is_none_of_these_says_what_is(source, said) -> None:
    with pytest.raises(DataError, match=said):
        load_images(source)


def test_a_dataset_of_torchvision_is_the_folder(folder) -> None:
    data = load_images(ImageFolder(folder), test_share=0.0).train
    assert data.classes == ("ant", "bee")
    assert sorted(grays(data)) == grays(load_images((PIXELS, LABELS), test_share=0.0).train)
    half = load_images(Subset(ImageFolder(folder), [0, 1, 6, 7]), test_share=0.0).train
    assert (half.classes, half.labels.tolist()) == (("ant", "bee"), [0, 0, 1, 1])
    both = load_images(ConcatDataset([ImageFolder(folder), ImageFolder(folder)]), test_share=0.0).train
    assert (both.classes, len(both)) == (("0", "1"), 16)
    splits = load_images({"train": ImageFolder(folder), "test": Subset(ImageFolder(folder), [0])})
    assert (len(splits.train), len(splits.test), splits.test.classes) == (8, 1, ("ant", "bee"))


def test_labels_that_are_listed_are_not_looked_for(folder) -> None:
    read = []
    data = ImageFolder(folder, loader=lambda path: read.append(path) or Image.open(path).convert("RGB"))
    load_images(data)
    assert len(read) <= 5
    moved = ImageFolder(folder, target_transform=lambda label: 1 - label)
    assert load_images(moved, test_share=0.0).train.labels.tolist() == [1] * 4 + [0] * 4


def test_tensors(folder) -> None:
    unit = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255
    for images in (unit, unit[:, :1], unit.mul(255).round().to(torch.uint8)):
        data = load_images(TensorDataset(images, torch.tensor(LABELS)), test_share=0.0).train
        assert grays(data) == [10 * index for index in range(8)]
    with pytest.raises(BadImage, match="leave Normalize out"):
        grays(load_images(ImageFolder(folder, Compose([ToTensor(), Normalize(0.5, 0.5)]))).train)
    with pytest.raises(BadImage, match="give an image"):
        grays(load_images(TensorDataset(torch.zeros(4, 2, 2, dtype=torch.int64), torch.tensor([0, 1] * 2))).train)


def test_random_transforms_are_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)

    class Cropped(Dataset[Any]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return RandomCrop(8)(Image.fromarray(noise)), index % 2

    with pytest.raises(DataError, match="take random transforms out"):
        load_images(Cropped())


def test_iterable_datasets_and_others_are_refused() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(())

    class Bare(Dataset[Any]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> int:
            return index

    with pytest.raises(DataError, match="map-style"):
        load_images(Stream())
    with pytest.raises(DataError, match=r"has to give \(image, label\)"):
        load_images(Bare())


def test_a_frame_of_images_and_of_paths(folder, monkeypatch) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"image": list(PIXELS), "label": LABELS, "who": ["a", "a", "b", "b", "c", "c", None, None]}
    )
    data = load_images(frame, group_column="who", test_share=0.0).train
    assert (data.classes, len(data), len(set(data.groups.tolist()))) == (("0", "1"), 8, 5)
    paths = pandas.DataFrame({"path": sorted(map(str, folder.rglob("*.png"))), "label": ["x"] * 4 + ["y"] * 4})
    assert load_images(paths, root=folder).classes == ("x", "y")
    monkeypatch.chdir(folder.parent)
    assert load_images(paths).classes == ("x", "y")
    monkeypatch.chdir(folder / "ant")
    with pytest.raises(BadImage, match="--root"):
        load_images(paths)


# Addresses


def test_what_changed_elsewhere_is_fetched_anew(folder, cache) -> None:
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for path in folder.rglob("*.png"):
        memory.pipe_file(f"memory://changing/{path.relative_to(folder)}", path.read_bytes())
    before = load_images("memory://changing", test_share=0.0)
    assert before.train.fingerprint == load_images(folder, test_share=0.0).train.fingerprint
    assert before.name == "changing"
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*.png")}
    load_images("memory://changing")
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.png")} == files
    stream = io.BytesIO()
    Image.new("RGB", (9, 9), (99,) * 3).save(stream, "PNG")
    memory.pipe_file("memory://changing/ant/0.png", stream.getvalue())
    memory.rm_file("memory://changing/bee/1.png")
    after = load_images("memory://changing/", test_share=0.0).train
    assert (len(after), grays(after)[0]) == (7, 99)
    assert before.train[0].getpixel((0, 0)) == (0, 0, 0)  # what was fetched stays as it was


def test_names_elsewhere_can_not_lead_out(cache) -> None:
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for index in range(4):
        stream = io.BytesIO()
        Image.fromarray(PIXELS[index]).save(stream, "PNG")
        memory.pipe_file(f"memory://climbing/{('ant', 'bee')[index % 2]}/{index}.png", stream.getvalue())
    memory.store["/climbing/../../evil.png"] = memory.store["/climbing/ant/0.png"]
    assert len(load_images("memory://climbing", test_share=0.0).train) == 4
    assert not list(cache.rglob("evil.png"))
    memory.pipe_file("memory://climbing/set.csv", b"file,label\nant/0.png,a\nbee/1.png,b\n../../evil.png,a\n")
    with pytest.raises(BadImage, match=r"evil\.png"):
        load_images("memory://climbing/set.csv")
    assert not list(cache.rglob("evil.png"))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("memory://nowhere", "check the address"),
        ("memory://nowhere/set.zip", "no such file"),
        ("nonsense://x", "an address that fsspec reads"),
        ("simplecache::memory://x", "no such folder"),
        ("memory://x::file:///etc", "leads from one address to another"),
        ("reference://x", "leads from one address to another"),
        ("webdataset:memory://nowhere/{0..1}.tar", "there is no"),
        ("webdataset:memory://nowhere/*.tar", "by braces"),
    ],
)
def test_addresses_that_lead_nowhere(address, said) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(DataError, match=said):
        load_images(address)


# Shards


def test_braces() -> None:
    from tightframe.data.sources.shards import expanded

    assert expanded("a/{train,val}-{008..010}.tar") == [
        f"a/{split}-{number}.tar" for split in ("train", "val") for number in ("008", "009", "010")
    ]
    assert expanded("{a,b{1..2}}.tar") == ["a.tar", "b1.tar", "b2.tar"]
    assert expanded("x{3..1}") == ["x3", "x2", "x1"]
    for pattern in ("{0..999999}", "{0..999}{0..999}"):
        with pytest.raises(DataError, match="more than 100,000"):
            expanded(pattern)


# The hub


def test_rows_that_name_files_reach_only_their_own_folder(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    pyarrow = pytest.importorskip("pyarrow")
    from datasets.arrow_writer import ArrowWriter

    (tmp_path / "repo").mkdir()
    for place in (tmp_path / "secret.png", tmp_path / "repo" / "own.png"):
        Image.fromarray(PIXELS[3]).save(place)
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    for path, said in ((tmp_path / "secret.png", "outside the dataset"), (tmp_path / "repo" / "own.png", "")):
        rows = {"image": [{"bytes": None, "path": str(path)}] * 4, "label": LABELS[:4]}
        with ArrowWriter(path=str(tmp_path / "repo" / "set.arrow"), features=kinds) as writer:
            writer.write_table(pyarrow.Table.from_pydict(rows, schema=kinds.arrow_schema))
        train = load_images(f"hf/{tmp_path / 'repo' / 'set.arrow'}", test_share=0.0).train
        if said:
            with pytest.raises(BadImage, match=said):
                train[0].load()
        else:
            assert grays(train) == [30] * 4


def test_splits_columns_and_unknown_labels(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    kinds = {"img": datasets.Image(), "fine": datasets.ClassLabel(names=["a", "b"])}
    kinds |= {"coarse": datasets.ClassLabel(names=["c"]), "who": datasets.Value("string")}

    def part(labels: list[int]) -> Any:
        images = [Image.fromarray(one) for one in PIXELS[: len(labels)]]
        rows = {
            "img": images,
            "fine": labels,
            "coarse": [0] * len(labels),
            "who": [str(i // 2) for i in range(len(labels))],
        }
        return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))

    splits = {"train": part(LABELS), "validation": part([0, 1]), "test": part([-1, -1]), "extra": part([0, 1])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "repo")
    with pytest.raises(DataError, match=r"more than one|no column of labels.*fine, coarse"):
        load_images(f"hf/{tmp_path / 'repo'}")
    data = load_images(f"hf/{tmp_path / 'repo'}", label_column="fine", group_column="who")
    assert (len(data.train), len(data.test), len(set(data.train.groups.tolist()))) == (8, 2, 4)
    one = load_images(f"hf/{tmp_path / 'repo'}:extra", label_column="fine", test_share=0.0)
    assert (len(one.train), one.test) == (2, None)
    with pytest.raises(DataError, match="no split 'dev'; it has train, validation, test, extra"):
        load_images(f"hf/{tmp_path / 'repo'}:dev")
    with pytest.raises(DataError, match="no column 'kind'; its columns are img, fine"):
        load_images(f"hf/{tmp_path / 'repo'}", label_column="kind")


@pytest.mark.parametrize("name", ["a/b/c/d", "a b", "a//b", ""])
def test_names_that_the_hub_can_not_have(name) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="no name on the hub"):
        load_images(f"hf/{name}")


def test_a_library_that_would_run_code_is_refused(monkeypatch, tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "__version__", "2.21.0")
    with pytest.raises(PackageMissing, match=r"may run code.*tightframe\[datasets\]"):
        load_images(f"hf/{tmp_path}")


def test_code_in_a_repository_is_not_run(tmp_path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "repo.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    with pytest.raises(DataError, match="can't be loaded"):
        load_images(f"hf/{tmp_path / 'repo'}")
    assert not (tmp_path / "mark").exists()


def test_a_repository_can_not_name_files_elsewhere_as_its_data(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    (tmp_path / "repo").mkdir()
    (tmp_path / "secret.csv").write_text("image,label\nx,secret\n")
    for named, said in ((tmp_path / "secret.csv", "outside it"), ("../secret.csv", "outside it")):
        text = f"---\nconfigs:\n- config_name: default\n  data_files: {named}\n---\n"
        (tmp_path / "repo" / "README.md").write_text(text)
        with pytest.raises(DataError, match=said):
            load_images(f"hf/{tmp_path / 'repo'}")


def test_a_package_that_is_missing_says_how_to_install_it(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(PackageMissing, match=r"pip install 'tightframe\[datasets\]'"):
        load_images(f"hf/{tmp_path}")
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(PackageMissing, match=r"pip install 'tightframe\[remote\]'"):
        load_images("memory://x")
