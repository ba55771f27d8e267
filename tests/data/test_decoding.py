"""Every check writes a file that once broke a training run somewhere, and looks at the pixels that come out."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tightframe.data import decoding as images
from tightframe.data.decoding import IMAGE_SUFFIXES, as_opened, open_image
from tightframe.errors import BadImage, DataError

NOISE = np.random.default_rng(7).integers(0, 256, (6, 9, 3), dtype=np.uint8)  # no symmetry, not square


def pixels(path: Path) -> np.ndarray:
    return np.asarray(open_image(path))


def smooth(width: int = 40, height: int = 24) -> np.ndarray:
    """An image that JPEG hardly changes."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 90)], axis=-1).astype(np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_declaring(width: int, height: int, rows: bytes = b"\0") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def refusal(path: Path) -> str:
    with pytest.raises(BadImage) as caught:
        open_image(path)
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)
    assert caught.value.__cause__ is not None
    return caught.value.reason


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_lossless_formats_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(NOISE).save(path)
    image = open_image(path)
    assert type(image) is Image.Image  # not tied to the file any more
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), NOISE)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "gif"])
def test_lossy_formats_come_back_nearly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(smooth()).save(path)
    assert np.abs(pixels(path).astype(int) - smooth()).mean() < 8


def test_format_is_told_by_content_not_by_suffix(tmp_path: Path) -> None:
    path = tmp_path / "really-a-png.jpg"
    Image.fromarray(NOISE).save(path, "PNG")
    np.testing.assert_array_equal(pixels(path), NOISE)


def test_str_paths_are_taken_too(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    assert open_image(str(tmp_path / "a.png")).size == (9, 6)


# EXIF orientation, undone with NumPy alone: rows and columns as the standard's table places the 0th row and column.
UNDO: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_images_are_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = NOISE if suffix in ("png", "tif") else smooth()
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    quality = {} if suffix in ("png", "tif") else {"quality": 95}
    Image.fromarray(stored).save(path, exif=exif, **quality)
    expected = UNDO[orientation](stored)
    found = pixels(path)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < (1e-9 if suffix in ("png", "tif") else 8)
    assert not open_image(path).getexif()  # else the next reader turns it again


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_does_not_exist_leaves_the_image_alone(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(NOISE).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), NOISE)


def test_damaged_exif_is_no_reason_to_lose_an_image(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), NOISE)


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    alpha = np.zeros((6, 9), dtype=np.uint8)
    alpha[:2], alpha[2:4] = 255, 128
    Image.fromarray(np.dstack([NOISE, alpha])).save(tmp_path / "a.png")
    weight = alpha[..., None] / 255
    expected = NOISE * weight + 255 * (1 - weight)
    assert np.abs(pixels(tmp_path / "a.png") - expected).max() <= 1
    assert (pixels(tmp_path / "a.png")[4:] == 255).all()


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\x80"])
def test_palette_with_transparency(tmp_path: Path, transparency: int | bytes) -> None:
    indexed = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    indexed.putpalette([10, 20, 30, 40, 50, 60, 100, 100, 100])
    indexed.save(tmp_path / "a.png", transparency=transparency)
    first, second, third = pixels(tmp_path / "a.png")[0].tolist()
    assert first == [10, 20, 30]
    assert second == [255, 255, 255]
    expected = 100 if transparency == 1 else 100 * 128 / 255 + 255 * 127 / 255
    assert abs(third[0] - expected) <= 1


@pytest.mark.parametrize(("mode", "clear"), [("L", 9), ("RGB", (9, 9, 9))])
def test_a_color_declared_transparent_becomes_white(tmp_path: Path, mode: str, clear: object) -> None:
    image = Image.new(mode, (2, 1), clear)
    image.putpixel((0, 0), 70 if mode == "L" else (70, 70, 70))
    image.save(tmp_path / "a.png", transparency=clear)
    assert pixels(tmp_path / "a.png").tolist() == [[[70, 70, 70], [255, 255, 255]]]


