"""Which fonts of this machine draw given characters, and which of them are one design under several names.

A split by font family is only honest when no design is on both sides, and the name does not tell: Takao Gothic,
IPAex Gothic and Monapo draw the same kanji. So fonts are one family here when they share a name, or when the same
probe characters, cut to their ink and scaled, correlate above `SAME_DESIGN`. Among 440 faces of Debian's packages every
pair above 0.9 was of known common descent, and from 0.85 on unrelated gothics ran together.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFont

PROBES, PROBE_SIZE, PROBE_PIXELS, SAME_DESIGN = 24, 48, 24, 0.9
LEAST_COVERAGE = 0.9
FACES_PER_FAMILY = 4
FACES_PER_FILE = 64  # a collection (.ttc) holds several
ABSENT = "\U0010fffe"  # no character: what a font draws for it stands for all that it lacks


@dataclass(frozen=True)
class Face:
    """One face in a font file: a family has several, such as regular and bold."""

    file: str
    index: int
    family: str
    style: str

    @property
    def label(self) -> str:
        """Name of the face, for people."""
        return f"{self.family} {self.style} ({Path(self.file).name})"


@dataclass(frozen=True)
class Family:
    """Faces of one design, whatever they are called; `has` (faces, characters) says what each can draw."""

    name: str
    faces: tuple[Face, ...]
    has: NDArray[np.bool_]

    @property
    def draws(self) -> NDArray[np.bool_]:
        """Which characters at least one face has, (characters,)."""
        return np.logical_or.reduce(self.has, axis=0)


def find_families(folders: Sequence[Path], characters: Sequence[str], executor: Executor) -> list[Family]:
    """Families that draw at least `LEAST_COVERAGE` of the characters, by name; of each, a few faces.

    Looks into `folders`, or where the system keeps its fonts when there are none.
    """
    faces = find_faces(folders)
    probes = [characters[place] for place in np.linspace(0, len(characters) - 1, PROBES).astype(int)]
    drawn = zip(faces, executor.map(partial(probe_vectors, probes=probes), faces, chunksize=8), strict=True)
    usable = [(face, vectors) for face, vectors in drawn if vectors is not None]
    chosen = [_some(group) for group in same_designs(usable)]
    flat = [face for group in chosen for face in group]
    has = dict(zip(flat, executor.map(partial(coverage, characters=characters), flat), strict=True))
    families = [Family(group[0].family, group, np.stack([has[face] for face in group])) for group in chosen]
    return sorted(
        (family for family in families if family.draws.mean() >= LEAST_COVERAGE),
        key=lambda family: family.name,
    )


def find_faces(folders: Sequence[Path]) -> list[Face]:
    """Every face of every TrueType or OpenType file, in a fixed order."""
    from matplotlib.font_manager import findSystemFonts

    files = sorted(findSystemFonts([str(folder) for folder in folders] or None))
    return sorted(
        (face for file in files for face in _faces_of(file)),
        key=lambda face: (face.family, face.style, face.file, face.index),
    )


def _faces_of(file: str) -> Iterator[Face]:
    for index in range(FACES_PER_FILE):
        try:
            family, style = ImageFont.truetype(file, PROBE_SIZE, index=index).getname()
        except OSError:  # no such face, or no font
            return
        if family:
            yield Face(file, index, family, style or "")


@lru_cache(maxsize=512)
def open_font(face: Face, size: int) -> ImageFont.FreeTypeFont:
    """The face at a size in pixels."""
    return ImageFont.truetype(face.file, size, index=face.index, layout_engine=ImageFont.Layout.BASIC)


def coverage(face: Face, characters: Sequence[str]) -> NDArray[np.bool_]:
    """Which characters the face draws, (characters,)."""
    return np.array([_ink(face, character) is not None for character in characters])


def probe_vectors(face: Face, probes: Sequence[str]) -> NDArray[np.float32] | None:
    """Each probe cut to its ink, scaled and normalised, (probes, pixels); zero where absent.

    None if most are absent, or alike: fonts of last resort draw one sign for a whole script.
    """
    inks = [_ink(face, probe) for probe in probes]
    if len({ink.tobytes() for ink in inks if ink is not None}) < len(probes) / 2:
        return None
    return np.stack([_normalised(ink) for ink in inks])


def _normalised(ink: Image.Image | None) -> NDArray[np.float32]:
    if ink is None:
        return np.zeros(PROBE_PIXELS**2, dtype=np.float32)
    values = np.asarray(ink.resize((PROBE_PIXELS, PROBE_PIXELS), Image.Resampling.BILINEAR), dtype=np.float32)
    centred = values.ravel() - values.mean()
    unit: NDArray[np.float32] = centred / max(float(np.linalg.norm(centred)), 1e-6)
    return unit


def _ink(face: Face, character: str) -> Image.Image | None:
    """The drawn character cut to its ink; None if the font lacks it, has it empty, or fails to draw it."""
    try:
        font = open_font(face, PROBE_SIZE)
        mask: Any = font.getmask(character)
        absent: Any = font.getmask(ABSENT)
        if mask.size == absent.size and bytes(mask) == bytes(absent):
            return None
    except OSError:  # broken hinting programs
        return None
    picture = Image.frombytes("L", mask.size, bytes(mask))
    box = picture.getbbox()
    return picture.crop(box) if box else None


def same_designs(faces: Sequence[tuple[Face, NDArray[np.float32]]]) -> list[list[Face]]:
    """Groups of faces joined by a shared name or equal probes, directly or through others; order is kept."""
    if not faces:
        return []
    from scipy.sparse.csgraph import connected_components

    vectors = np.stack([vectors for _, vectors in faces])
    alike = np.median(np.einsum("apd,bpd->abp", vectors, vectors, optimize=True), axis=2) > SAME_DESIGN
    names = np.array([face.family for face, _ in faces])
    _, numbers = connected_components(alike | (names[:, None] == names), directed=False)
    groups: defaultdict[int, list[Face]] = defaultdict(list)
    for (face, _), number in zip(faces, numbers.tolist(), strict=True):
        groups[number].append(face)
    return list(groups.values())


def _some(faces: Sequence[Face]) -> tuple[Face, ...]:
    """At most `FACES_PER_FAMILY`, evenly spaced: one design has more than a hundred."""
    places = np.linspace(0, len(faces) - 1, min(len(faces), FACES_PER_FAMILY)).round().astype(int)
    return tuple(faces[place] for place in places)
