"""Files that were fetched for a plan, below the storage root under the digest of what they hold."""

import hashlib
import shutil
from pathlib import Path

from raydistill.errors import StoreError
from raydistill.runs.files import make_folder, replaced_file
from raydistill.runs.mirror import bring, send

FETCHED_FOLDER = "fetched"


def keep_fetched(root: Path, file: Path) -> Path:
    """A copy of a file that every machine sees, named by its content."""
    kept = root.absolute() / FETCHED_FOLDER / _digest(file) / file.name
    if not _is_whole(kept):
        make_folder(kept.parent)
        with replaced_file(kept) as temporary:
            shutil.copyfile(file, temporary)
    send(kept)
    return kept


def see_fetched(file: Path) -> None:
    """Bring a file here that another machine kept so. `StoreError` for one that came with other content."""
    if file.parent.parent.name != FETCHED_FOLDER or file.is_file():
        return
    bring(file)
    if file.is_file() and not _is_whole(file):
        file.unlink()
        raise StoreError(f"`{file}` is damaged where it was fetched from; the next run fetches it again")


def _is_whole(file: Path) -> bool:
    return file.is_file() and _digest(file) == file.parent.name


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