def test_cmyk_jpeg_keeps_its_colors(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(
        tmp_path / "a.jpg", quality=95
    )  # cyan 0, magenta and yellow full
    red, green, blue = pixels(tmp_path / "a.jpg").reshape(-1, 3).mean(0)
    assert red > 240
    assert green < 15
    assert blue < 15


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    deep = np.array([[0, 257, 1000, 32768, 65278, 65535]], dtype=np.uint16)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(deep).save(path)
    expected = np.rint(deep / 257).astype(np.uint8)
    np.testing.assert_array_equal(pixels(path), np.repeat(expected[..., None], 3, axis=-1))


def test_sixteen_bit_big_endian_tiff(tmp_path: Path) -> None:
    tags = [(256, 3, 2), (257, 3, 1), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 1)]
    tags.append((279, 4, 4))
    data = b"MM\0*" + struct.pack(">I", 12) + struct.pack(">HH", 0x0102, 0xFFFF) + struct.pack(">H", len(tags))
    for tag, kind, value in tags:
        data += struct.pack(">HHI", tag, kind, 1) + (
            struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value)
        )
    (tmp_path / "a.tif").write_bytes(data + b"\0\0\0\0")
    assert pixels(tmp_path / "a.tif")[0, :, 0].tolist() == [1, 255]


def test_transparent_gray_of_a_sixteen_bit_png_becomes_white(tmp_path: Path) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 0, 0, 0, 0)) + chunk(b"tRNS", struct.pack(">H", 500))
    rows = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">HH", 500, 25700)))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b""))
    assert pixels(tmp_path / "a.png")[0, :, 0].tolist() == [255, 100]


def test_thirty_two_bit_gray_within_sixteen_is_scaled_and_beyond_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 65535]], dtype=np.int32)).save(tmp_path / "fits.tif")
    assert pixels(tmp_path / "fits.tif")[0, :, 0].tolist() == [0, 255]
    for name, value in (("above.tif", 65536), ("below.tif", -1)):
        Image.fromarray(np.array([[0, value]], dtype=np.int32)).save(tmp_path / name)
        assert str(value) in refusal(tmp_path / name)


