"""One character in one font as a small grey picture: random affine map, blur and noise."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from raydistill.tasks.digests import digest_text
from raydistill.tasks.hashing import fold_key
from raydistill.tasks.make.glyph_fonts import Face, open_font

FINER = 2  # drawn and mapped at this multiple of the final size
FILLS = (0.7, 0.95)  # longer side of the ink, as a part of the picture
ROTATION, SHEAR, STRETCH, SHIFT = math.radians(8), 0.15, 0.1, 0.06
BLUR, NOISE, INK = 0.8, 0.1, 0.55
"""Largest blur radius in pixels, largest deviation of the noise and least strength of the ink, of 1."""


def glyph_id(family: str, character: str, variant: int) -> int:
    """60 bits of a hash: an id stays when fonts, classes or variants are added."""
    return int(digest_text(f"{family}\n{character}\n{variant}")[:15], 16)


def draw_variant(
    faces: Sequence[Face], character: str, *, size: int, seed: int, sample: int
) -> NDArray[np.uint8]:
    """White on black, (size, size): a function of the fonts, the seed and the sample's id alone."""
    random = np.random.default_rng(fold_key(seed, sample))
    face = faces[int(random.integers(len(faces)))]
    return distort(draw(open_font(face, FINER * size), character), size, random)


def draw(font: ImageFont.FreeTypeFont, character: str) -> Image.Image:
    """The character cut to its ink, grey. The font has to have it."""
    left, top, right, bottom = font.getbbox(character)
    picture = Image.new("L", (math.ceil(right - left) + 2, math.ceil(bottom - top) + 2))
    ImageDraw.Draw(picture).text((1 - left, 1 - top), character, fill=255, font=font)
    return picture.crop(picture.getbbox())


def distort(ink: Image.Image, size: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Map the ink into a square of `size` pixels; blur, weaken and add noise."""
    fine = FINER * size
    matrix = _inverse_map(ink.size, fine, random)
    mapped = ink.transform((fine, fine), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    blurred = mapped.reduce(FINER).filter(ImageFilter.GaussianBlur(random.uniform(0, BLUR)))
    values = np.asarray(blurred, dtype=np.float64) * random.uniform(INK, 1)
    values += 255 * random.uniform(0, NOISE) * random.standard_normal((size, size))
    return values.round().clip(0, 255).astype(np.uint8)


def _inverse_map(ink: tuple[int, int], fine: int, random: np.random.Generator) -> tuple[float, ...]:
    """What `Image.transform` wants: (a, b, c, d, e, f) that takes a place in the picture to one in the ink."""
    scale = fine * random.uniform(*FILLS) / max(ink)
    angle, shear = random.uniform(-ROTATION, ROTATION), random.uniform(-SHEAR, SHEAR)
    stretch = np.exp(random.uniform(-STRETCH, STRETCH, 2))
    turned = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    forward = scale * turned @ np.array([[1, shear], [0, 1]]) @ np.diag(stretch)
    inverse = np.linalg.inv(forward)
    centre = fine * (0.5 + random.uniform(-SHIFT, SHIFT, 2))
    offset = np.array(ink) / 2 - inverse @ centre
    return (*inverse[0], offset[0], *inverse[1], offset[1])
