"""`tracking.json`: what of a plan run or a search has reached MLflow. One process at a time works on it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

CLOSED_AS: dict[str, RunStatus] = {
    "done": "FINISHED",
    "failed": "FAILED",
    "stopped": "KILLED",
    "stopped_early": "FINISHED",  # as it should; a tag tells it from others
    "interrupted": "KILLED",
    "running": "KILLED",  # and its driver is gone
}
"""How MLflow calls the end of a plan run or a search, of a stage or a trial."""

STATE = "tracking.json"
LOCK = ".tracking.lock"


class ChildState(BaseModel):
    """What of one stage or trial was sent. `is_in_doubt`: a batch was on its way and nobody saw it arrive."""

    model_config = ConfigDict(extra="forbid")

    run_id: str | None = None
    is_described: bool = False
    offset: int = 0
    tail: str = ""
    steps: dict[str, int] = {}
    is_in_doubt: bool = False
    model: str | None = None
    """Id of the logged model."""
    is_model_done: bool = False
    shown: str = ""
    """Outcome of a trial as MLflow shows it; a trial that was interrupted goes on later."""
    is_finished: bool = False
    cost: float | None = None
    """Of a trial's model, as MLflow shows it."""


class State(BaseModel):
    """What of a plan run or a search was sent to the store `tracking_uri`, as `own_store.name_of` writes it."""

    model_config = ConfigDict(extra="forbid")

    tracking_uri: str
    experiment_id: str | None = None
    run_id: str | None = None
    stages: dict[str, ChildState] = {}
    trials: dict[str, ChildState] = {}
    settings: str = ""
    """The tags of a search that another command may change."""
    best: str | None = None
    """Id of the trial that is tagged as the best of its search."""
    front: list[str] = []
    """Ids of the trials that are tagged as not beaten in both metric and cost."""
    cached: dict[str, str] = {}
    """Of each stage that did not run here: the MLflow run that trained it; empty when this store has none."""
    compared: list[str] = []
    table: str = ""
    files: dict[str, str] = {}
    closed_as: RunStatus | None = None
    registered: str | None = None
    is_finished: bool = False

    def forget(self) -> None:
        """Take everything as not yet sent."""
        for name, value in State(tracking_uri=self.tracking_uri):
            setattr(self, name, value)

    def save(self, folder: Path) -> None:
        """Write beside and rename. Not fsynced: after a power cut the runs are found again by their tags."""
        temporary = folder / f".{STATE}.{os.getpid()}.tmp"
        temporary.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        temporary.replace(folder / STATE)


def read_state(folder: Path) -> State | None:
    """The state, or None when nothing was sent or the file is damaged."""
    try:
        return State.model_validate_json((folder / STATE).read_bytes())
    except (OSError, ValidationError):
        return None


@contextmanager
def try_lock(folder: Path) -> Iterator[bool]:
    """Whether we are the only one who mirrors this run. A living driver holds this lock all along."""
    with (folder / LOCK).open("a", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
