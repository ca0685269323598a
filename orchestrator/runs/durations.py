"""How long stages took, by their records: the only thing that is known of how long others will take.

Two stages are alike when they are of one kind, on one task, and have the same options, but for what changes no step's
work: seeds, schedules, numbers with a fraction (rates, weights, temperatures), and how long is trained. So are what
they read. A stage takes as long as the newest finished one that is like it and held the same CPUs and GPUs, times its
own epochs and samples over that one's. Everything else is not known, and nothing is said of it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydistill.errors import StoreError
from raydistill.plan.fingerprint import digest
from raydistill.runs.files import read_json
from raydistill.runs.folder import CHECKPOINT, CONFIG, FINGERPRINT, StageFolder
from raydistill.runs.plan_run import read_data_sizes
from raydistill.runs.record import Record
from raydistill.runs.view import open_stage

LOOKED_AT = 500  # finished stages of one kind, the newest: reading them takes a fifth of a second
WITHOUT_EFFECT = frozenset(
    {"seed", "view_seed", "split_seed", "schedule", "changes", "epochs", "until", "content"}
)
DIGEST = re.compile(r"[0-9a-f]{64}")

Identity = Mapping[str, Any]


@dataclass(frozen=True)
class Work:
    """What a stage does, as far as time depends on it: what it is like, and how much of it there is."""

    shape: str
    size: float = 1.0
    """Epochs times samples."""


class Durations:
    """What the records below a storage root say; behind a URL, those that this machine has seen.

    `identities` finds a stage's identity by its fingerprint: a stage that has not begun left nothing to read.
    """

    def __init__(self, root: Path, test: str, identities: Callable[[str], Identity | None]) -> None:
        self._root, self._test, self._identities = root, test, identities
        self._shapes: dict[str, str | None] = {}
        self._counts: dict[str, int | None] = {}
        self._taken: dict[str, list[tuple[Work, Record]]] = {}

    def work_of(self, identity: Identity, test: str | None = None) -> Work | None:
        """The work of a stage; None when something that it reads is gone."""
        shape = self._shape(identity)
        if shape is None:
            return None
        config = identity["config"]
        epochs = float(config.get("until") or config.get("epochs") or 1)
        part = float((config.get("transfer") or {}).get("fraction") or 1.0)
        samples = self._samples(identity["task"], self._test if test is None else test)
        # Without a count, two stages are alike on the very same data alone.
        content = str(identity["task"].get("content")) if samples is None else ""
        return Work(f"{shape} {content}", epochs * part * (1 if samples is None else samples))

    def seconds(self, kind: str, identity: Identity, reserved: Mapping[str, float]) -> float | None:
        """About how long a stage will take that holds these resources; None when no record tells."""
        if (work := self.work_of(identity)) is None:
            return None
        for other, record in self._alike(kind, work):
            if record.reserved == dict(reserved):
                # Replicas that are trained as one model end together: each counts for its part of that time.
                return record.seconds / (record.stacked or 1) * work.size / other.size
        return None

    def records(self, kind: str, identity: Identity) -> Iterator[Record]:
        """Those of finished stages that are like this one, the newest first."""
        if (work := self.work_of(identity)) is not None:
            yield from (record for _, record in self._alike(kind, work))

    def _alike(self, kind: str, work: Work) -> Iterator[tuple[Work, Record]]:
        """The newest finished stages of a kind that are like this one, the newest first."""
        if kind not in self._taken:
            self._taken[kind] = self._read(kind)
        yield from ((other, record) for other, record in self._taken[kind] if other.shape == work.shape)

    def _read(self, kind: str) -> list[tuple[Work, Record]]:
        """The newest finished stages of a kind, the newest first."""
        found: list[tuple[Work, Record]] = []
        folders = sorted((self._root / "stages").glob(f"{kind}-*"), key=_changed, reverse=True)
        for folder in folders[:LOOKED_AT]:
            with suppress(StoreError, KeyError, TypeError, ValueError):
                record = StageFolder(folder).record()
                # Of one that went on from a checkpoint, only the rest was timed.
                if (
                    record is not None
                    and record.status == "done"
                    and record.reserved
                    and not record.continued
                ):
                    work = self.work_of(read_json(folder / CONFIG), record.judged_on or self._test)
                    found += [] if work is None else [(work, record)]
        return sorted(found, key=lambda one: one[1].finished, reverse=True)

    def _samples(self, task: Mapping[str, Any], test: str) -> int | None:
        """How many samples are trained on, if any stage has counted them; looked up once, maybe at the other end of a
        URL."""
        key = digest({"task": task, "test": test})
        if key not in self._counts:
            self._counts[key] = read_data_sizes(self._root, task, test).get("train")
        return self._counts[key]

    def _shape(self, identity: Identity) -> str | None:
        """A digest that stages share which are alike."""
        try:
            return digest({**identity, **{key: self._outline(identity[key]) for key in ("task", "config")}})
        except LookupError:
            return None

    def _outline(self, value: Any, key: str = "") -> Any:
        """A part of an identity without what does not matter; `LookupError` for an input that is not there."""
        if isinstance(value, Mapping):
            if value.keys() == {"input"}:
                return self._input(str(value["input"]))
            return {
                name: self._outline(part, name) for name, part in value.items() if name not in WITHOUT_EFFECT
            }
        if isinstance(value, list | tuple):
            return [self._outline(part) for part in value]
        # Of files and code of the user's that he has changed since, the old times are the best guess.
        is_rate = isinstance(value, float) or (isinstance(value, str) and DIGEST.fullmatch(value))
        return None if is_rate else value

    def _input(self, fingerprint: str) -> str:
        if fingerprint not in self._shapes:
            self._shapes[fingerprint] = None  # and so it stays for one that reads itself, in a damaged folder
            identity = self._identities(fingerprint) or self._stored(fingerprint)
            self._shapes[fingerprint] = None if identity is None else self._shape(identity)
        shape = self._shapes[fingerprint]
        if shape is None:
            raise LookupError(fingerprint)
        return shape

    def _stored(self, fingerprint: str) -> Identity | None:
        if FINGERPRINT.fullmatch(fingerprint):  # it comes from a file, and becomes part of a pattern
            with suppress(StoreError, TypeError, ValueError):
                for folder in (self._root / "stages").glob(f"*-{fingerprint}"):
                    return dict(read_json(folder / CONFIG))
        return None


def part_left(folder: Path, epochs: int) -> float:
    """The part of a training that is left to do for whoever goes on from its checkpoint; all of it where there is
    none."""
    if not (folder / CHECKPOINT).is_dir():
        return 1.0
    told = (line["epoch"] for line in open_stage(folder).history())
    done = max((epoch for epoch in told if isinstance(epoch, int | float)), default=0.0)
    return max(0.0, 1.0 - done / epochs)


def _changed(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0
