"""SHA-256 of what files hold, so that equal data has one identity wherever it lies and however it is packed."""

import gzip
import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path


def digest_files(files: Mapping[str, Path]) -> str:
    """One digest over named files: depends on the names given here and the content, not on the paths or on gzip."""
    lines = [f"{name} {digest_file(files[name])}\n" for name in sorted(files)]
    return digest_text("".join(lines))


def digest_text(text: str) -> str:
    """Hexadecimal SHA-256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, unpacked first when its name ends in `.gz`."""
    return _digest_once(path, *stamp(path))


def stamp(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds: what a cache keyed by a file must look at."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


# A plan asks for its task's identity once per stage; reading 180 MB of CIFAR takes 0.2 s.
@lru_cache(maxsize=64)
def _digest_once(path: Path, size: int, changed: int) -> str:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"`{path}` is damaged: {error}") from error
