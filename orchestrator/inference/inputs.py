"""What a user names: files, folders of any depth, and patterns of their names; and what lies in each file."""

import glob
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from raydistill.errors import DistillError, PlanError
from raydistill.inference.arrays import read_named_arrays, read_npy
from raydistill.inference.batches import Batch, Picture, Stretch, failed
from raydistill.inference.form import Form
from raydistill.inference.tables import read_csv, read_parquet
from raydistill.tasks.picture_files import PICTURE_ENDINGS, printable, search
from raydistill.tasks.picture_survey import left_out
from raydistill.tasks.shard_names import expanded
from raydistill.tasks.tar_index import pictures_in_tar

logger = logging.getLogger(__name__)

ARRAYS = ".npy"
PACKED = frozenset({".tar", ".parquet"})
"""Looked for in a folder that has neither pictures nor arrays. A CSV file beside pictures is rather their labels."""
COMPRESSED_TAR = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def found(inputs: Iterable[Path | str], form: Form) -> Iterator[Picture | Batch]:
    """Everything that is named, in its order: pictures to decode, and numbers. What cannot be read is an error in its
    place."""
    for path in map(Path, inputs):
        try:
            for file in _files(path):
                yield from inside(file, form)
        except (DistillError, ValueError, OSError) as error:
            yield failed(str(path), error)


def inside(file: Path, form: Form) -> Iterator[Picture | Batch]:
    """The inputs in one file: a picture, or whatever its ending says."""
    try:
        if not file.is_file():
            raise PlanError(f"`{file}` does not exist")
        ending = ".tar" if file.name.lower().endswith(COMPRESSED_TAR) else file.suffix.lower()
        yield from _READERS.get(ending, _read_picture)(file, form)
    except (DistillError, ValueError, OSError) as error:
        yield failed(str(file), error)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from _in_folder(path)
        return
    names = expanded(str(path))
    if path.exists() or (names == [str(path)] and not glob.has_magic(names[0])):
        yield path
        return
    for name in names:
        # As a shell does: what is hidden matches no star.
        matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]  # noqa: PTH207
        if not matches:
            raise PlanError(f"no file matches `{name}`")
        for match in map(Path, matches):
            if not match.is_dir():
                yield match
            elif "**" not in name:  # whose files match by themselves
                yield from _in_folder(match)


def _in_folder(folder: Path) -> Iterator[Path]:
    reasons: list[tuple[str, str]] = []
    is_empty = True
    for entry in search(folder, PICTURE_ENDINGS | {ARRAYS}):
        if entry.reason is None:
            is_empty = False
            yield folder / entry.path
        else:
            reasons.append((entry.reason, entry.path))
    if is_empty:
        packed = [entry.path for entry in search(folder, PACKED) if entry.reason is None]
        if not packed:
            raise PlanError(f"`{folder}` holds no picture, no {ARRAYS}, no .tar and no .parquet")
        reasons = [reason for reason in reasons if reason[1] not in packed]
        yield from (folder / path for path in packed)
    for line in left_out(str(folder), reasons):
        logger.log(logging.WARNING if line.level == "warning" else logging.INFO, line.text)


def _read_picture(file: Path, form: Form) -> Iterator[Picture]:
    yield Picture(str(file), file)


def _read_tar(file: Path, form: Form) -> Iterator[Picture]:
    if not form.takes_pictures:
        raise PlanError(f"`{file}` is a tar of pictures, and the model takes numbers of shape {form.shape}")
    member = form.columns[0] if form.columns else form.image(".tar")
    count = 0
    for name, offset, size in pictures_in_tar(file, member):
        count += 1
        yield Picture(f"{file}/{name}", Stretch(file, offset, size), f"`{printable(name)}` of `{file}`")
    if not count:
        raise PlanError(f"`{file}` holds no picture" + ("" if member is None else f" `{member}`"))


Reader = Callable[[Path, Form], Iterator[Picture] | Iterator[Batch] | Iterator[Picture | Batch]]
_READERS: Mapping[str, Reader] = {
    ARRAYS: read_npy,
    ".npz": read_named_arrays,
    ".safetensors": read_named_arrays,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".tar": _read_tar,
}
