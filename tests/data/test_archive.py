"""Archives that someone made to do harm, or badly: nothing is written outside the cache, and memory is bounded."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tightframe.data.loading import load_images
from tightframe.data.sources import archive
from tightframe.errors import BadImage, DataError


def png(gray: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (gray,) * 3).save(stream, "PNG")
    return stream.getvalue()


GOOD = {f"{cls}/{index}.png": png(10 * index) for cls in ("ant", "bee") for index in range(4)}


def in_tar(path: Path, *more: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as made:
        for name, content in GOOD.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
        for info, content in more:
            info.size = len(content) if info.type == tarfile.REGTYPE else 0
            made.addfile(info, io.BytesIO(content))
    return path


def in_zip(path: Path, *more: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in (*GOOD.items(), *more):
            made.writestr(name, content)
    return path


def info(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


def link(name: str) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.create_system, made.external_attr = 3, 0o120777 << 16
    return made


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIGHTFRAME_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def refused(path: Path, said: str) -> None:
    """An error that names it; left out, and listed, where that is asked for."""
    before = {one for one in path.parent.rglob("*") if "cache" not in one.parts}
    with pytest.raises(BadImage, match=said):
        load_images(path)
    data = load_images(path, skip_bad=True)
    assert len(data.train) + len(data.test) == len(GOOD)
    assert len(data.skipped) == 1
    assert {one for one in path.parent.rglob("*") if "cache" not in one.parts} == before


@pytest.mark.parametrize("name", ["../evil.png", "ant/../../evil.png", "/etc/evil.png", "..\\evil.png", "C:/evil.png"])
def test_names_that_climb_out(tmp_path, name) -> None:
    refused(in_zip(tmp_path / "a.zip", (name, png())), "leads out of the archive")
    if "\\" not in name:
        refused(in_tar(tmp_path / "a.tar", (info(name), png())), "leads out of the archive")
        refused(in_tar(tmp_path / "a.tar.gz", (info(name), png()), mode="w:gz"), "leads out of the archive")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices(tmp_path, kind) -> None:
    refused(in_tar(tmp_path / "a.tar", (info("ant/evil.png", kind, "/etc/passwd"), b"")), "a link, a device")
    refused(in_zip(tmp_path / "a.zip", (link("ant/evil.png"), b"/etc/passwd")), "a link or a device")


def test_members_that_grow_too_large(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBER", 100_000)
    refused(in_zip(tmp_path / "a.zip", ("ant/bomb.png", bytes(100_001))), "it takes 100,001 bytes; at most 100,000")
    refused(in_tar(tmp_path / "a.tar", (info("ant/bomb.png"), bytes(100_001))), "at most 100,000 are read")


def test_a_member_that_is_larger_than_it_says_is_not_inflated_beyond(tmp_path) -> None:
    path = in_zip(tmp_path / "a.zip", ("ant/bomb.png", bytes(5_000_000)))
    content = path.read_bytes()
    assert content.count((5_000_000).to_bytes(4, "little")) == 2
    path.write_bytes(content.replace((5_000_000).to_bytes(4, "little"), (5_000).to_bytes(4, "little")))
    data = load_images(path, skip_bad=True)
    assert len(data.skipped) == 1
    assert "not of the 5,000 bytes" in data.skipped[0]


def test_a_compressed_tar_that_grows_without_end(tmp_path, monkeypatch, cache) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBER", 1 << 20)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(bytes(50 << 20)))
    with pytest.raises(DataError, match="grows beyond 100 times its size"):
        load_images(tmp_path / "a.tar.gz")
    assert not [one for one in cache.rglob("*") if one.is_file()]


@pytest.mark.parametrize("cut", [0, 10, 200, -30])
@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_what_is_damaged_says_so(tmp_path, name, cut) -> None:
    made = in_zip if name == "a.zip" else in_tar
    path = made(tmp_path / name, **({"mode": "w:gz"} if name == "a.tar.gz" else {}))
    path.write_bytes(path.read_bytes()[: cut or None] if cut else b"")
    if name == "a.tar" and cut == -30:
        assert len(load_images(path).classes) == 2  # the end is only padding
        return
    with pytest.raises(DataError, match=r"can't be read as an archive|no class|nothing"):
        load_images(path)


def test_encrypted_members_and_other_compressions(tmp_path) -> None:
    path = in_zip(tmp_path / "a.zip", ("ant/secret.png", png(70)))
    content = bytearray(path.read_bytes())
    for mark, flag in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.rindex(mark) + flag] |= 1
    path.write_bytes(content)
    refused(path, "encrypted")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as made:
        for name, one in GOOD.items():
            made.writestr(name, one)
        made.writestr("ant/bz.png", png(70), zipfile.ZIP_BZIP2)
    refused(tmp_path / "a.zip", "neither stored nor deflated")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice(tmp_path) -> None:
    refused(in_zip(tmp_path / "a.zip", ("ant/0.png", png(90))), "twice")
    refused(in_tar(tmp_path / "a.tar", (info("ant/0.png"), png(90))), "twice")


def test_litter_is_passed_over_and_other_files_are_listed(tmp_path) -> None:
    more: list[Any] = [("__MACOSX/ant/._0.png", b"x"), ("ant/.DS_Store", b"x"), ("Thumbs.db", b"x"), ("LICENSE", b"x")]
    assert load_images(in_zip(tmp_path / "a.zip", *more)).skipped == ()
    data = load_images(in_zip(tmp_path / "b.zip", ("ant/notes/a.txt", b"x")))
    assert data.skipped == ("ant/notes/a.txt: not an image, by name or content",)
    refused(in_zip(tmp_path / "c.zip", ("loose.png", png())), "in no class folder")


def test_an_archive_is_the_folder_that_it_was_made_of(tmp_path) -> None:
    for name, content in GOOD.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(content)
    folder = load_images(tmp_path / "set")
    for path in (in_zip(tmp_path / "set.zip"), in_tar(tmp_path / "set.tar"), in_tar(tmp_path / "set.tgz", mode="w:gz")):
        found = load_images(path)
        assert found.train.fingerprint == folder.train.fingerprint
        assert found.test.fingerprint == folder.test.fingerprint
        assert found.name == folder.name


def test_an_archive_that_changed_is_uncompressed_anew(tmp_path, cache) -> None:
    path = in_tar(tmp_path / "a.tar.gz", mode="w:gz")
    before = load_images(path, test_share=0.0).train
    assert load_images(path, test_share=0.0).train.fingerprint == before.fingerprint
    assert len(list(cache.rglob("*.tar"))) == 1
    in_tar(path, (info("bee/9.png"), png(80)), mode="w:gz")
    assert len(load_images(path, test_share=0.0).train) == len(before) + 1
    (path.parent / "a.zip").mkdir()  # a folder of such a name is a folder
    with pytest.raises(DataError, match="holds nothing"):
        load_images(path.parent / "a.zip")
