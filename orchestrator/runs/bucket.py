"""A prefix of an object store: whole objects by their names, created or swapped by one alone.

By obstore, which knows S3 and what speaks like it, Google's and Azure's stores, and reads the usual variables of the
environment (AWS_..., GOOGLE_..., AZURE_...).
"""

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from raydistill.errors import PlanError, StoreError
from raydistill.runs.files import replaced_file

URL = re.compile(r"(s3|s3a|gs|az|abfs|abfss)://[^/]+(/.*)?")
INSTALL = "pip install 'raydistill[storage]'"

# A connection may be away for a minute or two: nothing is lost by waiting, an hour's training is by giving up.
PATIENT: Any = {
    "max_retries": 100,
    "retry_timeout": timedelta(seconds=150),
    "backoff": {
        "init_backoff": timedelta(seconds=0.2),
        "max_backoff": timedelta(seconds=5),
        "base": 2.0,
    },
}
# Of deletions, which are sent as a POST, so that the library does not repeat them; in seconds.
DELETE_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
# A beat that comes late is worth less than the next one.
HASTY: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=10)}
PIECE = 8 << 20  # bytes of a download held at once

CODE, MESSAGE = re.compile(r"<Code>([^<]+)</Code>"), re.compile(r"<Message>([^<]+)</Message>")
NO_ANSWER = "HTTP error"  # what an error says when the store did not
NO_BUCKET = ("NoSuchBucket", "bucket does not exist", "ContainerNotFound")

Tag = Mapping[str, str]
"""What a state of an object is told apart by: `e_tag`, and `version` where the store counts them."""


def is_url(storage: str) -> bool:
    """Whether a storage root is written as the URL of an object store."""
    return "://" in storage


@dataclass(frozen=True)
class Held:
    """An object's bytes, and the tag of the state they are of."""

    content: bytes
    tag: Tag


@dataclass(frozen=True)
class Entry:
    """An object in a listing: bytes, and what changes with them."""

    size: int
    e_tag: str


