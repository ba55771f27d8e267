"""torchvision's sets, each in its own format on disk, read by torchvision's own code behind ``load_images``.

A new set is a function that writes ``Shot``s in its format, and a line in ``SETS``. Checksums are those of the real
files, so torchvision is told that they fit.
"""

from __future__ import annotations

import bz2
import csv
import json
import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from scipy.io import savemat

from tightframe.data.loading import load_images
from tightframe.data.sources import named
from tightframe.errors import BadImage, DataError

CLASSES = ("ant", "bee", "cow")
INTEGRITY = torchvision.datasets.utils.check_integrity


@dataclass(frozen=True)
class Shot:
    """A gray image whose gray tells its class (``gray // 40``), with its number within class and split."""

    split: str
    label: int
    number: int
    gray: int

    @property
    def cls(self) -> str:
        return CLASSES[self.label]

    @property
    def key(self) -> int:
        """A number of its own, from 1 on."""
        return 1 + self.label + 3 * self.number + (100 if self.split == "test" else 0)

    def array(self, side: int) -> np.ndarray:
        return np.full((side, side), self.gray, dtype=np.uint8)

    def save(self, path: Path, side: int = 16) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.array(side)).convert("RGB").save(path)
        return path


SHOTS = [
    Shot(split, label, number, 40 * label + 5 + 3 * number + (15 if split == "test" else 0))
    for number in range(4)
    for label in range(3)
    for split in (("train", "test") if number < 2 else ("train",))
]
TRAIN, TEST = ([shot for shot in SHOTS if shot.split == split] for split in ("train", "test"))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def rgb(shots: Sequence[Shot], side: int) -> np.ndarray:
    return np.stack([np.repeat(shot.array(side)[None], 3, 0) for shot in shots])


def cifar(folder: str, names: dict[str, Sequence[Shot]], labels: str, meta: tuple[str, str]) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        (root / folder).mkdir(parents=True)
        for name, shots in names.items():
            data = rgb(shots, 32).reshape(len(shots), -1) if shots else np.zeros((0, 3072), dtype=np.uint8)
            batch = {"data": data, labels: [shot.label for shot in shots]}
            (root / folder / name).write_bytes(pickle.dumps(batch))
        (root / folder / meta[0]).write_bytes(pickle.dumps({meta[1]: list(CLASSES)}))

    return make


