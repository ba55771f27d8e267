"""Damaged and hostile files: whatever is in them, what comes out is an answer or an error that names them.

    python benchmarks/fuzz.py [KIND ...] [--cases 10000]

Each kind takes honest files, changes them (bits, bytes, numbers at the edges, cuts at any byte, parts repeated; for
JSON also values of other types; for archives also names that climb out, links and bombs) and reads them as the product
would. A case fails if anything but an error of ours comes out, if a file appears outside the folder that it was given,
or if memory more than doubles. Hypothesis reduces a failure to its smallest form, which is written to
``tests/fuzz/corpus/KIND-…`` and read again by the tests ever after.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import shutil
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image, features

import tightframe as tf
from tightframe.backbone import Preprocessing
from tightframe.data.decoding import decode
from tightframe.engine.stages import Stages, claim
from tightframe.errors import TightframeError
from tightframe.features.store import FeatureStore

HERE = Path(__file__).parents[1] / "tests"
CORPUS, SAVED = HERE / "fuzz" / "corpus", HERE / "deploy" / "saved"
EDGES = [0, 1, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1]
MARGIN_MB = 150
"""Growth of memory that is always allowed: libraries keep what they have freed."""


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes:
        honest: contents of honest files by name.
        read: reads the file at a path, in a folder of its own.
        change: makes strategies of changed contents; ``None`` for changes of bytes alone.
    """

    honest: dict[str, bytes]
    read: Callable[[Path], object]
    change: Callable[[bytes], st.SearchStrategy[bytes]] | None = None

    def contents(self) -> st.SearchStrategy[tuple[str, bytes]]:
        """Names and changed contents."""
        return st.sampled_from(sorted(self.honest)).flatmap(
            lambda name: st.tuples(st.just(name), self._changed(self.honest[name]))
        )

    def _changed(self, content: bytes) -> st.SearchStrategy[bytes]:
        plain = changed_bytes(content)
        return plain if self.change is None else st.one_of(plain, self.change(content))


def changed_bytes(content: bytes) -> st.SearchStrategy[bytes]:
    """``content`` after one to six changes, most of them where headers are."""
    place = st.one_of(st.integers(0, min(len(content), 200)), st.integers(0, len(content)))
    number = st.tuples(st.sampled_from(EDGES), st.sampled_from([1, 2, 4, 8]), st.sampled_from(["little", "big"]))
    step = st.one_of(
        st.tuples(st.just("flip"), place, st.integers(0, 7)),
        st.tuples(st.just("byte"), place, st.integers(0, 255)),
        st.tuples(st.just("number"), place, number),
        st.tuples(st.just("cut"), place, st.none()),
        st.tuples(st.just("drop"), place, st.integers(1, 64)),
        st.tuples(st.just("repeat"), place, st.integers(1, 64)),
    )
    return st.lists(step, min_size=1, max_size=6).map(lambda steps: _after(content, steps))


def _after(content: bytes, steps: list[Any]) -> bytes:
    found = bytearray(content)
    for what, place, how in steps:
        if what == "cut":
            del found[place:]
        elif what == "drop":
            del found[place : place + how]
        elif what == "repeat":
            found[place:place] = found[place : place + how]
        elif place < len(found) and what == "flip":
            found[place] ^= 1 << how
        elif place < len(found) and what == "byte":
            found[place] = how
        elif what == "number":
            value, size, order = how
            found[place : place + size] = (value % 256**size).to_bytes(size, order)
    return bytes(found)


ANY_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.sampled_from(EDGES), st.floats(), st.text(max_size=8), st.integers(-9, 9)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


def changed_json(content: bytes) -> st.SearchStrategy[bytes]:
    """The same JSON with one to three entries, wherever they are, replaced by anything."""
    told = json.loads(content)
    places = list(_places(told))
    changes = st.lists(st.tuples(st.sampled_from(places), ANY_JSON), min_size=1, max_size=3)
    return changes.map(lambda changes: _with(content, changes))