def test_floating_point_is_refused_with_its_reason(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5]], dtype=np.float32)).save(tmp_path / "a.tif")
    assert "floating-point" in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_several_frames_the_first(tmp_path: Path, suffix: str) -> None:
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    path = tmp_path / f"a.{suffix}"
    red.save(path, save_all=True, append_images=[blue], **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(path) as both:
        assert both.n_frames == 2
    assert (pixels(path) == (255, 0, 0)).all()


def test_first_of_an_mpo(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (16, 16), (255, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 255))
    red.save(tmp_path / "a.mpo", save_all=True, append_images=[blue])
    assert pixels(tmp_path / "a.mpo")[..., 0].mean() > 240


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA"])
def test_every_mode_ends_as_rgb(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (3, 2)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").mode == "RGB"


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    assert "empty" in refusal(tmp_path / "a.jpg")


def test_text_called_jpg(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("404: Not Found\n" * 20)
    assert "not an image" in refusal(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tif", "ppm"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    open_image(path)
    path.write_bytes(whole[: int(share * len(whole))])
    assert refusal(path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_says_so(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    assert "cut short" in refusal(path)


def test_corrupt_png(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[60] ^= 0xFF
    (tmp_path / "a.png").write_bytes(data)
    assert refusal(tmp_path / "a.png")


@pytest.mark.parametrize("start", [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"])
def test_a_known_signature_and_then_rubbish(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(start + b"rubbish" * 30)
    reason = refusal(tmp_path / "a.jpg")
    assert "damaged" in reason or "cut short" in reason


def test_random_damage_only_ever_raises_bad_image(tmp_path: Path) -> None:
    luck = np.random.default_rng(3)
    refused = 0
    for suffix in ("jpg", "png", "gif", "webp", "tif", "bmp", "ppm"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(smooth()).save(path)
        whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(25):
            damaged = whole.copy()
            places = luck.integers(0, min(len(damaged), 400), 6)
            damaged[places] = luck.integers(0, 256, 6)
            path.write_bytes(damaged.tobytes())
            try:
                assert open_image(path).mode == "RGB"
            except BadImage:
                refused += 1
    assert refused > 30


def test_eps_is_refused_without_asking_its_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    def ghostscript(*_: object, **__: object) -> None:
        pytest.fail("started Ghostscript")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.eps").read_bytes())
    for name in ("a.eps", "a.jpg"):
        assert "EPS" in refusal(tmp_path / name)


@pytest.mark.parametrize("suffix", ["ico", "tga", "pcx", "sgi", "pdf", "dds"])
def test_formats_off_the_list_are_refused(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / f"a.{suffix}")
    (tmp_path / f"a.{suffix}").rename(tmp_path / "a.png")
    assert "not" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(9460, 9460), (20_000, 20_000), (2**31 - 1, 2**31 - 1), (89_478_486, 1)])
def test_bombs_are_refused_before_decoding(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    (tmp_path / "a.png").write_bytes(png_declaring(*size))
    assert "pixels" in refusal(tmp_path / "a.png")


def test_bombs_are_refused_whatever_the_warning_filters_and_the_limit_of_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(png_declaring(9460, 9460))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert f"{images.MAX_PIXELS:,}" in refusal(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert "9460 x 9460" in refusal(tmp_path / "a.png")


def test_a_large_image_within_the_limit_is_read(tmp_path: Path) -> None:
    rows = (b"\0" + b"\7" * 3 * 3000) * 2000
    (tmp_path / "a.png").write_bytes(png_declaring(3000, 2000, rows))
    assert open_image(tmp_path / "a.png").size == (3000, 2000)


def test_global_state_is_left_alone_by_many_threads(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "good.png")
    (tmp_path / "bomb.png").write_bytes(png_declaring(9460, 9460))
    (tmp_path / "empty.png").write_bytes(b"")

    def outcome(name: str) -> str:
        try:
            return open_image(tmp_path / name).mode
        except BadImage as error:
            return error.reason.split()[-1]

    names = ["good.png", "bomb.png", "empty.png"] * 40
    before = (Image.MAX_IMAGE_PIXELS, list(warnings.filters), warnings.showwarning)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(outcome, names))
    assert before == (Image.MAX_IMAGE_PIXELS, list(warnings.filters), warnings.showwarning)
    assert found == [outcome(name) for name in names[:3]] * 40


def test_missing_folder_pipe_and_impossible_names(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert "no such file" in refusal(tmp_path / "missing.jpg")
    assert "folder" in refusal(tmp_path / "folder.jpg")
    assert "not a file" in refusal(tmp_path / "pipe.jpg")  # opening it would wait for ever
    assert refusal(tmp_path / "nul\0.jpg")


@pytest.mark.parametrize(
    "error",
    [OSError("x"), SyntaxError("x"), ValueError(), struct.error("x"), EOFError(), ZeroDivisionError(), MemoryError()],
)
def test_whatever_a_decoder_raises_becomes_bad_image(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import PngImagePlugin

    def explode(_: object) -> None:
        raise error

    Image.fromarray(NOISE).save(tmp_path / "a.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_prepare", explode)
    with pytest.raises(BadImage, match=r"damaged|memory") as caught:
        open_image(tmp_path / "a.png")
    assert caught.value.__cause__ is error
    assert isinstance(caught.value, DataError)


def test_an_interrupt_is_not_a_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    Image.fromarray(NOISE).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "_opened", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_image(tmp_path / "a.png")


def test_suffixes_are_lower_case_with_dot() -> None:
    assert {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm"} <= IMAGE_SUFFIXES
    assert ".eps" not in IMAGE_SUFFIXES
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)


@pytest.mark.parametrize(
    ("steps", "suffix"),
    [
        (["RGB"], "png"),
        (["RGBA"], "png"),
        (["LA"], "png"),
        (["RGB", "P"], "png"),
        (["I", "I;16"], "png"),
        (["CMYK"], "tif"),
    ],
    ids=str,
)
def test_an_image_that_is_open_is_seen_as_its_file_is(tmp_path, steps, suffix):
    image = Image.linear_gradient("L").resize((12, 8))
    for mode in steps:
        image = image.convert(mode)
    if image.mode in ("RGBA", "LA"):
        image.putalpha(100)
    image.save(tmp_path / f"image.{suffix}")
    before = image.tobytes()
    assert as_opened(image, "it").tobytes() == open_image(tmp_path / f"image.{suffix}").tobytes()
    assert image.tobytes() == before


def test_an_open_image_that_can_not_be_shown_is_named():
    with pytest.raises(BadImage, match="image 3"):
        as_opened(Image.new("F", (4, 4)), "image 3")