def idx(path: Path, values: np.ndarray, kind: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = np.array(values.shape, dtype=">i4").tobytes()
    path.write_bytes(bytes([0, 0, kind, values.ndim]) + sizes + values.tobytes())


def mnist(folder: str, prefix: str = "", train: str = "train", test: str = "t10k") -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for name, shots in ((train, TRAIN), (test, TEST)):
            at, labels = root / folder / "raw", np.array([shot.label for shot in shots])
            idx(at / f"{prefix}{name}-images-idx3-ubyte", np.stack([shot.array(28) for shot in shots]))
            if folder == "QMNIST":
                idx(at / f"{prefix}{name}-labels-idx2-int", np.repeat(labels[:, None], 8, 1).astype(">i4"), 12)
            else:
                idx(at / f"{prefix}{name}-labels-idx1-ubyte", labels.astype(np.uint8))

    return make


def folders(train: str, test: str = "", suffix: str = "jpg", names: Sequence[str] = CLASSES) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for shot in SHOTS if test else TRAIN:
            top = train if shot.split == "train" else test
            shot.save(root / top / names[shot.label] / f"{shot.key:04d}.{suffix}")

    return make


def countries(root: Path) -> None:
    for shot in SHOTS:
        split = "test" if shot.split == "test" else "valid" if shot.number == 3 else "train"
        shot.save(root / "country211" / split / shot.cls / f"{shot.key}.jpg")


def usps(root: Path) -> None:
    root.mkdir(exist_ok=True)
    for name, shots in (("usps.bz2", TRAIN), ("usps.t.bz2", TEST)):
        pixels = [" ".join(f"{index + 1}:{shot.gray / 127.5 - 1 + 1e-4}" for index in range(256)) for shot in shots]
        lines = [f"{shot.label + 1} {values}" for shot, values in zip(shots, pixels, strict=True)]
        (root / name).write_bytes(bz2.compress("\n".join(lines).encode()))


def semeion(root: Path) -> None:
    rows = np.array([[*(s.array(16).ravel() / 255 + 1e-4), *(np.arange(10) == s.label)] for s in TRAIN])
    root.mkdir(exist_ok=True)
    np.savetxt(root / "semeion.data", rows)


def dtd(root: Path) -> None:
    lists: dict[str, list[str]] = {"train1": [], "val1": [], "test1": []}
    for shot in SHOTS:
        name = f"{shot.cls}/{shot.cls}_{shot.key:04d}.jpg"
        shot.save(root / "dtd" / "dtd" / "images" / name)
        lists["test1" if shot.split == "test" else "val1" if shot.number == 3 else "train1"].append(name)
    for name, lines in lists.items():
        write(root / "dtd" / "dtd" / "labels" / f"{name}.txt", "\n".join(lines) + "\n")


def aircraft(root: Path) -> None:
    base = root / "fgvc-aircraft-2013b" / "data"
    for shot in SHOTS:
        shot.save(base / "images" / f"{shot.key:07d}.jpg")
    for level, names in (("variant", CLASSES), ("family", ("insect", "insect", "mammal"))):
        listed = {"variant": "variants", "family": "families"}[level]
        write(base / f"{listed}.txt", "\n".join(dict.fromkeys(names)) + "\n")
        for split, shots in (("trainval", TRAIN), ("test", TEST)):
            lines = [f"{shot.key:07d} {names[shot.label]}" for shot in shots]
            write(base / f"images_{level}_{split}.txt", "\n".join(lines) + "\n")


def pets(root: Path) -> None:
    for split, shots in (("trainval", TRAIN), ("test", TEST)):
        lines = [f"{shot.cls}_{shot.key} {shot.label + 1} {1 + (shot.label == 2)} 1" for shot in shots]
        write(root / "oxford-iiit-pet" / "annotations" / f"{split}.txt", "\n".join(lines) + "\n")
    for shot in SHOTS:
        shot.save(root / "oxford-iiit-pet" / "images" / f"{shot.cls}_{shot.key}.jpg")


def flowers(root: Path) -> None:
    base, ordered = root / "flowers-102", sorted(SHOTS, key=lambda shot: shot.key)
    number = {shot: index for index, shot in enumerate(ordered, 1)}
    for shot, index in number.items():
        shot.save(base / "jpg" / f"image_{index:05d}.jpg")
    savemat(base / "imagelabels.mat", {"labels": [shot.label + 1 for shot in ordered]})
    ids = {"trnid": [s for s in TRAIN if s.number < 3], "valid": [s for s in TRAIN if s.number == 3], "tstid": TEST}
    savemat(base / "setid.mat", {name: [number[shot] for shot in shots] for name, shots in ids.items()})


def sun(root: Path) -> None:
    write(root / "SUN397" / "ClassName.txt", "".join(f"/{cls[0]}/{cls}\n" for cls in CLASSES))
    for shot in TRAIN:
        shot.save(root / "SUN397" / shot.cls[0] / shot.cls / f"sun_{shot.key}.jpg")


def food(root: Path) -> None:
    for split, shots in (("train", TRAIN), ("test", TEST)):
        listed = {cls: [f"{cls}/{shot.key}" for shot in shots if shot.cls == cls] for cls in CLASSES}
        write(root / "food-101" / "meta" / f"{split}.json", json.dumps(listed))
    for shot in SHOTS:
        shot.save(root / "food-101" / "images" / shot.cls / f"{shot.key}.jpg")


def cars(root: Path) -> None:
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    named_by = np.empty(3, dtype=object)
    named_by[:] = CLASSES
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": named_by})
    for path, shots in (("devkit/cars_train_annos.mat", TRAIN), ("cars_test_annos_withlabels.mat", TEST)):
        listed = [(shot.label + 1, f"{shot.key:05d}.jpg") for shot in shots]
        savemat(base / path, {"annotations": np.array(listed, dtype=[("class", "i4"), ("fname", object)])})
        for shot in shots:
            shot.save(base / ("cars_train" if shots is TRAIN else "cars_test") / f"{shot.key:05d}.jpg")


def signs(root: Path) -> None:
    base = root / "gtsrb"
    for shot in TRAIN:
        shot.save(base / "GTSRB" / "Training" / f"{shot.label:05d}" / f"{shot.key:05d}.ppm")
    for shot in TEST:
        shot.save(base / "GTSRB" / "Final_Test" / "Images" / f"{shot.key:05d}.ppm")
    lines = ["Filename;ClassId", *(f"{shot.key:05d}.ppm;{shot.label}" for shot in TEST)]
    write(base / "GT-final_test.csv", "\n".join(lines) + "\n")


def caltech101(root: Path) -> None:
    base = root / "caltech101"
    (base / "101_ObjectCategories" / "BACKGROUND_Google").mkdir(parents=True)
    (base / "Annotations").mkdir()
    for shot in TRAIN:
        shot.save(base / "101_ObjectCategories" / shot.cls / f"image_{shot.number + 1:04d}.jpg")


def caltech256(root: Path) -> None:
    for shot in TRAIN:
        name = f"{shot.label + 1:03d}_{shot.number + 1:04d}.jpg"
        shot.save(root / "caltech256" / "256_ObjectCategories" / f"{shot.label + 1:03d}.{shot.cls}" / name)


def stl(root: Path) -> None:
    (root / "stl10_binary").mkdir(parents=True)
    for split, shots in (("train", TRAIN), ("test", TEST)):
        rgb(shots, 96).tofile(root / "stl10_binary" / f"{split}_X.bin")
        np.array([s.label + 1 for s in shots], dtype=np.uint8).tofile(root / "stl10_binary" / f"{split}_y.bin")
    for name in ("unlabeled_X.bin", "fold_indices.txt"):
        write(root / "stl10_binary" / name, "")
    write(root / "stl10_binary" / "class_names.txt", "\n".join(CLASSES))


def svhn(root: Path) -> None:
    root.mkdir(exist_ok=True)
    for split, shots in (("train", TRAIN), ("test", TEST)):
        values = {"X": rgb(shots, 32).transpose(2, 3, 1, 0), "y": [[s.label or 10] for s in shots]}
        savemat(root / f"{split}_32x32.mat", values)


def fer(root: Path) -> None:
    (root / "fer2013").mkdir(parents=True)
    with (root / "fer2013" / "fer2013.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["emotion", "Usage", "pixels"])
        for s in SHOTS:
            usage = "Training" if s.split == "train" else "PublicTest"
            table.writerow([s.label, usage, " ".join([str(s.gray)] * 48 * 48)])


def sentences(root: Path) -> None:
    for shot in (one for one in SHOTS if one.label < 2):
        split = "test" if shot.split == "test" else "valid" if shot.number == 3 else "train"
        shot.save(root / "rendered-sst2" / split / ("negative", "positive")[shot.label] / f"{shot.key}.png")


def imagenet(root: Path) -> None:
    wnids = ("n01", "n02", "n03")
    folders("train", "val", "JPEG", wnids)(root)
    torch.save(({"n01": ("crane",), "n02": ("crane",), "n03": ("cow", "moo")}, []), root / "meta.bin")


def clevr(root: Path) -> None:
    base = root / "clevr" / "CLEVR_v1.0"
    for split, shots in (("train", TRAIN), ("val", TEST)):
        scenes = [{"image_filename": f"{s.key}.png", "objects": [0] * s.label} for s in shots]
        write(base / "scenes" / f"CLEVR_{split}_scenes.json", json.dumps({"scenes": scenes}))
        for shot in shots:
            shot.save(base / "images" / split / f"{shot.key}.png")


def lfw(root: Path) -> None:
    base = root / "lfw-py"
    for shot in TRAIN:
        shot.save(base / "lfw_funneled" / shot.cls / f"{shot.cls}_{shot.number + 1:04d}.jpg")
    write(base / "lfw-funneled.tgz", "")
    write(base / "lfw-names.txt", "".join(f"{cls}\t4\n" for cls in CLASSES))
    write(base / "people.txt", "1\n3\n" + "".join(f"{cls}\t4\n" for cls in CLASSES))


def omniglot(root: Path) -> None:
    for shot in TRAIN:
        shot.save(root / "omniglot-py" / "images_background" / "Greek" / shot.cls / f"{shot.key}.png")
    write(root / "omniglot-py" / "images_background.zip", "")


def places(root: Path) -> None:
    write(root / "categories_places365.txt", "".join(f"/{cls[0]}/{cls} {i}\n" for i, cls in enumerate(CLASSES)))
    for name, folder, shots in (("train_standard", "data_large_standard", TRAIN), ("val", "val_large", TEST)):
        write(root / f"places365_{name}.txt", "".join(f"/{s.cls[0]}/{s.key}.jpg {s.label}\n" for s in shots))
        for shot in shots:
            shot.save(root / folder / shot.cls[0] / f"{shot.key}.jpg")


def pcam(root: Path) -> None:
    h5py = pytest.importorskip("h5py")
    (root / "pcam").mkdir(parents=True)
    split = {"train": [s for s in TRAIN if s.number < 3], "valid": [s for s in TRAIN if s.number == 3], "test": TEST}
    for name, shots in split.items():
        for kind, values in (("x", rgb(shots, 8).transpose(0, 2, 3, 1)), ("y", np.array([s.label for s in shots]))):
            with h5py.File(root / "pcam" / f"camelyonpatch_level_2_split_{name}_{kind}.h5", "w") as file:
                file[kind] = values if kind == "x" else values.reshape(-1, 1, 1, 1)


SPECIES = tuple(f"{index:05d}_Animalia_A_B_C_D_{cls}_x" for index, cls in enumerate(CLASSES))
WNIDS = ("n01440764", "n02102040", "n02979186")
CIFAR10 = {"data_batch_1": TRAIN, **{f"data_batch_{n}": [] for n in (2, 3, 4, 5)}, "test_batch": TEST}
NUMBERS = ("0", "1", "2")
SETS: dict[str, tuple[Callable[[Path], None], Sequence[str]]] = {
    "CIFAR10": (cifar("cifar-10-batches-py", CIFAR10, "labels", ("batches.meta", "label_names")), CLASSES),
    "CIFAR100": (
        cifar("cifar-100-python", {"train": TRAIN, "test": TEST}, "fine_labels", ("meta", "fine_label_names")),
        CLASSES,
    ),
    "CLEVRClassification": (clevr, NUMBERS),
    "Caltech101": (caltech101, CLASSES),
    "Caltech256": (caltech256, ("001.ant", "002.bee", "003.cow")),
    "Country211": (countries, CLASSES),
    "DTD": (dtd, CLASSES),
    "EMNIST/digits": (mnist("EMNIST", "emnist-digits-", "train", "test"), NUMBERS),
    "EuroSAT": (folders("eurosat/2750"), CLASSES),
    "FER2013": (fer, NUMBERS),
    "FGVCAircraft": (aircraft, CLASSES),
    "FashionMNIST": (mnist("FashionMNIST"), ("T-shirt/top", "Trouser", "Pullover")),
    "Flowers102": (flowers, ("pink primrose", "hard-leaved pocket orchid", "canterbury bells")),
    "Food101": (food, CLASSES),
    "GTSRB": (signs, NUMBERS),
    "INaturalist": (folders("2021_train", "2021_valid", names=SPECIES), SPECIES),
    "ImageNet": (imagenet, ("crane (0)", "crane (1)", "cow, moo")),
    "Imagenette": (
        folders("imagenette2/train", "imagenette2/val", "jpeg", WNIDS),
        ("tench, Tinca tinca", "English springer, English springer spaniel", "cassette player"),
    ),
    "KMNIST": (mnist("KMNIST"), ("o", "ki", "su")),
    "LFWPeople": (lfw, CLASSES),
    "MNIST": (mnist("MNIST"), ("0 - zero", "1 - one", "2 - two")),
    "Omniglot": (omniglot, ("Greek/ant", "Greek/bee", "Greek/cow")),
    "OxfordIIITPet": (pets, ("Ant", "Bee", "Cow")),
    "PCAM": (pcam, NUMBERS),
    "Places365": (places, ("/a/ant", "/b/bee", "/c/cow")),
    "QMNIST": (mnist("QMNIST", "qmnist-", "train", "test"), ("0 - zero", "1 - one", "2 - two")),
    "RenderedSST2": (sentences, ("negative", "positive")),
    "SEMEION": (semeion, NUMBERS),
    "STL10": (stl, CLASSES),
    "SUN397": (sun, CLASSES),
    "SVHN": (svhn, NUMBERS),
    "StanfordCars": (cars, CLASSES),
    "USPS": (usps, NUMBERS),
}


@pytest.fixture(autouse=True)
def fitting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Checksums fit wherever there is a file."""
    for name, module in list(sys.modules.items()):
        if name.startswith("torchvision.datasets.") and hasattr(module, "check_integrity"):
            monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file())
    monkeypatch.setenv("TIGHTFRAME_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=SETS)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, Sequence[str]]:
    """A name, where the set lies, and its classes."""
    make, classes = SETS[request.param]
    make(tmp_path / "sets")
    return f"torchvision/{request.param}", tmp_path / "sets", classes


def grays(images: Any) -> list[int]:
    return [images[index].getpixel((1, 1))[0] for index in range(len(images))]


def test_official_splits_labels_and_names(kept) -> None:
    name, root, classes = kept
    data = load_images(name, root=root, test_share=0.25)
    assert data.classes == tuple(classes)
    assert data.train.labels.tolist() == [gray // 40 for gray in grays(data.train)]
    assert data.test.labels.tolist() == [gray // 40 for gray in grays(data.test)]
    whole = name.partition("/")[2] in named._WHOLE
    assert (len(data.train), len(data.test)) == (3 * len(classes), len(classes)) if whole else (4, 2) * len(classes)
    expected = [shot.gray for shot in (TRAIN if whole else SHOTS) if shot.label < len(classes)]
    assert np.abs(np.subtract(sorted(grays(data.train) + grays(data.test)), sorted(expected))).max() <= 1
    assert str(root) not in "".join(data.train.identifiers)


def test_the_same_files_are_the_same_data_in_any_process(kept) -> None:
    name, root, _ = kept
    first, again = load_images(name, root=root), load_images(name, root=str(root))
    assert first.train.fingerprint == again.train.fingerprint
    assert len({*first.train.identifiers, *first.test.identifiers}) == len(first.train) + len(first.test)
    handed = pickle.loads(pickle.dumps(first.train))
    assert handed.fingerprint == first.train.fingerprint
    assert grays(handed) == grays(first.train)


def test_a_damaged_file_is_named_or_left_out(kept) -> None:
    name, root, _ = kept
    if not (images := sorted(path for path in root.rglob("*") if path.suffix in (".jpg", ".jpeg", ".png", ".ppm"))):
        pytest.skip("a set of arrays")
    images[0].write_bytes(b"\xff\xd8\xff cut short")
    with pytest.raises(BadImage, match=images[0].name):
        grays(load_images(name, root=root, test_share=0.0).train.joined(load_images(name, root=root).test))
    data = load_images(name, root=root, skip_bad=True)
    assert len(data.skipped) == 1


def test_missing_files_say_what_to_do(tmp_path, monkeypatch) -> None:
    for name in SETS:
        with pytest.raises(DataError, match=r"(--download|home page).*--root"):
            load_images(f"torchvision/{name}", root=tmp_path / "none")
    with pytest.raises(DataError, match=str(tmp_path / "cache" / "torchvision")):
        load_images("torchvision/CIFAR10")


def test_nothing_is_downloaded_unless_asked(tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", lambda self: asked.append(self.root))
    for download in (False, True):
        with pytest.raises(DataError):
            load_images("torchvision/CIFAR10", root=tmp_path, download=download)
        assert len(asked) == download


def test_every_classification_set_is_known() -> None:
    others = {"CelebA", "FakeData", "LSUN", "LSUNClass", "ImageFolder", "DatasetFolder", "VisionDataset", "SBU"}
    others |= {"CocoCaptions", "CocoDetection", "Cityscapes", "Flickr8k", "Flickr30k", "PhotoTour", "LFWPairs"}
    others |= {"VOCSegmentation", "VOCDetection", "WIDERFace", "SBDataset", "MovingMNIST", "Kinetics", "HMDB51"}
    others |= {"KittiFlow", "Kitti", "Sintel", "FlyingChairs", "FlyingThings3D", "HD1K", "InStereo2k", "UCF101"}
    others |= {name for name in torchvision.datasets.__all__ if name.endswith("Stereo") or name.startswith("wrap")}
    assert {*named._OFFICIAL, *named._WHOLE} == {*torchvision.datasets.__all__} - others
    assert {*named._OFFICIAL, *named._WHOLE} == {name.partition("/")[0] for name in SETS}


def test_variants(tmp_path) -> None:
    aircraft(tmp_path)
    assert load_images("torchvision/FGVCAircraft/family", root=tmp_path).classes == ("insect", "mammal")
    pets(tmp_path)
    assert load_images("torchvision/OxfordIIITPet/binary-category", root=tmp_path).classes == ("Cat", "Dog")
    with pytest.raises(DataError, match="no variant 'maker'; choose variant, family, manufacturer"):
        load_images("torchvision/FGVCAircraft/maker", root=tmp_path)
    with pytest.raises(DataError, match=r"nearest: CIFAR10, "):
        load_images("torchvision/cifar10", root=tmp_path)


def test_a_list_can_not_lead_out_of_the_folder(tmp_path) -> None:
    aircraft(tmp_path / "sets")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.jpg")
    listed = tmp_path / "sets" / "fgvc-aircraft-2013b" / "data" / "images_variant_test.txt"
    listed.write_text("../../../../secret ant\n")
    with pytest.raises(DataError, match="lead out"):
        load_images("torchvision/FGVCAircraft", root=tmp_path / "sets")


class Armed:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_a_pickle_of_others_is_not_opened(name, tmp_path, monkeypatch) -> None:
    SETS[name][0](tmp_path / "sets")
    for path in (tmp_path / "sets").rglob("*"):
        if path.is_file():
            path.write_bytes(pickle.dumps(Armed(tmp_path / "mark")))
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", INTEGRITY)
    with pytest.raises(DataError, match="corrupted"):
        load_images(f"torchvision/{name}", root=tmp_path / "sets")
    assert not (tmp_path / "mark").exists()
