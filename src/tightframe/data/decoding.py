"""One image file in, one upright RGB image out; or ``BadImage`` with a reason in plain words.

Read are JPEG (and MPO), PNG, GIF, BMP, WebP, TIFF and PPM, told by content and not by suffix; AVIF and JPEG 2000 where
Pillow was built with them; HEIC where its plugin (the package ``pillow-heif``) is installed. No other format is tried:
some start programs (EPS starts Ghostscript), and few eyes have been on the rarer decoders.

What is in the file becomes what a person would see:

- turned upright as EXIF says; the first frame of an animation, the first page of a TIFF
- transparent parts laid over white; palettes, grays and CMYK converted
- 16-bit gray scaled to 8 bits (65535, or the white level that is given, becomes 255)

Floating-point gray, and whole numbers outside 0 to 65535, have no agreed white and are refused. A JPEG of more pixels
than are read is decoded at a half, a quarter or an eighth of its size; large images are decoded one at a time.

Safe to call from several threads: no setting of Pillow and no warning filter is touched. Where the caller has made
warnings errors (``python -W error``), a file that Pillow warns of (odd metadata, say) is a bad image too.
"""

from __future__ import annotations

import stat
import struct
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import IO

import numpy as np
from PIL import (  # noqa: F401  Importing a format's plugin registers it; else the first open imports all forty.
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
    features,
)

from tightframe.errors import BadImage, SettingsError


def _further() -> dict[str, tuple[str, ...]]:
    """Formats that this Pillow reads besides the usual ones, and the suffixes of their files."""
    found = dict[str, tuple[str, ...]]()
    if features.check_codec("jpg_2000"):
        found["JPEG2000"] = (".jp2", ".j2k", ".jpx", ".jpf")
    if find_spec("PIL.AvifImagePlugin"):
        from PIL import AvifImagePlugin

        if AvifImagePlugin.SUPPORTED:
            found["AVIF"] = (".avif",)
    if find_spec("pillow_heif"):
        import pillow_heif  # type: ignore[import-not-found, unused-ignore]

        pillow_heif.register_heif_opener()
        found["HEIF"] = (".heic", ".heif")
    return found


_FURTHER = _further()
_MORE_SUFFIXES = frozenset(suffix for suffixes in _FURTHER.values() for suffix in suffixes)

IMAGE_SUFFIXES = _MORE_SUFFIXES | {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".bmp", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
}
"""Suffixes, in lower case, of image files."""

HEIC_SUFFIXES = frozenset({".heic", ".heif"})
UNREAD_SUFFIXES = (
    frozenset({".heic", ".heif", ".avif", ".jp2", ".j2k", ".jpx", ".jpf", ".jxl", ".svg", ".eps", ".psd", ".tga"})
    | frozenset({".exr", ".hdr", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".dcm"})
) - IMAGE_SUFFIXES
"""Suffixes, in lower case, of image files that are not read."""

MAX_PIXELS = 89_478_485
"""Most pixels an image may declare: a quarter of a gigabyte as RGB. The same number from which Pillow warns."""
WHITE = 65535
"""The 16-bit gray that is white."""


@dataclass(frozen=True)
class Decoding:
    """How image files are decoded.

    Attributes:
        max_pixels: most pixels that an image may declare.
        white_level: the 16-bit gray that becomes white, such as 4095 for images of 12 bits.
    """

    max_pixels: int = MAX_PIXELS
    white_level: int = WHITE

    @property
    def mark(self) -> bytes:
        """What sets the same file, decoded in another way, apart; empty for the usual way."""
        return b"" if self.white_level == WHITE else f"white level {self.white_level}".encode()


USUAL = Decoding()


def decoding(max_pixels: int, white_level: int = WHITE) -> Decoding:
    """How to decode. Raises ``SettingsError`` for values out of range."""
    if max_pixels < 1:
        raise SettingsError(f"--max-pixels is {max_pixels}; it must be 1 or more")
    if not 1 <= white_level <= WHITE:
        raise SettingsError(f"--white-level is {white_level}; it must be 1 to {WHITE}, such as 4095 for 12 bits")
    return Decoding(max_pixels, white_level)


_AT_ONCE = 1 << 26
_LARGE = 1 << 24
"""Pixels from which images are decoded one at a time: several copies of each are in memory meanwhile."""
_ONE_LARGE = Lock()
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", *_FURTHER)  # JPEG opens MPO as well
_NAMES = {"WEBP": "WebP", "JPEG2000": "JPEG 2000", "HEIF": "HEIC"}
_READ = ", ".join(_NAMES.get(one, one) for one in FORMATS)
_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
_FOREIGN = {b"%!PS": "PostScript (EPS)", b"\xc5\xd0\xd3\xc6": "PostScript (EPS)", b"%PDF": "PDF", b"<svg": "SVG"}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _Refused(Exception):
    """The file is sound, but not an image we can show; carries the reason."""


