"""What a stage leaves behind: the record, written last. No record, no result."""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat

# torch puts a worker's whole traceback into the message of an error of the same class.
LOADER = re.compile(r"Caught \w+ in DataLoader worker process \d+")
CAUSE = re.compile(r"^(?P<all>[A-Za-z_][\w.]*: (?P<text>.*))", re.MULTILINE)


class Record(BaseModel):
    """The outcome of one stage. `payload` holds the SHA-256 of every file that the stage made.

    `costs` are those of a training: `trained_parameters`, among them what the stored model leaves out,
    `seconds_per_step` and `peak_bytes`.

    `untested`: made by a trial of a search, which did not look at the test split and kept the last checkpoint. A run of
    a plan completes it from there without training again.

    `warnings` do not touch the result, but whoever reads it should know them.

    `judged_on`: digest of the test split that the model was judged on, empty while it is judged on another one; None
    when nobody looked at the test split.

    `workers` is how many processes side by side made it, `nodes` where, `attempts` how often this run began it; None
    and empty in records that are older. Other numbers of workers, as on `--local`, make the same batches and add up
    the same gradients in another order: the result differs by rounding.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    fingerprint: str
    status: Literal["done", "failed"]
    untested: bool = False
    judged_on: str | None = None
    seconds: FiniteFloat
    finished: FiniteFloat
    metrics: dict[str, float] = {}
    parameters: int | None = None
    costs: dict[str, float] = {}
    payload: dict[str, str] = {}
    versions: dict[str, str] = {}
    git_commit: str | None = None
    workers: int | None = None
    nodes: tuple[str, ...] = ()
    attempts: int | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None
    traceback: str | None = None

    def is_judged_on(self, test: str) -> bool:
        """Whether its test metrics, if it has to have any, are about this test split."""
        return not self.untested and self.judged_on in (None, test)


def summary_of(error: BaseException) -> str:
    """One line for the table of outcomes. Of an error in a process that loads data, the line of its cause."""
    message = str(getattr(error, "message", None) or error).strip()
    lines = message.splitlines() or [""]
    is_ours = hasattr(error, "message")
    if LOADER.match(lines[0]):
        cause = CAUSE.search(message.rpartition("Traceback (most recent call last):")[2])
        return cause["text" if is_ours else "all"] if cause else lines[0]
    return lines[0] if is_ours else f"{type(error).__name__}: {lines[0]}"
