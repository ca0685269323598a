"""What a stage receives besides its config: where to read, where to write, how to report, when to stop."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.errors import StageError, StoreError
from raydistill.metrics import METRICS as METRIC_TABLE
from raydistill.metrics import Metric
from raydistill.plan.model import ModelConfig
from raydistill.plan.own_metrics import metric_at
from raydistill.runs.files import json_line, read_json, replaced_file, store_errors
from raydistill.runs.folder import METRICS, StageFolder
from raydistill.runs.mirror import bring, send
from raydistill.runs.record import OwnMetric
from raydistill.runs.stage_files import ATTEMPT
from raydistill.tasks.task import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from raydistill.tasks.splits import Split, TaskData

FLUSH_SECONDS = 2.0

log = logging.getLogger("raydistill")


def never() -> bool:
    """The answer of a run that nobody stops."""
    return False


def no_teacher(split_name: str, split: "Split") -> None:
    """The answer of a model that learns from labels alone."""


@dataclass
class StageContext:
    """One attempt at one stage, on one of `world` processes.

    Only the main process (rank 0) writes. An attempt that was superseded, because its driver was taken for dead,
    may not publish: `check_current` raises.

    `task_identity` and `test` are the digests of the data when the plan was read, `models` the user's own and what
    they are made from. With `sees_test` False the test split is withheld: trials of a search are chosen by
    validation alone. `own_metrics` are the user's, by which models are judged beside ours; `teacher_predicted` is
    asked for the classes (N,) that the teacher of the stage's model predicts for a split, None when there is none.
    A stage sets `is_judged` when it judged a model on the test split, and `is_untested` when it would have.
    `on_report` is called with what is reported, on the main process. `when_done` is called once the record is
    written: until then a process that dies must find its checkpoint. `warnings` are what `warn` was told.
    """

    name: str
    folder: StageFolder
    root: Path
    task: Task = field(
        default_factory=lambda: Task.model_construct(name="")
    )  # until it is read, which may fail
    reads: Mapping[str, str] = field(default_factory=dict)
    peers: Mapping[str, str] = field(default_factory=dict)
    attempt: str = ""
    rank: int = 0
    world: int = 1
    device: str = "cpu"
    should_stop: Callable[[], bool] = never
    task_identity: Mapping[str, Any] = field(default_factory=dict)
    test: str = ""
    models: tuple[tuple[ModelConfig, Mapping[str, Any]], ...] = ()
    sees_test: bool = True
    is_untested: bool = False
    is_judged: bool = False
    is_continued: bool = False
    on_report: Callable[[Mapping[str, float]], None] | None = None
    when_done: list[Callable[[], None]] = field(default_factory=list)
    payload: set[str] = field(default_factory=set)
    parameters: int | None = None
    costs: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    stacked: int | None = None
    data: "TaskData | None" = None
    clock: Callable[[], float] = time.perf_counter
    own_metrics: tuple[OwnMetric, ...] = ()
    teacher_predicted: "Callable[[str, Split], NDArray[np.int64] | None]" = no_teacher
    _lines: list[str] = field(default_factory=list)
    _flushed: float = field(default_factory=time.monotonic)

    @property
    def metrics(self) -> tuple[type[Metric], ...]:
        """What models are judged by."""
        return (*METRIC_TABLE, *(metric_at(own.address) for own in self.own_metrics))

    def made_from(self, model: ModelConfig) -> Mapping[str, Any]:
        """The identity that a model had when the stage began; for a model that is not in the stage's config, its
        identity now."""
        return next((identity for own, identity in self.models if own == model), model.identity())

    @property
    def is_main(self) -> bool:
        """Whether this process writes the stage's files."""
        return self.rank == 0

    def input(self, name: str) -> StageFolder:
        """The folder of a finished stage that this one reads."""
        folder = StageFolder(self.root / self.reads[name])
        folder.refresh()
        return folder

    def peer(self, name: str) -> StageFolder:
        """The folder of a stage that runs beside this one: it may be unfinished, or not there at all."""
        return StageFolder(self.root / self.peers[name])

    def path(self, name: str) -> Path:
        """Where to write the payload file `name`; it enters the record when the stage is done."""
        self.payload.add(name)
        return self.folder.path / name

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append metrics of one step to `metrics.jsonl` (buffered: at most `FLUSH_SECONDS` behind)."""
        if not self.is_main:
            return
        self._lines.append(json_line({"step": step, "time": round(time.time(), 3), **metrics}))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()
        if self.on_report is not None:
            self.on_report(metrics)

    def warn(self, text: str) -> None:
        """Warn the user, once per text: in `log.txt`, in the record, below the final table of the run, and in the
        report. `text` is one line that names the thing in backticks, and the way out; the stage's name is put before
        it."""
        if self.is_main and text not in self.warnings:
            log.info("warning: %s", text)  # not louder: the terminal hears of it from the driver
            self.warnings.append(text)

    def flush(self) -> int:
        """Write buffered metrics; returns the size of the file in bytes."""
        path = self.folder.path / METRICS
        if self._lines and self.is_main:
            self.check_current()
            with store_errors(path), path.open("a", encoding="utf-8") as stream:
                stream.write("".join(line + "\n" for line in self._lines))
        self._lines.clear()
        self._flushed = time.monotonic()
        return path.stat().st_size if path.exists() else 0

    def rewind_metrics(self, size: int) -> None:
        """Forget metrics written after the checkpoint that is being resumed (`size` bytes long then)."""
        path = self.folder.path / METRICS
        if self.is_main and path.exists():
            with store_errors(path), path.open("rb+") as stream:
                # A power cut may have left less than the checkpoint knew, and half a line.
                stream.truncate(stream.read(size).rfind(b"\n") + 1)

    def check_current(self) -> None:
        """Raise unless this attempt still owns the folder."""
        if not self.attempt:
            return
        bring(self.folder.path / ATTEMPT)
        try:
            current = read_json(self.folder.path / ATTEMPT)["attempt"]
        except StoreError:
            current = None
        if current != self.attempt:
            raise StageError(
                f"another driver took over stage `{self.name}`; this attempt stops without publishing"
            )


def claim_attempt(folder: StageFolder, attempt: str) -> None:
    """Make `attempt` the only one that may publish to `folder`. Processes matter here, not power cuts: no fsync."""
    with replaced_file(folder.path / ATTEMPT) as temporary:
        temporary.write_text(json_line({"attempt": attempt}), encoding="utf-8")
    send(folder.path / ATTEMPT)
