"""A stage's folder: config, log, metrics, payload files, and the record that makes them a result."""

import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raydistill.errors import StoreError
from raydistill.runs.files import (
    fsync,
    json_text,
    make_folder,
    read_as,
    read_json,
    replaced_file,
    sha256_file,
    store_errors,
    write_json,
)
from raydistill.runs.mirror import mirror_of, release_readers
from raydistill.runs.record import Record
from raydistill.runs.remote_stage import remote_stage
from raydistill.runs.stage_files import ATTEMPT
from raydistill.runs.stage_files import CHECKPOINT as CHECKPOINT
from raydistill.runs.stage_files import CONFIG as CONFIG
from raydistill.runs.stage_files import LOG as LOG
from raydistill.runs.stage_files import METRICS as METRICS
from raydistill.runs.stage_files import RECORD as RECORD
from raydistill.runs.stage_files import STAMPS as STAMPS

# From a file, it becomes part of a path and of a pattern: `../..` would lead out of the root, `*` to any stage.
FINGERPRINT = re.compile(r"[0-9a-f]{12}")
BEGINNING = frozenset({CONFIG, LOG, ATTEMPT, STAMPS, RECORD})


def predictions_of(split: str) -> str:
    """The payload file with the predictions of a split."""
    return f"predictions-{split}.safetensors"


