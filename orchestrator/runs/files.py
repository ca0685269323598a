"""Files that are either whole or absent: write beside, fsync, rename."""

import hashlib
import json
import math
import os
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from raydistill.errors import StoreError

Shape = TypeVar("Shape", bound=BaseModel)

MOST_DIGITS = 20  # 2⁶⁴ has as many


@contextmanager
def store_errors(path: Path, action: str = "write") -> Iterator[None]:
    """Turn what the file system refuses (permissions, full disk) into a `StoreError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot {action} `{path}`: {error.strerror or error}") from error


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` that takes its name on success: whole whenever a process dies.

    After a power cut it may be empty; `atomic_write` is for what must not be.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with store_errors(path):
            mode = _mode_of_new(temporary)
            yield temporary
            if temporary.stat().st_mode != mode:  # safetensors makes files that no other user can read
                temporary.chmod(stat.S_IMODE(mode))
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _mode_of_new(path: Path) -> int:
    """Make a file; returns the mode that the umask, or the folder's own rules, give it."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o666)
    try:
        return os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success it is fsynced and takes the name `path`.

    Raises `StoreError` when the folder cannot be written (permissions, full disk).
    """
    with replaced_file(path) as temporary:
        yield temporary
        fsync(temporary)
    with store_errors(path):
        fsync(path.parent)


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


def json_text(value: Any) -> str:
    """`value` as the indented JSON that all our files hold."""
    return json.dumps(strict(value), indent=1, sort_keys=False, allow_nan=False) + "\n"


def json_line(value: Any) -> str:
    """`value` as JSON in one line, without its end."""
    return json.dumps(strict(value), allow_nan=False)


def strict(value: Any) -> Any:
    """`value` with the numbers that JSON does not have as the texts that `float` reads: Infinity, -Infinity, NaN.

    Other readers than Python's refuse a whole file for one of them.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in value.items()}
    return [strict(item) for item in value] if isinstance(value, list | tuple) else value


def read_json(path: Path) -> Any:
    """Read a JSON file; `StoreError` names the file when it is missing or damaged."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StoreError(f"`{path}` is missing") from error
    except (ValueError, OSError) as error:
        raise StoreError(f"`{path}` is damaged: {error}") from error


def parse_json(text: str | bytes) -> Any:
    """The values of a JSON text; `ValueError` says in a line what is wrong with it."""
    try:
        return json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_text(path: Path) -> str:
    """What a text file says; empty when it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _whole_number(digits: str) -> int:
    """What counts, times and keys are; more would be too large for arithmetic with fractions."""
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def read_as(shape: type[Shape], path: Path) -> Shape:
    """Read a JSON file of a known shape; `StoreError` names the file, and the place in it that is damaged."""
    try:
        return shape.model_validate(read_json(path))
    except RecursionError:
        raise StoreError(f"`{path}` is damaged: it is nested too deep") from None
    except ValidationError as error:
        raise StoreError(f"`{path}` is damaged: {message_of(error)}") from None


def message_of(error: ValueError) -> str:
    """One line about what is wrong with values from a file, with the place of the first mistake in them."""
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"`{place}`: {message}" if place else message


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def make_folder(path: Path) -> Path:
    """Create a folder and its parents; `StoreError` when that is not allowed."""
    with store_errors(path, "create the folder"):
        path.mkdir(parents=True, exist_ok=True)
    return path
