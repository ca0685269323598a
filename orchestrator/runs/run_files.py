"""The shapes of what a plan run writes about itself: `graph.json`, `results.json`, `survey.json`.

A file may be cut short, edited or of another make, so every value is checked as it is read; see `files.read_as`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

GRAPH, RESULTS, SURVEY, PLAN = "graph.json", "results.json", "survey.json", "plan.yaml"
REPORT, PLOTS = "report.html", "plots"

Status = Literal["waiting", "running", "done", "cached", "not needed", "failed", "skipped", "stopped"]
FINISHED: frozenset[Status] = frozenset({"done", "cached", "not needed", "failed", "skipped", "stopped"})
SUCCEEDED: frozenset[Status] = frozenset({"done", "cached", "not needed"})
UNTOUCHED: frozenset[Status] = frozenset({"cached", "not needed"})

Seconds = Annotated[float, Field(allow_inf_nan=False)]


class FromFile(BaseModel):
    """Part of a file of ours. A newer version may have written more than we read."""

    model_config = ConfigDict(frozen=True)


class GraphNode(FromFile):
    """One node of `graph.json`: what it reads and makes, the part it plays, and where its folder lies below the root.

    An `adjusted` one makes another node's model with its logits shifted.
    """

    name: str
    stage: str
    kind: str
    makes: str
    role: str
    reads: tuple[str, ...]
    folder: str
    fingerprint: str
    inserted: bool = False
    adjusted: bool = False
    replica: int | None = None


class GraphFile(FromFile):
    """`graph.json`, written once when the run begins. Every node comes after what it reads; `test` is the split that
    models are judged on."""

    plan: str
    run_id: str
    test: str
    nodes: tuple[GraphNode, ...]


class StageEntry(FromFile):
    """A node of `results.json`, or all replicas of a stage in sum: then `std` says how far apart they are."""

    status: Status = "waiting"
    seconds: Seconds = 0.0
    parameters: int | None = None
    metrics: dict[str, float] = {}
    std: dict[str, float] = {}
    replicas: int | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None
    note: str = ""
    phase: str = ""
    """What `running` or `waiting` stands for: `starting`, `waiting for room`, `node lost, attempt 2`."""
    nodes: tuple[str, ...] = ()
    attempts: int = 1
    workers: int | None = None
    """How many processes made the result; None when nobody wrote it down."""


class StoredRemark(FromFile):
    """What the survey noticed about data or models, and which stages it concerns."""

    level: str
    text: str
    stages: tuple[str, ...] = ()


class TaskEntry(FromFile):
    """The task, and its samples per split once a stage has loaded them."""

    name: str = "unknown"
    num_classes: int | None = None
    train: int | None = None
    validation: int | None = None
    test: int | None = None


class EstimateEntry(FromFile):
    """How long the `stages` that were to run would take, when the run began, as far as `known` ones of them told; None
    where none did. At most `side_by_side` run at the same time."""

    stages: int
    known: int
    seconds: Seconds | None = None
    side_by_side: int | None = None


class ResultsFile(FromFile):
    """`results.json`, which is replaced while the run goes on."""

    status: str = "running"
    seconds: Seconds = 0.0
    command: str | None = None
    versions: dict[str, str] = {}
    task: TaskEntry = TaskEntry()
    survey: tuple[StoredRemark, ...] = ()
    stages: dict[str, StageEntry] = {}
    estimate: EstimateEntry | None = None
    mlflow: dict[str, str | None] = {}


class IdentityFile(FromFile):
    """`config.json` of a stage: all that decides its result."""

    model_config = ConfigDict(extra="allow")

    kind: str
    version: int
    task: dict[str, Any]
    config: dict[str, Any]


class SurveyFile(FromFile):
    """`survey.json`: remarks, and split → samples per class."""

    remarks: tuple[StoredRemark, ...] = ()
    counts: dict[str, list[int]] = {}
