"""The whole plan: a task and a graph of stages."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, SerializeAsAny, ValidationError, model_validator

from raydistill.errors import PlanError, did_you_mean
from raydistill.lookup import load_object
from raydistill.metrics import METRICS, Metric
from raydistill.plan.address import class_at
from raydistill.plan.config import Config, Duration, read_options, seconds_of, text_like
from raydistill.plan.config_errors import Path, located_error, one_line, relocated, shown
from raydistill.plan.own_metrics import MetricAddress, metric_at
from raydistill.plan.search import SearchConfig
from raydistill.plan.stage import StageConfig
from raydistill.tasks import TASKS
from raydistill.tasks.task import Task

if TYPE_CHECKING:
    from raydistill.plan.written import Source


def build_task(raw: Any) -> Task:
    """The task that `{name: ..., options}` describes; its options are checked, its files are not opened."""
    if isinstance(raw, Task):
        return raw
    if not isinstance(raw, Mapping) or "name" not in raw:
        raise located_error("a task is written `mnist` or `{name: mnist}`, with its options beside the name")
    task_type = task_class(raw["name"])
    for key in raw:
        if key not in task_type.model_fields:
            raise located_error(
                f"task `{raw['name']}` has no option `{key}`{did_you_mean(str(key), task_type.model_fields)}",
                key,
            )
    try:
        return read_options(task_type, raw)
    except ValidationError as error:
        raise relocated(error, raw) from None


def task_class(name: Any) -> type[Task]:
    """The class of one of our tasks, or of the user's own; an error at `name` for one that is not there."""
    if isinstance(name, str) and ":" in name:
        try:
            own: type[Task] = class_at(name, Task, "task")
        except ValueError as error:
            raise located_error(str(error), "name") from None
        return own
    if not isinstance(name, str) or name not in TASKS:
        raise located_error(f"unknown task {shown(name)}{did_you_mean(str(name), TASKS)}", "name")
    ours: type[Task] = load_object(TASKS[name])
    return ours


StageName = Annotated[
    str, text_like(r"[a-z][a-z0-9_-]{0,99}", "lower-case letters, digits, `-` and `_`, a letter first")
]
PlanName = Annotated[
    str, text_like(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", "at most 100 letters, digits, `-` and `_`")
]


class TrackingConfig(Config):
    """Where the runs appear in MLflow. `tracking: none` (or `--no-tracking`) runs without it: nothing is sent, neither
    now nor by `distill sync`, and MLflow is not even imported."""

    experiment: str | None = None
    """The MLflow experiment; the plan's name when left out."""
    register_student_as: str | None = None
    """The name under which the best student is registered as a model; not registered when left out."""
    wait: Duration = "20s"
    """How long the end of a command waits for what is still to be sent; then a process in the background sends it."""

    @property
    def wait_seconds(self) -> float:
        """The same in seconds."""
        return seconds_of(self.wait)


class Plan(Config):
    """What a user writes: one task, and stages that read one another. `search` is for `distill tune` alone."""

    name: PlanName
    """What runs and reports of the plan are called."""
    task: Annotated[SerializeAsAny[Task], BeforeValidator(build_task)]
    """What is learned: data and its classes."""
    stages: Annotated[dict[StageName, StageConfig], Field(min_length=1)]
    """Names, and what each stage does."""
    metrics: tuple[MetricAddress, ...] = ()
    """Metrics of your own, `package.module:Class`, beside ours: every model of the plan is judged by them too."""
    tracking: TrackingConfig | Literal["none"] = TrackingConfig()
    """Where the runs appear in MLflow, or `none`."""
    search: SearchConfig | None = None
    """What `distill tune` varies."""

    _source: "Source | None" = PrivateAttr(default=None)
    """How the user wrote it; None for a plan that code put together."""

    @model_validator(mode="after")
    def _metrics_have_names_of_their_own(self) -> Self:
        seen: dict[str, str] = {}
        for index, address in enumerate(self.metrics):
            name = metric_at(address).name
            if (other := seen.setdefault(name, address)) != address or self.metrics.index(address) != index:
                raise located_error(f"`{other}` and `{address}` are both called `{name}`", "metrics", index)
        return self

    @property
    def judged_by(self) -> tuple[type[Metric], ...]:
        """What its models are judged by: our metrics and the user's own."""
        return (*METRICS, *map(metric_at, self.metrics))

    def __eq__(self, other: object) -> bool:
        """Whether both say the same, however it is written."""
        return isinstance(other, Plan) and self.__dict__ == other.__dict__

    def error(self, path: Path, message: str) -> PlanError:
        """The error for what stands at `path`: it names the line, where the plan was read from a file."""
        if self._source is not None:
            return self._source.error(path, message)
        return PlanError(one_line(f"{'.'.join(map(str, path))}: {message}"))

    @property
    def experiment(self) -> str:
        """What its runs are called together."""
        return (self.tracking.experiment if isinstance(self.tracking, TrackingConfig) else None) or self.name
