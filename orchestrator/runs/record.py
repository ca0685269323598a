"""What a stage leaves behind: the record, written last. No record, no result."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, FiniteFloat

from raydistill.metrics import Better, Form, Metric, Samples

# torch puts a worker's whole traceback into the message of an error of the same class.
LOADER = re.compile(r"Caught \w+ in DataLoader worker process \d+")
CAUSE = re.compile(r"^(?P<all>[A-Za-z_][\w.]*: (?P<text>.*))", re.MULTILINE)


@dataclass(frozen=True)
class Hours:
    """Hours of CPU and GPU that were held, whatever was done with them."""

    cpus: float = 0.0
    gpus: float = 0.0

    @classmethod
    def of(cls, reserved: Mapping[str, float], seconds: float) -> Self:
        """Of so many `cpus` and `gpus`, held for some seconds."""
        return cls(*(reserved.get(name, 0.0) * seconds / 3600 for name in ("cpus", "gpus")))

    def __add__(self, other: "Hours") -> "Hours":
        return Hours(self.cpus + other.cpus, self.gpus + other.gpus)

    def __bool__(self) -> bool:
        return self.cpus + self.gpus > 0

    def __str__(self) -> str:
        held = ((self.cpus, "CPU"), (self.gpus, "GPU"))
        return " and ".join(f"{_hours(amount)} of {noun}" for amount, noun in held if amount)


class OwnMetric(BaseModel):
    """A metric of the user's own as it was when a model was judged by it, so that its values are shown without running
    its code: where it is, the digest of the code, and what `Metric` says of itself."""

    model_config = ConfigDict(frozen=True)

    address: str
    code: str
    name: str
    title: str
    better: Better | None
    form: Form
    compared: bool

    @classmethod
    def of(cls, address: str, code: str, metric: type[Metric]) -> Self:
        """What there is to say of a metric."""
        said = {key: getattr(metric, key) for key in ("name", "better", "form", "compared")}
        return cls(address=address, code=code, title=metric.called(), **said)

    def as_metric(self) -> type[Metric]:
        """A metric that is written as this one is."""
        said = self.model_dump(include={"name", "title", "better", "form", "compared"})
        return type("Shown", (Metric,), said)


class Record(BaseModel):
    """The outcome of one stage. `payload` holds the SHA-256 of every file that the stage made.

    `costs` are those of a training: `trained_parameters`, among them what the stored model leaves out,
    `seconds_per_step` and `peak_bytes`, on a GPU `gpu_busy` and `gpu_memory`, the parts of its time and of its memory
    that the training takes; and of the model itself `bytes` of its tensors and `multiply_adds` for one
    input, where they could be counted.

    `untested`: made by a trial of a search, which did not look at the test split and kept the last checkpoint. A run of
    a plan completes it from there without training again.

    `warnings` do not touch the result, but whoever reads it should know them.

    `judged_on`: digest of the test split that the model was judged on, empty while it is judged on another one; None
    when nobody looked at the test split.

    `judged_by`: the metrics of the user's own that it was judged by, beside ours.

    `workers` is how many processes side by side made it, `nodes` where, `attempts` how often this run began it; None
    and empty in records that are older. Other numbers of workers, as on `--local`, make the same batches and add up
    the same gradients in another order: the result differs by rounding. So it does where it was trained as one batched
    model with others that are like it but for their seeds: `stacked` is how many they were.

    `reserved` are the `cpus` and `gpus` that all workers together held for `seconds`. One that is `continued` went on
    from a checkpoint, or from what an earlier attempt had made: `seconds` are those of the last attempt alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    fingerprint: str
    status: Literal["done", "failed"]
    untested: bool = False
    judged_on: str | None = None
    judged_by: tuple[OwnMetric, ...] = ()
    seconds: FiniteFloat
    finished: FiniteFloat
    metrics: dict[str, float] = {}
    parameters: int | None = None
    costs: dict[str, float] = {}
    payload: dict[str, str] = {}
    versions: dict[str, str] = {}
    git_commit: str | None = None
    workers: int | None = None
    stacked: int | None = None
    nodes: tuple[str, ...] = ()
    attempts: int | None = None
    reserved: dict[str, float] = {}
    continued: bool = False
    warnings: tuple[str, ...] = ()
    error: str | None = None
    traceback: str | None = None

    @property
    def hours(self) -> Hours:
        """What making it took; nothing where nobody wrote down what it held."""
        return self.hours_of(self.seconds)

    def hours_of(self, seconds: float) -> Hours:
        """Of so many seconds; those of trainings that were stacked are shared by all of them."""
        return Hours.of(self.reserved, seconds / (self.stacked or 1))

    def is_judged_on(self, test: str) -> bool:
        """Whether its test metrics, if it has to have any, are about this test split."""
        return not self.untested and self.judged_on in (None, test)

    def missing_metrics(self, wanted: Mapping[str, str]) -> list[str]:
        """Of metrics of the user's own, by address the digest of their code, those that it was not judged by; none
        where nothing was judged."""
        if not self.judged_splits:
            return []
        known = {metric.address: metric.code for metric in self.judged_by}
        return [address for address, code in wanted.items() if known.get(address) != code]

    @property
    def judged_splits(self) -> tuple[str, ...]:
        """The splits on which a model was judged."""
        return tuple(split for split in ("validation", "test") if Samples.on(split) in self.metrics)


def _hours(amount: float) -> str:
    """As precise as anybody wants to know: 340 h, 2.3 h, 0.05 h."""
    return "less than 0.01 h" if amount < 0.01 else f"{amount:,.0f} h" if amount >= 10 else f"{amount:.2g} h"


def summary_of(error: BaseException) -> str:
    """One line for the table of outcomes. Of an error in a process that loads data, the line of its cause."""
    message = str(getattr(error, "message", None) or error).strip()
    lines = message.splitlines() or [""]
    is_ours = hasattr(error, "message")
    if LOADER.match(lines[0]):
        cause = CAUSE.search(message.rpartition("Traceback (most recent call last):")[2])
        return cause["text" if is_ours else "all"] if cause else lines[0]
    return lines[0] if is_ours else f"{type(error).__name__}: {lines[0]}"
