"""Which number of which stage decides between trials."""

from dataclasses import dataclass
from typing import Literal

from raydistill.errors import did_you_mean
from raydistill.plan.load import Source
from raydistill.plan.order import Graph
from raydistill.plan.search import SearchConfig
from raydistill.plan.stage import StageConfig
from raydistill.runs.plan_run import node_roles

Mode = Literal["max", "min"]
MODES: dict[str, Mode] = {
    "validation/accuracy": "max",
    "validation/loss": "min",
    "validation/errors": "min",
    "validation/ece": "min",
    "validation/worst_class_recall": "max",
}
EVERY_EPOCH = frozenset({"validation/accuracy", "validation/loss"})


@dataclass(frozen=True)
class Metric:
    """`name` as the stage called `stage` reports it."""

    stage: str
    name: str
    mode: Mode

    def __str__(self) -> str:
        return f"{self.stage}.{self.name}"

    @property
    def is_reported_every_epoch(self) -> bool:
        """Whether the training loop reports it while it trains."""
        return self.name in EVERY_EPOCH

    @property
    def sign(self) -> float:
        """1 when more is better, -1 when less is."""
        return 1.0 if self.mode == "max" else -1.0


def find_metric(config: SearchConfig, graph: Graph, source: Source) -> Metric:
    """The metric that the search names, or the accuracy of the last student; `PlanError` if nobody reports it."""
    written = config.metric
    if written is None:
        stage, name = _last_student(graph, source), "validation/accuracy"
    else:
        stage, _, name = written.partition(".")
        _check_name(stage, name, graph, source)
    _check_stage(graph.nodes[graph.replicas[stage][0]].config, stage, source)
    return Metric(stage, name, config.mode or MODES[name])


def _last_student(graph: Graph, source: Source) -> str:
    roles = node_roles(graph)
    students = [node.stage for name, node in graph.nodes.items() if roles[name] == "student"]
    if not students:
        raise source.error(("search",), "the plan has no student; write `metric: STAGE.validation/accuracy`")
    return students[-1]


def _check_name(stage: str, name: str, graph: Graph, source: Source) -> None:
    place = ("search", "metric")
    if stage not in graph.replicas:
        raise source.error(place, f"the plan has no stage `{stage}`{did_you_mean(stage, graph.replicas)}")
    if name.startswith("test/"):
        raise source.error(
            place,
            f"`{name}` is of the test split, which may not choose anything; write"
            f" `{stage}.validation/{name.removeprefix('test/')}`",
        )
    if name not in MODES:
        raise source.error(place, f"no stage reports `{name}` to a search{did_you_mean(name, MODES)}")


def _check_stage(config: StageConfig, stage: str, source: Source) -> None:
    """The stage judges a model on validation."""
    place = ("search", "metric")
    if config.judged_on == ("test",):
        raise source.error(
            place,
            f"`{stage}` judges on the test split, which may not choose anything; set its `split: validation`",
        )
    if "validation" not in config.judged_on:
        raise source.error(place, f"`{stage}` makes no model that is judged; name the stage of a student")
    if source.values["task"].get("validation_fraction") == 0:
        raise source.error(
            place, "there is no validation split to search by; set the task's `validation_fraction` above 0"
        )
