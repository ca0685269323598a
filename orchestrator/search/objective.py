"""Which number of which stage decides between trials, and what is weighed against it."""

from collections.abc import Iterable
from dataclasses import dataclass

from raydistill.errors import did_you_mean
from raydistill.metrics import Accuracy, Better, Metric
from raydistill.plan.order import Graph
from raydistill.plan.schema import Plan
from raydistill.plan.search import Cost, SearchConfig
from raydistill.plan.stage import StageConfig
from raydistill.plan.written import Source
from raydistill.runs.plan_run import node_roles


@dataclass(frozen=True)
class Objective:
    """`metric` on validation, as the stage called `stage` reports it; and, if it counts, the `cost` of its model."""

    stage: str
    metric: type[Metric]
    mode: Better
    cost: Cost | None = None

    def __str__(self) -> str:
        return f"{self.stage}.{self.name}"

    @property
    def name(self) -> str:
        """What the stage calls it."""
        return self.metric.on("validation")

    @property
    def sign(self) -> float:
        """1 when more is better, -1 when less is."""
        return 1.0 if self.mode == "max" else -1.0


def find_objective(plan: Plan, config: SearchConfig, graph: Graph, source: Source) -> Objective:
    """The metric that the search names, or the accuracy of the last student; `PlanError` if nobody reports it."""
    written = config.metric
    metric: type[Metric]
    if written is None:
        stage, metric = _last_student(graph, source), Accuracy
    else:
        stage, _, name = written.partition(".")
        metric = _known_metric(stage, name, plan.judged_by, graph, source)
    node = graph.replicas[stage][0]
    _check_stage(graph.nodes[node].config, stage, source)
    model = graph.model_of(node)
    num_classes = (model.num_classes if model else None) or plan.task.num_classes
    if why := metric.why_not(num_classes, has_teacher=graph.nodes[node].config.has_teacher):
        raise source.error(("search", "metric"), f"{why}; choose by another metric")
    mode = config.mode or metric.better
    assert mode is not None
    _check_cost(graph.nodes[node].config, stage, config.cost, source)
    return Objective(stage, metric, mode, config.cost)


def _check_cost(config: StageConfig, stage: str, cost: Cost | None, source: Source) -> None:
    """The stage has what costs: a file with its model, where that is asked for."""
    if cost in ("bytes", "latency") and config.makes != "model":
        raise source.error(
            ("search", "cost"),
            f"`{stage}` judges models of other stages and writes none, so it has no {cost}; name the stage of a model"
            " in `metric`, or take `cost: parameters`",
        )
    if cost in ("parameters", "multiply_adds") and config.makes_program:
        raise source.error(
            ("search", "cost"),
            f"`{stage}` makes a program, whose {cost} are not counted; take `cost: bytes` or `latency`",
        )


def _last_student(graph: Graph, source: Source) -> str:
    roles = node_roles(graph)
    students = [node.stage for name, node in graph.nodes.items() if roles[name] == "student"]
    if not students:
        raise source.error(
            ("search",), f"the plan has no student; write `metric: STAGE.{Accuracy.on('validation')}`"
        )
    return students[-1]


def _known_metric(
    stage: str, name: str, metrics: Iterable[type[Metric]], graph: Graph, source: Source
) -> type[Metric]:
    """The metric that `stage` reports to a search as `name`."""
    place = ("search", "metric")
    if stage not in graph.replicas:
        raise source.error(place, f"the plan has no stage `{stage}`{did_you_mean(stage, graph.replicas)}")
    if name.startswith("test/"):
        raise source.error(
            place,
            f"`{name}` is of the test split, which may not choose anything; write"
            f" `{stage}.validation/{name.removeprefix('test/')}`",
        )
    known = {metric.on("validation"): metric for metric in metrics if metric.better is not None}
    if name not in known:
        raise source.error(place, f"no stage reports `{name}` to a search{did_you_mean(name, known)}")
    return known[name]


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
