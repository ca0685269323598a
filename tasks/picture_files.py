"""Which files below a folder are pictures, and why the others are not. Needs no decoder: a dry run waits for it."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PICTURE_ENDINGS = frozenset(
    {
        ".apng", ".avif", ".avifs", ".blp", ".bmp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".fit", ".fits", ".flc",
        ".fli", ".ftc", ".ftu", ".gbr", ".gif", ".icb", ".icns", ".ico", ".im", ".j2c", ".j2k", ".jfif", ".jp2",
        ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".msp", ".pbm", ".pcd", ".pcx", ".pfm", ".pgm",
        ".png", ".pnm", ".ppm", ".psd", ".pxr", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff",
        ".vda", ".vst", ".webp", ".xbm", ".xpm",
    }
)  # fmt: skip
"""In lower case: the endings of the formats that `pictures.py` reads."""

LEFT_BY_SYSTEMS = frozenset(
    {
        "__macosx", "@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "lost+found",
        "system volume information", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
    }
)  # fmt: skip
"""In lower case: folders and files that operating systems and their servers leave behind."""

HIDDEN, OF_SYSTEMS = "hidden files and folders", "traces of operating systems"
NO_PICTURES = "folders without a picture"


@dataclass(frozen=True)
class Found:
    """One file or folder below the folder that was searched: its path with "/", its size in bytes (pictures only), and
    why it is no picture."""

    path: str
    size: int = 0
    reason: str | None = None


def search(folder: Path, endings: frozenset[str] = PICTURE_ENDINGS) -> Iterator[Found]:
    """Everything below a folder, sorted by path within each folder; links are followed, but never in a circle."""
    yield from _search(folder, "", endings, frozenset())


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without those that nobody made on purpose."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and reason_of(entry.name) is None)


def reason_of(name: str) -> str | None:
    """Why whatever has this name is to be left out, if it is."""
    if name.startswith("."):
        return HIDDEN
    return OF_SYSTEMS if name.lower() in LEFT_BY_SYSTEMS else None


def has_picture(folder: Path) -> bool:
    """Whether there is a picture in a folder or below it."""
    return any(found.reason is None for found in search(folder))


def _search(
    folder: Path, prefix: str, endings: frozenset[str], above: frozenset[tuple[int, int]]
) -> Iterator[Found]:
    status = folder.stat()
    place = (status.st_dev, status.st_ino)
    if place in above:
        return
    with os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    for entry in inside:
        path = f"{prefix}{entry.name}"
        if (reason := reason_of(entry.name)) is not None:
            yield Found(path, reason=reason)
        elif entry.is_dir():
            yield from _search(folder / entry.name, f"{path}/", endings, above | {place})
        elif PurePosixPath(entry.name).suffix.lower() not in endings:
            yield Found(path, reason=_ending(entry.name))
        elif not entry.is_file():
            yield Found(path, reason="links to nothing")
        else:
            yield Found(path, entry.stat().st_size)


def _ending(name: str) -> str:
    ending = PurePosixPath(name).suffix
    return f"`{ending}` files" if ending else "files without an ending"


def counted(paths: Iterable[str], shown: int = 3) -> str:
    """How many there are, and the first of them by name."""
    named = list(paths)
    more = ", …" if len(named) > shown else ""
    return f"{len(named)} ({', '.join(f'`{printable(path)}`' for path in named[:shown])}{more})"


def printable(text: str) -> str:
    """The text with what a terminal would obey, or cannot show, as an escape."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