class StageFolder:
    """`runs/stages/<kind>-<fingerprint>/`, shared by every plan that asks for the same thing.

    Of a storage root behind a URL it is this machine's copy: `refresh` sees what others did, `payload` and `fetch` have
    what they made here. `refresh` and `fetch` do nothing to a folder that all machines share.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._remote = remote_stage(path)

    def refresh(self) -> None:
        """See whether other machines made, or are making, this stage: record, metrics, log."""
        if self._remote is not None:
            self._remote.refresh()

    def fetch(self) -> "StageFolder":
        """Have all payload of a finished stage on this machine; returns itself. `StoreError` when some is damaged."""
        if self._remote is not None:
            if self.record() is None:
                self.refresh()
            self._remote.fetch(self.done_record().payload)
        return self

    def fetch_files(self, names: Collection[str]) -> None:
        """Have these files of a finished stage's payload on this machine."""
        if self._remote is not None:
            payload = self.done_record().payload
            if unknown := [name for name in names if name not in payload]:
                raise StoreError(f"`{self.path / RECORD}` lists no `{unknown[0]}`")
            self._remote.fetch({name: payload[name] for name in names})

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """A part of a payload file that need not be on this machine; nobody has compared it with the record."""
        if self._remote is None or (self.path / name).is_file():
            with (self.path / name).open("rb") as stream:
                stream.seek(start)
                return stream.read(end - start)
        return self._remote.read_range(name, start, end)

    def bring_checkpoint(self) -> None:
        """See the last checkpoint that another machine left, if it is further than the one here."""
        if self._remote is not None:
            self._remote.refresh()
            self._remote.bring_checkpoint()

    @contextmanager
    def worked_on(self, identity: Mapping[str, Any], *, is_main: bool) -> Iterator[None]:
        """While this process makes the stage, as the only one that writes here or beside the one that `is_main`: from
        the last checkpoint that any machine has, and others see how far it is."""
        if self._remote is None:
            yield
            return
        try:
            self.create(identity)
            if is_main:
                with self._remote.worked_on():
                    yield
            else:
                self._remote.bring_checkpoint()
                yield
        finally:
            release_readers()

    def create(self, identity: Mapping[str, Any]) -> None:
        """Make the folder and write what the stage is; a folder of another stage is refused."""
        self._refuse_link()
        make_folder(self.path)
        for name in (METRICS, LOG):  # written to as they are, not replaced
            if (self.path / name).is_symlink():
                (self.path / name).unlink()
        config = self.path / CONFIG
        if config.exists():
            try:
                if read_json(config) == identity:
                    return
            except StoreError:
                pass  # damaged: it is rewritten from what we know
            else:
                raise StoreError(f"`{self.path}` belongs to another stage; move it away and run again")
        with replaced_file(config) as temporary:  # `write_record` waits for the disk
            temporary.write_text(json_text(identity), encoding="utf-8")

    @classmethod
    def of_fingerprint(cls, fingerprint: str, root: Path) -> "StageFolder":
        """The folder below the storage root of a stage that another one names by its fingerprint."""
        if FINGERPRINT.fullmatch(str(fingerprint)) is None:
            raise StoreError(f"`{fingerprint}` is no fingerprint of a stage: whatever names it is damaged")
        if (mirror := mirror_of(root / "stages")) is not None:
            there = mirror.folders(root / "stages")
            found = [folder for folder in there if folder.name.endswith(f"-{fingerprint}")]
        else:
            found = sorted((root / "stages").glob(f"*-{fingerprint}"))
        if not found:
            raise StoreError(
                f"the stage `{fingerprint}` is gone; bring it back, or make it again: `distill run PLAN --only STAGE`"
            )
        folder = cls(found[0])
        folder._refuse_link()
        folder.refresh()
        return folder

    def _refuse_link(self) -> None:
        """`StoreError` when the folder is reached through a link below the storage root: writing or emptying would
        happen elsewhere. The root itself may be a link."""
        if self.path.resolve() != self.path.parent.parent.resolve() / self.path.parent.name / self.path.name:
            raise StoreError(
                f"`{self.path}` leads out of the storage root: it, or the folder around it, is a link; move it there"
            )

    def record(self) -> Record | None:
        """The record, or None for unfinished work. `StoreError` when the file is damaged or of another stage."""
        path = self.path / RECORD
        if not path.exists():
            return None
        record = read_as(Record, path)
        if self.path.name != f"{record.kind}-{record.fingerprint}":
            raise StoreError(
                f"`{path}` is the record of `{record.kind}-{record.fingerprint}`, not of this folder"
            )
        return record

    def done_record(self) -> Record:
        """The record of a finished stage; `StoreError` when there is none."""
        record = self.record()
        if record is None or record.status != "done":
            raise StoreError(f"`{self.path}` holds no finished result")
        return record

    def write_record(self, record: Record) -> None:
        """Make the folder a result. Nothing may be written to it afterwards but another judgement of its model."""
        if (config := self.path / CONFIG).exists():
            with store_errors(config):
                fsync(config)
        # The record is last: it makes the folder a result, so all that it speaks of has to be on the disk. Stamps
        # without a record mean nothing; a record without stamps would have all files read again.
        self._keep_stamps(self._stamps(record.payload))
        values = record.model_dump(mode="json")
        if self._remote is not None:  # first: a result that only this machine knows of is none
            self._remote.publish(json_text(values), record.payload)
        write_json(self.path / RECORD, values)

    def write_failure(self, record: Record) -> None:
        """Record why there is no result. A finished result that only could not be judged again stays."""
        # Trained, but not to be judged on another test split: the model is worth more than the news.
        with suppress(StoreError):
            if (found := self.record()) is not None and found.status == "done":
                return
        self.write_record(record)

    def checksums(self, names: Iterable[str]) -> dict[str, str]:
        """SHA-256 of payload files, by their path below the folder."""
        return {name: sha256_file(self.path / name) for name in sorted(names)}

    def damage(self) -> str | None:
        """Name the first payload file that is missing or differs from the record; None when all is well."""
        try:
            record = self.done_record()
        except StoreError as error:
            return error.message
        if self._remote is not None:  # bytes are looked at where they are fetched
            return self._remote.missing(record.payload)
        return self._damage_of(record.payload)

    def damage_since(self, record: Record) -> str | None:
        """`damage` of the files whose size or time changed since they were last found whole: a `stat` for the others.

        Bytes that go bad on the disk change neither: only `damage` finds those.
        """
        if self._remote is not None:
            return self._remote.missing(record.payload)
        # Taken before the files are read: what changes while they are read has another stamp next time.
        now, whole = self._stamps(record.payload), self._kept_stamps()
        changed = {
            name: digest for name, digest in record.payload.items() if whole.get(name) != now.get(name, [])
        }
        damage = self._damage_of(changed)
        if changed and damage is None:
            self._keep_stamps(now)
        return damage

    def _damage_of(self, payload: Mapping[str, str]) -> str | None:
        for name, expected in payload.items():
            path = self.path / name
            if not path.is_file():
                return f"`{path}` is missing"
            if sha256_file(path) != expected:
                return f"`{path}` is damaged: its checksum differs from the record"
        return None

    def _stamps(self, names: Iterable[str]) -> dict[str, list[int]]:
        """Size in bytes and time of change in nanoseconds of the payload files that are there."""
        found = {}
        for name in names:
            with suppress(OSError):
                status = (self.path / name).stat()
                found[name] = [status.st_size, status.st_mtime_ns]
        return found

    def _kept_stamps(self) -> dict[str, Any]:
        with suppress(StoreError):
            if isinstance(kept := read_json(self.path / STAMPS), dict):
                return kept
        return {}

    def _keep_stamps(self, stamps: Mapping[str, list[int]]) -> None:
        """Where they cannot be kept, as in another user's folder, files are read again next time."""
        with suppress(StoreError), replaced_file(self.path / STAMPS) as temporary:
            temporary.write_text(json_text(stamps), encoding="utf-8")

    def payload(self, name: str) -> Path:
        """The path of a payload file, after checking it against the record."""
        record = self.done_record()
        path = self.path / name
        if name not in record.payload:
            raise StoreError(f"`{self.path / RECORD}` lists no `{name}`")
        if self._remote is not None:
            self._remote.fetch({name: record.payload[name]})
        # Whoever asks for a payload reads all of it: the sum, 0.7 s a GB, is a small part of that.
        if not path.is_file() or sha256_file(path) != record.payload[name]:
            raise StoreError(f"`{path}` is damaged: run the plan again, the stage is made anew")
        return path

    def forget(self) -> None:
        """Delete everything but the lease: the stage runs from the start."""
        self.unfinish()  # first of all: a record of files that are gone would be a lie
        if self._remote is not None:
            self._remote.forget()
        with store_errors(self.path, "empty the folder"):
            for path in self.path.iterdir():
                # The lease is held by whoever empties the folder, and its number must never be given a second time.
                if path.name.startswith("lease"):
                    continue
                _remove(path)

    def is_begun(self) -> bool:
        """Whether there is more in it than what an attempt begins with: something of the result."""
        with store_errors(self.path, "look into the folder"):
            return any(
                path.name not in BEGINNING
                and not path.name.startswith(("lease", "place-rank", "stacks-rank", "."))
                for path in self.path.iterdir()
            )

    def unfinish(self) -> None:
        """Make the folder unfinished work again: no record, and nothing half-written by a process that died."""
        self._refuse_link()
        if self._remote is not None:
            self._remote.withdraw()
        with store_errors(self.path, "clear the folder"):
            for name in (RECORD, STAMPS):
                _remove(self.path / name)
            # Under the lease nobody else writes here: what a temporary name holds belongs to a process that is gone.
            for path in self.path.rglob(".*.tmp"):
                path.unlink(missing_ok=True)


def fetched_file(folder: Path, name: str) -> Path:
    """One file of a finished stage's payload, on this machine; of any other folder, where it would be."""
    stage = remote_payload(folder)
    return folder / name if stage is None else stage.payload(name)


def remote_payload(path: Path) -> "StageFolder | None":
    """A finished stage whose payload is fetched, file by file, as it is needed; None for any other folder."""
    if mirror_of(path) is None:
        return None
    folder = StageFolder(path)
    if folder.record() is None:
        folder.refresh()
    record = folder.record()
    return None if record is None or record.status != "done" else folder


def fetched(path: Path) -> Path:
    """A finished stage's folder, with all its payload on this machine; any other folder as it is."""
    if mirror_of(path) is not None:
        folder = StageFolder(path)
        if folder.record() is None:
            folder.refresh()
        if folder.record() is not None:
            folder.fetch()
    return path


def _remove(path: Path) -> None:
    """Delete a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
