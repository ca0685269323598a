"""Large JPEGs are decoded at a half, a quarter or an eighth of their size where that is enough for what is wanted.

A JPEG is made of blocks of 8 x 8 frequencies; leaving out the high ones gives the picture at a reduced size, without
the work for pixels that scaling would average away: of 12 megapixels 30, 26 or 22 ms instead of 64, and 31 less for
scaling (one thread; torchvision.io.decode_jpeg, which has the same pixels: 53, and 0.77 instead of 0.94 of 500 x 375,
too little for a second decoder and an import of torch wherever a picture is read). The filter is
another one, so the pixels are others, too: by 0.4 to 0.9 grey levels in the mean with `GAP` 2, where bilinear and
bicubic scaling of the whole differ by 0.9 to 2 (measured on photographs; without a gap it is 1 to 3.5).

What is reduced, and how far, is told by the file and by what is wanted of it alone. Files of less than `LARGE` bytes
never are: they are quickly read as they are, keep their pixels, and what was learned from them keeps its identity.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import IO

REDUCED = "jpeg-reduced-1"
"""Part of the identity of data with a large JPEG: change it when one gives other pixels than before."""

JPEG = b"\xff\xd8\xff"
LARGE = 1 << 18
GAP = 2.0
FACTORS = (8, 4, 2)

Box = tuple[float, float, float, float]


def is_large_jpeg(size: int, beginning: bytes) -> bool:
    """Whether a picture of `size` bytes may be decoded at a reduced size."""
    return size >= LARGE and beginning.startswith(JPEG)


def reduction(box: Box, height: int, width: int) -> int:
    """By how much a picture may be reduced whose part `box` is to be scaled to `height` x `width`: 1, 2, 4 or 8."""
    left, top, right, bottom = box
    room = min((right - left) / width, (bottom - top) / height) / GAP
    return next((factor for factor in FACTORS if factor <= room), 1)


def is_large_file(file: Path) -> bool:
    """Whether a file is a large JPEG."""
    size = file.stat().st_size
    if size < LARGE:
        return False
    with file.open("rb") as stream:
        return is_large_jpeg(size, stream.read(len(JPEG)))


def has_large_jpeg(stream: IO[bytes], stretches: Iterable[tuple[int, int]]) -> bool:
    """Whether one of a file's stretches (offset, size) is a large JPEG."""
    for offset, size in stretches:
        if size >= LARGE:
            stream.seek(offset)
            if is_large_jpeg(size, stream.read(len(JPEG))):
                return True
    return False