def is_image(path: Path) -> bool:
    """Whether ``path`` is an image by its suffix or by its first bytes."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    with path.open("rb") as stream:
        return stream.read(8).startswith(tuple(_SIGNATURES))


def open_image(path: str | Path, how: Decoding = USUAL) -> Image.Image:
    """The image in the file ``path``: mode RGB, upright, decoded to the last row, the file closed again.

    Raises:
        BadImage: the file is missing, empty, cut short, damaged, too large, or in a format that is not read. The
            exception that Pillow or the system raised is its ``__cause__``.

    """
    path = Path(path)
    try:
        kind = path.stat()
        if not stat.S_ISREG(kind.st_mode):  # Opening a named pipe would wait for ever.
            raise _Refused("not a file" if not stat.S_ISDIR(kind.st_mode) else "a folder, not an image")
        if kind.st_size == 0:
            raise _Refused("the file is empty (0 bytes)")
        with path.open("rb") as stream:  # read at once where that is small: Pillow would ask for it bit by bit
            return _decode(BytesIO(stream.read()) if kind.st_size <= _AT_ONCE else stream, how)
    except UnidentifiedImageError as error:
        raise BadImage(path, _unidentified(_start(path))) from error
    except Exception as error:  # Damaged files make Pillow raise nearly anything.
        raise BadImage(path, _plain(error)) from error


def decode(content: bytes, name: str, how: Decoding = USUAL) -> Image.Image:
    """The image in ``content``, the bytes of an image file, as ``open_image`` would give it.

    Raises:
        BadImage: as ``open_image``, under ``name``.

    """
    try:
        if not content:
            raise _Refused("it is empty (0 bytes)")
        return _decode(BytesIO(content), how)
    except UnidentifiedImageError as error:
        raise BadImage(name, _unidentified(content[:16])) from error
    except Exception as error:
        raise BadImage(name, _plain(error)) from error


def as_opened(image: Image.Image, name: str) -> Image.Image:
    """An image that is open already, as ``open_image`` would give it: a new one, mode RGB, upright.

    Raises:
        BadImage: as ``open_image``, under ``name``.

    """
    try:
        return _upright(image, USUAL)
    except Exception as error:
        raise BadImage(name, _plain(error)) from error


def _decode(stream: IO[bytes] | BytesIO, how: Decoding) -> Image.Image:
    # A stream and not a path: given a path, Pillow may memory-map the file, and pixels would change if the file does.
    with _opened(stream) as image:
        width, height = image.size
        if width * height > MAX_PIXELS and image.format in ("JPEG", "MPO"):
            part = next((part for part in (2, 4, 8) if width * height <= MAX_PIXELS * part**2), 8)
            image.draft("RGB", (width // part, height // part))
        if image.width * image.height > how.max_pixels:
            raise _Refused(
                f"it declares {width} x {height} pixels; at most {how.max_pixels:,} are read. If you trust it, pass "
                "--max-pixels (max_pixels=…) with more"
            )
        with _ONE_LARGE if image.width * image.height >= _LARGE else nullcontext():
            return _upright(image, how)


def _opened(stream: IO[bytes] | BytesIO) -> Image.Image:
    """The image, not decoded yet: as ``Image.open``, which would refuse or warn of large ones by a limit of its own."""
    start = stream.read(16)
    for name in FORMATS:
        make, accepts = Image.OPEN[name]
        taken = accepts is None or accepts(start)
        if taken and not isinstance(taken, str):  # else it says what this Pillow lacks
            stream.seek(0)
            with suppress(SyntaxError, IndexError, TypeError, struct.error):  # which mean: not of this format
                return make(stream, "")
    raise UnidentifiedImageError


def _upright(image: Image.Image, how: Decoding) -> Image.Image:
    image.load()
    turn = _UPRIGHT.get(_orientation(image))  # After load: TIFFs are turned, and forget their tag, on loading.
    seen = _as_rgb(image, how)
    if turn is not None:
        seen = seen.transpose(turn)
    seen.info.clear()  # What remained of EXIF would let a later reader turn the image again.
    return seen


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where it can't be made out, for damaged metadata is no reason to lose an image."""
    if image.format == "JPEG" and image.info.keys().isdisjoint(("exif", "xmp")):
        return 1  # as Pillow would find, in a tenth of a millisecond
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _as_rgb(image: Image.Image, how: Decoding) -> Image.Image:
    if image.mode == "F":
        raise _Refused("its pixels are floating-point numbers, whose white is unknown; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_deep_gray(image, how.white_level)
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image.convert("RGB")


def _from_deep_gray(image: Image.Image, white: int) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise _Refused(f"its grays run from {values.min()} to {values.max()}; at most 16 bits (0 to 65535) are read")
    gray = ((values.clip(max=white) * 255 + white // 2) // white).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        gray[values == clear] = 255
    return Image.fromarray(gray).convert("RGB")


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(16)
    except OSError:
        return b""


def _unidentified(start: bytes) -> str:
    """Why no decoder took what begins with ``start``: known but damaged, known but not read, or no image at all."""
    for signature, name in _SIGNATURES.items():
        if start.startswith(signature):
            return f"it starts like a {name} file, but its header is damaged, cut short or of a kind that is not read"
    for signature, name in _FOREIGN.items():
        if start.startswith(signature):
            return f"it is {name}, which is not read (read are {_READ})"
    return f"it is not an image in a format that is read ({_READ})"


def _plain(error: Exception) -> str:
    if isinstance(error, _Refused):
        return str(error)
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"it declares more pixels than are read (at most {MAX_PIXELS:,}): {error}"
    if isinstance(error, MemoryError):
        return "too little memory to decode it"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError) and error.errno is not None:
        return f"it can't be read ({error.strerror})"
    if "truncated" in str(error).lower():
        return f"it is cut short ({error})"
    return f"it is damaged ({error or type(error).__name__})"