class Bucket:
    """What lies below one URL. Keys are relative to it. Every method raises `StoreError` in one line when the store
    refuses, or cannot be reached for longer than a retry helps."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        if URL.fullmatch(self.url) is None:
            raise PlanError(
                f"`{url}` is no storage root: write a folder, or s3://, gs:// or az://BUCKET/PREFIX"
            )
        try:
            from obstore.store import from_url
        except ImportError:
            raise PlanError(
                f"a storage root behind a URL is reached by `obstore`; install it: {INSTALL}"
            ) from None
        with self._errors("open", ""):
            # Plain HTTP only where the environment names such an endpoint.
            options: dict[str, Any] = {"client_options": {"allow_http": True, "timeout": "120s"}}
            self._store = from_url(self.url, retry_config=PATIENT, **options)
            options = {"client_options": {"allow_http": True, "timeout": "10s"}}
            self._hasty = from_url(self.url, retry_config=HASTY, **options)

    def read(self, key: str) -> Held | None:
        """An object, or None where there is none."""
        import obstore

        with self._errors("read", key):
            try:
                found = obstore.get(self._store, key)
                return Held(bytes(found.bytes()), _tag(found.meta))
            except FileNotFoundError as error:
                self._refuse_missing_bucket(error)
                return None

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """The bytes of an object from `start` to `end`, or as many as there are; none where there is no object."""
        import obstore

        with self._errors("read", key):
            try:
                return bytes(obstore.get_range(self._store, key, start=start, end=end))
            except FileNotFoundError as error:
                self._refuse_missing_bucket(error)
                return b""

    def write(self, key: str, content: bytes | Path) -> str:
        """Put an object, whatever was there; returns its e_tag. A file is read in pieces."""
        import obstore

        with self._errors("write", key):
            return str(obstore.put(self._store, key, content)["e_tag"])

    def create(self, key: str, content: bytes) -> Tag | None:
        """Put an object where there is none; None when somebody else was faster."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._errors("write", key):
            try:
                return _tag(obstore.put(self._store, key, content, mode="create"))
            except (AlreadyExistsError, PreconditionError):
                return self._tag_if_ours(key, content)

    def swap(self, key: str, content: bytes, tag: Tag, *, hasty: bool = False) -> Tag | None:
        """Replace the object that has this tag; None when it is another by now."""
        import obstore
        from obstore.exceptions import PreconditionError

        with self._errors("write", key):
            try:
                mode: Any = dict(tag)
                return _tag(obstore.put(self._hasty if hasty else self._store, key, content, mode=mode))
            except (PreconditionError, FileNotFoundError):
                return self._tag_if_ours(key, content)

    def _tag_if_ours(self, key: str, content: bytes) -> Tag | None:
        """A request may have been answered on a connection that broke: the second one then meets the first's work."""
        held = self.read(key)
        return held.tag if held is not None and held.content == content else None

    def download(self, key: str, path: Path) -> bool:
        """An object into a file, which is whole or absent; False where there is no object."""
        import obstore

        with self._errors("read", key):
            try:
                found = obstore.get(self._store, key)
            except FileNotFoundError as error:
                self._refuse_missing_bucket(error)
                return False
            with replaced_file(path) as temporary, temporary.open("wb") as stream:
                for piece in found.stream(min_chunk_size=PIECE):
                    stream.write(memoryview(piece))
            return True

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are gone already are no error."""
        for key in keys:
            with self._errors("delete", key), suppress(FileNotFoundError):
                self._delete(key)

    def _delete(self, key: str) -> None:
        """Again and again while there is no answer; who asks again finds it gone."""
        import obstore
        from obstore.exceptions import GenericError

        for seconds in DELETE_WAITS:
            try:
                obstore.delete(self._store, key)
                return
            except GenericError as error:
                if NO_ANSWER not in str(error):
                    raise
                time.sleep(seconds)
        obstore.delete(self._store, key)

    def listing(self, prefix: str) -> dict[str, Entry]:
        """The objects below a prefix, at any depth, by their keys."""
        import obstore

        with self._errors("list", prefix):
            return {
                meta["path"]: Entry(meta["size"], str(meta["e_tag"]))
                for page in obstore.list(self._store, prefix or None)
                for meta in page
            }

    def entry(self, key: str) -> Entry | None:
        """As in a listing, of one object; None where there is none."""
        import obstore

        with self._errors("read", key):
            try:
                meta = obstore.head(self._store, key)
                return Entry(meta["size"], str(meta["e_tag"]))
            except FileNotFoundError as error:
                self._refuse_missing_bucket(error)
                return None

    def folders(self, prefix: str) -> list[str]:
        """The names directly below a prefix that have objects below them."""
        import obstore

        with self._errors("list", prefix):
            found = obstore.list_with_delimiter(self._store, prefix or None)
            return [name.rpartition("/")[2] for name in found["common_prefixes"]]

    @contextmanager
    def _errors(self, action: str, key: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            raise StoreError(
                f"cannot {action} `{self.url}{key and '/'}{key}`: {_reason(str(error))}"
            ) from None

    def _refuse_missing_bucket(self, error: FileNotFoundError) -> None:
        """A missing object is an answer, a missing bucket a mistake."""
        if any(words in str(error) for words in NO_BUCKET):
            raise error


def _tag(meta: Mapping[str, Any]) -> Tag:
    return {name: str(meta[name]) for name in ("e_tag", "version") if meta.get(name) is not None}


def _reason(text: str) -> str:
    """One line of what an object store says in many."""
    code, message = CODE.search(text), MESSAGE.search(text)
    if code or message:
        return ": ".join(found[1].strip() for found in (code, message) if found)
    first = text.partition("\n\nDebug source")[0].strip()
    return " ".join((first.rpartition(" - ")[2] or first).split())[:300]
