"""The one reader of pictures: from a file, or from its bytes, to uint8, wherever pictures are used.

Whatever a file holds becomes 256 levels of grey or colour, opaque and upright, by rules that look at this file alone:

* more than 8 bits of grey: scaled by the range that the format states (16 bits: v / 257), never clipped;
* 32-bit floats and integers: floats within [0, 1] times 255, whole numbers within [0, 255] as they are. Nothing else
  says what is white, so it is refused;
* alpha: composed on white; on black when all that is to be seen is nearly white, which white would hide;
* orientation by EXIF: applied; several frames: the first; palette, CMYK and one bit: converted;
* a large JPEG of which less is wanted: decoded at a reduced size (`reduced.py`).

What a picture was turned from is told beside its pixels, for a survey to count. Decoders raise whatever they stumble
over; it is caught here, and nowhere else, and becomes a `PictureError` that names the file.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from raydistill.tasks.picture_files import printable
from raydistill.tasks.reduced import JPEG, Box, is_large_jpeg, reduction

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

READER = "pictures-2"
"""Part of the identity of whatever is read here: change it when a file gives other pixels than before."""

FORMATS = (
    "PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "QOI", "PSD", "DIB", "SGI",
    "PCX", "DCX", "DDS", "FITS", "FLI", "FTEX", "GBR", "ICNS", "BLP", "CUR", "IM", "MSP", "PCD", "PIXAR", "SUN",
    "XBM", "XPM", "TGA",
)  # fmt: skip
"""What is opened, the common ones first. EPS would start Ghostscript; WMF, GRIB and others have no decoder."""

WHITE, BLACK = 255, 0
NEARLY_WHITE = 192
FEW_LEVELS = 8  # a picture that uses less than this part of its range looks black
GREY = ("1", "L", "LA", "I", "F")
ORIENTATION, BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 274, 258, 262, 0
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LYING = (5, 6, 7, 8)
"""Orientations that change width and height places."""

Pixels = NDArray[np.uint8]
Shape = tuple[int, ...]
Wanted = Callable[[int, int], tuple[Box, int, int]]
"""From the (width, height) of an upright picture to the part (left, top, right, bottom) that is wanted of it, and the
(height, width) to which that is scaled."""


class PictureError(ValueError):
    """A picture that cannot be read; the message names it and the reason."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True)
class Picture:
    """An upright, opaque image of mode L or RGB, and in words what it was turned from."""

    image: Image.Image
    turned: tuple[str, ...] = ()


def read_picture(source: Path | bytes, channels: int | None = None, *, name: str | None = None) -> Picture:
    """A whole picture in `channels` (1: grey, 3: colour; without it, as it comes). `name` is what errors call it."""
    with _opened(source, name) as opened:
        return _turned(opened, channels)