def changed_text(content: bytes) -> st.SearchStrategy[bytes]:
    """Changed JSON where it is JSON, else changed bytes."""
    return changed_json(content) if content.startswith(b"{") else changed_bytes(content)


def _places(told: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = list(told) if isinstance(told, dict) else range(len(told)) if isinstance(told, list) else ()
    for key in keys:
        yield (*above, key)
        yield from _places(told[key], (*above, key))


def _with(content: bytes, changes: list[Any]) -> bytes:
    told = json.loads(content)
    for place, value in changes:
        inside = told
        try:
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = value
        except (TypeError, KeyError, IndexError):
            continue  # an earlier change took it away
    return json.dumps(told).encode()


def images() -> Kind:
    """Image files in every format that is read, of many modes, some with EXIF."""
    generator = np.random.default_rng(0)
    colors = Image.fromarray(generator.integers(0, 255, (24, 32, 3), np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    clear = colors.convert("RGBA")
    clear.putalpha(Image.fromarray(generator.integers(0, 255, (24, 32), np.uint8)))
    deep = Image.fromarray(generator.integers(0, 65535, (24, 32), np.uint16))
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "a.jpg": (colors, {"exif": exif}),
        "progressive.jpg": (colors, {"progressive": True}),
        "cmyk.jpg": (colors.convert("CMYK"), {}),
        "gray.jpg": (colors.convert("L"), {}),
        "a.png": (colors, {"exif": exif}),
        "palette.png": (colors.convert("P"), {"transparency": 3}),
        "clear.png": (clear, {}),
        "deep.png": (deep, {}),
        "bits.png": (colors.convert("1"), {}),
        "moving.gif": (colors.convert("P"), {"save_all": True, "append_images": [colors.convert("P")]}),
        "a.bmp": (colors, {}),
        "a.webp": (clear, {"exif": exif}),
        "a.tif": (colors, {"compression": "tiff_lzw"}),
        "deep.tif": (deep, {}),
        "float.tif": (colors.convert("F"), {}),
        "a.ppm": (colors, {}),
    }
    if features.check_codec("jpg_2000"):
        made["a.jp2"] = (colors, {})
    if features.check("avif"):
        made["a.avif"] = (colors, {})
    honest = {}
    for name, (image, options) in made.items():
        file = io.BytesIO()
        image.save(
            file, {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(name[-3:], name.rpartition(".")[2]), **options
        )
        honest[name] = file.getvalue()
    wants = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
    return Kind(honest, lambda path: wants.pixels(decode(path.read_bytes(), path.name)))


def tables() -> Kind:
    """Tables of images, in every form."""
    rows = [("a/0.png", "a"), ("a/1.png", "a"), ("b/0.png", "b"), ("b/1.png", "b")]
    honest = {
        "list.csv": "filename,label,split\n" + "".join(f"{one},{label},train\n" for one, label in rows),
        "quoted.csv": 'path;"class"\n' + "".join(f'"{one}";"{label}"\n' for one, label in rows),
        "list.tsv": "image\tcategory\n" + "".join(f"{one}\t{label}\n" for one, label in rows),
        "list.jsonl": "".join(json.dumps({"file": one, "label": label}) + "\n" for one, label in rows),
    }
    contents = {name: text.encode() for name, text in honest.items()}
    contents["wide.csv"] = honest["list.csv"].encode("utf-16")
    return Kind(contents, _read_images)


def _read_images(path: Path) -> object:
    for label in ("a", "b"):
        (path.parent / label).mkdir(exist_ok=True)
        for number in range(2):
            if not (place := path.parent / label / f"{number}.png").exists():
                Image.new("RGB", (4, 4), (number, 9, 9)).save(place)
    data = tf.load_images(path, skip_bad=True)
    inside = path.parent.resolve()
    assert all((inside / name).resolve().is_relative_to(inside) for name in data.train.identifiers)
    return data.train.fingerprint


def archives() -> Kind:
    """Zips and tars of class folders."""
    picture = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 9, 9)).save(picture, "PNG")
    members = [(f"{label}/{number}.png", picture.getvalue()) for label in ("a", "b") for number in range(2)]
    honest = {name: _archive(name, members, []) for name in ("a.zip", "a.tar", "a.tar.gz")}
    return Kind(honest, _read_archive, lambda content: _hostile(members, content))


NAMES = ["../out.png", "/tmp/out.png", "a/../../out.png", "C:\\out.png", "a\\..\\..\\out.png", "a/" * 200 + "x.png"]
NAMES += ["a/\0.png", "", ".", "a", "a/.hidden.png", "a/new\nline.png", "é/ü.png", "a/" + "x" * 300 + ".png"]


def _hostile(members: list[tuple[str, bytes]], content: bytes) -> st.SearchStrategy[bytes]:
    kind = "a.zip" if content.startswith(b"PK") else "a.tar.gz" if content.startswith(b"\x1f\x8b") else "a.tar"
    name = st.one_of(st.sampled_from(NAMES), st.text(max_size=20))
    further = st.lists(st.tuples(name, st.sampled_from(["file", "link", "bomb"])), max_size=4)
    return further.map(lambda further: _archive(kind, members, further))


def _archive(kind: str, members: list[tuple[str, bytes]], further: list[tuple[str, str]]) -> bytes:
    file = io.BytesIO()
    if kind.endswith(".zip"):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                archive.writestr(name, content)
            for name, what in further:
                info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode() or "x")
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = 0o120777 << 16 if what == "link" else 0
                archive.writestr(info, bytes(1 << 22) if what == "bomb" else b"../../etc/passwd")
        return file.getvalue()
    with tarfile.open(fileobj=file, mode="w:gz" if kind.endswith("gz") else "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, what in further:
            info = tarfile.TarInfo(name.encode("utf-8", "replace").decode().replace("\0", "0"))
            if what == "link":
                info.type, info.linkname = tarfile.SYMTYPE, "../../etc/passwd"
            info.size = 1 << 22 if what == "bomb" else 0
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return file.getvalue()


def _read_archive(path: Path) -> object:
    return tf.load_images(path, skip_bad=True).train.fingerprint


def saved() -> Kind:
    """Folders of tuned models, of version 0.1, which have no checksums to refuse them by."""
    base = tf.load_backbone(f"{SAVED / 'base.py'}:make")
    honest = {
        f"{method}:{file.name}": file.read_bytes()
        for method in ("discriminant", "scl")
        for file in sorted((SAVED / f"0.1-{method}").iterdir())
    }
    blank = Image.new("RGB", (8, 8))

    def read(path: Path) -> object:
        method, _, name = path.name.partition(":")
        folder = path.parent / "folder"
        shutil.copytree(SAVED / f"0.1-{method}", folder)
        (folder / name).write_bytes(path.read_bytes())
        return tf.load_tuned(folder, base).predict([blank], reject=0.1, explain=1)

    return Kind(honest, read, changed_text)


def models() -> Kind:
    """Folders of models in timm's layout."""
    import timm
    from safetensors.torch import save

    arguments = {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}
    wants = {
        "input_size": [3, 32, 32],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    config = {"architecture": "resnet18", "num_classes": 3, "model_args": arguments, "pretrained_cfg": wants}
    weights = save(timm.create_model("resnet18", num_classes=3, **arguments).state_dict())
    honest = {"config.json": json.dumps(config).encode(), "model.safetensors": weights}

    def read(path: Path) -> object:
        folder = path.parent / "model"
        folder.mkdir()
        for name, content in honest.items():
            (folder / name).write_bytes(path.read_bytes() if name == path.name else content)
        return tf.load_backbone(f"local-dir:{folder}").fingerprint

    return Kind(honest, read, changed_text)


def runs() -> Kind:
    """Folders of runs: the mark, and results of stages."""
    with tempfile.TemporaryDirectory() as place:
        claim(Path(place), {"a": 1})
        Stages(Path(place)).remember("stage", [1], lambda: {"rows": [1, 2.5, None, "x"]})
        honest = {file.name: file.read_bytes() for file in sorted(Path(place).rglob("*.*")) if file.is_file()}

    def read(path: Path) -> object:
        folder = path.parent / "run"
        (folder / "stages").mkdir(parents=True)
        shutil.copyfile(path, folder / path.name if path.suffix == ".txt" else folder / "stages" / path.name)
        if path.suffix != ".txt":
            claim(path.parent / "other", {"a": 1})
            return Stages(folder).remember("stage", [1], lambda: {"rows": []})["rows"]
        return claim(folder, {"a": 1})

    return Kind(honest, read)


KEY = {"layer": "penultimate", "images": "0" * 32}


def caches() -> Kind:
    """Folders of kept features."""
    values = np.arange(60, dtype=np.float32).reshape(15, 4)
    with tempfile.TemporaryDirectory() as place:
        with FeatureStore(Path(place)).writer({"penultimate": KEY}) as writer:
            writer.add({"penultimate": values})
            writer.finish(1.0)
        (entry,) = Path(place).iterdir()
        honest = {file.name: file.read_bytes() for file in sorted(entry.iterdir())}

    def read(path: Path) -> object:
        folder = path.parent / "cache" / entry.name
        folder.mkdir(parents=True)
        for name, content in honest.items():
            (folder / name).write_bytes(path.read_bytes() if name == path.name else content)
        kept = FeatureStore(folder.parent).find(KEY)
        return kept and kept.read().shape

    return Kind(
        honest, read, lambda content: changed_json(content) if content[:2] == b"{\n" else changed_bytes(content)
    )


KINDS: dict[str, Callable[[], Kind]] = {
    one.__name__: one for one in (images, tables, archives, saved, models, runs, caches)
}


def read_once(kind: Kind, name: str, content: bytes) -> str:
    """Read one file as the product would; "answer", or the error of ours. Raises whatever else comes out."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as outer:
        place = Path(outer) / "inner" / "folder"
        place.mkdir(parents=True)
        (place / name).write_bytes(content)
        try:
            kind.read(place / name)
            return "answer"
        except TightframeError as error:
            return type(error).__name__
        finally:
            strays = [one.name for one in (*Path(outer).iterdir(), *place.parent.iterdir())]
            assert strays == ["inner", "folder"], f"files outside: {strays}"


def fuzz(name: str, cases: int) -> dict[str, Any]:
    """Read ``cases`` changed files of the kind ``name``; a row of what came of them. Raises for the first failure."""
    kind, outcomes, longest = KINDS[name](), dict[str, int](), [0.0, ""]
    for file, content in kind.honest.items():
        assert read_once(kind, file, content) in ("answer", "BadImage"), file
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    smallest: list[tuple[int, str, bytes]] = []

    @settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(kind.contents())
    def every(case: tuple[str, bytes]) -> None:
        started = time.perf_counter()
        try:
            outcome = read_once(kind, *case)
        except BaseException:
            smallest.append((len(case[1]), *case))
            raise
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        longest[:] = max(longest, [time.perf_counter() - started, case[0]])

    try:
        every()
    except BaseException:
        if smallest:
            _, file, content = min(smallest)
            CORPUS.mkdir(parents=True, exist_ok=True)
            mark = blake2b(content, digest_size=4).hexdigest()
            (CORPUS / f"{name}-{mark}-{file.replace(':', '+')}").write_bytes(content)
        raise
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    assert grown <= before + MARGIN_MB, f"{name}: memory grew by {grown:.0f} MB from {before:.0f}"
    return {"kind": name, "cases": cases, **outcomes, "longest_s": round(longest[0], 2), "grown_mb": round(grown)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--cases", type=int, default=10_000)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # of Pillow's, about odd metadata
    failed = 0
    for name in asked.kinds:
        started = time.perf_counter()
        try:
            told = fuzz(name, asked.cases)
            print(json.dumps(told | {"seconds": round(time.perf_counter() - started)}), flush=True)
        except Exception as error:
            failed += 1
            print(f"{name}: {type(error).__name__}: {str(error)[:2000]}", file=sys.stderr, flush=True)
            traceback.print_exc(limit=-6)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