def read_part(source: Path | bytes, channels: int, wanted: Wanted, *, name: str | None = None) -> Image.Image:
    """The part of a picture that is `wanted`, scaled, in `channels`. Of a large JPEG no more is decoded than that
    needs."""
    with _opened(source, name) as opened:
        factor = 1
        if _may_be_reduced(source, opened):
            box, height, width = wanted(*_upright_size(opened))
            factor = reduction(box, height, width)
            if factor > 1:
                opened.draft(None, (opened.width // factor, opened.height // factor))
        image = _turned(opened, channels).image
        if factor == 1:
            box, height, width = wanted(*image.size)
        # A reduced pixel covers `factor` whole ones, the last one perhaps fewer.
        left, top, right, bottom = (side / factor for side in box)
        return image.resize((width, height), Image.Resampling.BILINEAR, box=(left, top, right, bottom))


@contextmanager
def _opened(source: Path | bytes, name: str | None) -> Iterator[ImageFile]:
    # What decoders remark on (torn notes in the file, many pixels) is no fault of the pixels.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        with Image.open(
            source if isinstance(source, Path) else io.BytesIO(source), formats=FORMATS
        ) as opened:
            yield opened
    except Exception as error:
        shown = name or f"`{printable(str(source))}`"
        raise PictureError(f"{shown} is not a readable picture: {_reason(source, error)}") from None


def _may_be_reduced(source: Path | bytes, opened: ImageFile) -> bool:
    size = source.stat().st_size if isinstance(source, Path) else len(source)
    return is_large_jpeg(size, JPEG if opened.format in ("JPEG", "MPO") else b"")


def _upright_size(opened: ImageFile) -> tuple[int, int]:
    """(width, height) after the orientation that a JPEG's EXIF says."""
    width, height = opened.size
    return (height, width) if _orientation(opened) in LYING else (width, height)


def scaled_picture(
    source: Path | bytes, shape: Shape, *, name: str | None = None
) -> tuple[Pixels, tuple[str, ...]]:
    """A whole picture as uint8 `shape` (channels, height, width), scaled where its size is another."""
    channels, height, width = shape
    picture = read_picture(source, channels, name=name)
    return part_of(picture.image, (0, 0, *picture.image.size), height, width), picture.turned


def exact_picture(
    source: Path | bytes, shape: Shape, *, name: str | None = None
) -> tuple[Pixels, tuple[str, ...]]:
    """A picture of exactly `shape` (channels, height, width); `PictureError` when its size is another."""
    channels, height, width = shape
    picture = read_picture(source, channels, name=name)
    if picture.image.size != (width, height):
        shown, size = name or f"`{printable(str(source))}`", picture.image.size
        raise PictureError(f"{shown} is {size[0]} x {size[1]}, not {width} x {height} (see `image_size`)")
    return part_of(picture.image, (0, 0, width, height), height, width), picture.turned


def part_of(image: Image.Image, box: Box, height: int, width: int) -> Pixels:
    """The part (left, top, right, bottom) of an image, scaled to uint8 (channels, height, width)."""
    return pixels_of(image.resize((width, height), Image.Resampling.BILINEAR, box=box))


def pixels_of(image: Image.Image) -> Pixels:
    """uint8 (channels, height, width)."""
    values = np.array(image)
    return values[None] if values.ndim == 2 else np.ascontiguousarray(values.transpose(2, 0, 1))


def centre_box(width: int, height: int, part: float) -> Box:
    """(left, top, right, bottom) of the central square whose side is `part` of the picture's shorter side."""
    side = min(width, height) * min(part, 1.0)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _reason(source: Path | bytes, error: Exception) -> str:
    if source == b"" or (isinstance(source, Path) and source.is_file() and not source.stat().st_size):
        return "it is empty"
    if isinstance(error, UnidentifiedImageError):
        return "its content has no known format"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(" ".join(said.split())) or type(error).__name__


def _turned(opened: ImageFile, channels: int | None) -> Picture:
    turned: list[str] = []
    if getattr(opened, "is_animated", False):
        turned.append("several frames, the first taken")
    opened.load()
    image = _upright(opened, _opaque(_eight_bits(opened, turned), turned), turned)
    if (opened.mode in GREY or opened.mode.startswith("I;16")) and image.mode != "L":
        image = image.convert("L")
    wanted = {None: image.mode, 1: "L", 3: "RGB"}[channels]
    if (image.mode, wanted) == ("RGB", "L"):
        turned.append("colour, turned grey")
    # A copy of 12 megapixels takes as long as half of their decoding.
    return Picture(image if image.mode == wanted else image.convert(wanted), tuple(turned))


def _eight_bits(opened: ImageFile, turned: list[str]) -> Image.Image:
    """The same picture in mode L, RGB or RGBA."""
    if opened.mode.startswith("I;16") or opened.mode in ("I", "F"):
        return _scaled_levels(opened, turned)
    for mode, words in (("P", "palette"), ("PA", "palette"), ("1", "one bit"), ("CMYK", "CMYK")):
        if opened.mode == mode:
            turned.append(words)
    if opened.has_transparency_data:
        return opened.convert("RGBA")
    if opened.mode in ("L", "RGB"):
        return opened
    return opened.convert("L" if opened.mode == "1" else "RGB")


def _scaled_levels(opened: ImageFile, turned: list[str]) -> Image.Image:
    tags = getattr(opened, "tag_v2", {})
    values = np.asarray(opened)
    # What portable grey maps of 16 bits say is decoded to this range, in 32-bit integers.
    if opened.mode.startswith("I;16") or (opened.format == "PPM" and opened.mode == "I"):
        levels = _of_range(values, 2 ** tags.get(BITS_PER_SAMPLE, (16,))[0] - 1, turned)
    else:
        levels = _of_32_bits(values, turned)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        levels = 255 - levels
    image = Image.fromarray(levels)
    key = opened.info.get("transparency")
    if not isinstance(key, int):
        return image
    alpha = np.where(values == key, 0, 255).astype(np.uint8)
    return Image.merge("RGBA", (image, image, image, Image.fromarray(alpha)))


def _of_range(values: NDArray[np.integer], largest: int, turned: list[str]) -> Pixels:
    """Integers from 0 to `largest`, rounded to the nearest of 256 levels."""
    turned.append("more than 8 bits of grey, scaled")
    if values.max(initial=0) < largest // FEW_LEVELS:
        turned.append("grey that uses less than an eighth of its range: nearly black")
    return ((values.astype(np.uint32) * 255 + largest // 2) // largest).astype(np.uint8)


def _of_32_bits(values: NDArray[np.number], turned: list[str]) -> Pixels:
    if not np.isfinite(values).all():
        raise ValueError("some of its values are not finite")
    low, high = values.min().item(), values.max().item()
    turned.append("32-bit values")
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    if low >= 0 and high <= 255 and (values == np.rint(values)).all():
        return values.astype(np.uint8)
    raise ValueError(
        f"its 32-bit values go from {low:g} to {high:g}, and nothing says which is white; "
        "save it with 8 or 16 bits, or as floats from 0 to 1"
    )


def _opaque(image: Image.Image, turned: list[str]) -> Image.Image:
    """An image without alpha: what shines through is the background."""
    if image.mode != "RGBA":
        return image
    values = np.asarray(image)
    alpha = values[..., 3:].astype(np.uint16)
    if (alpha == 255).all():
        return image.convert("RGB")
    background = _background(values[..., :3], values[..., 3])
    turned.append(f"alpha, composed on {'white' if background == WHITE else 'black'}")
    composed = (values[..., :3] * alpha + background * (255 - alpha) + 127) // 255
    return Image.fromarray(composed.astype(np.uint8))


def _background(colours: Pixels, alpha: Pixels) -> int:
    # What is half as opaque as the most opaque pixel: resizing leaves fringes of any colour around a drawing.
    seen = colours[alpha.astype(np.uint16) * 2 >= alpha.max(initial=0)] if alpha.any() else colours[:0]
    return BLACK if seen.size and seen.min() >= NEARLY_WHITE else WHITE


def _upright(opened: ImageFile, image: Image.Image, turned: list[str]) -> Image.Image:
    # After `load`: PNG may say it behind the pixels, and TIFF has been turned by then and says it no more.
    orientation = _orientation(opened)
    if orientation is None:
        turned.append("unreadable EXIF, ignored")
    if orientation not in UPRIGHT:
        return image
    turned.append("orientation by EXIF, applied")
    return image.transpose(UPRIGHT[orientation])


def _orientation(opened: ImageFile) -> int | None:
    """What EXIF says, 0 where it says nothing; None where the notes are torn, beside whole pixels."""
    try:
        return int(opened.getexif().get(ORIENTATION) or 0)
    except Exception:
        return None
