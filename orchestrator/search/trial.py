"""One trial, in whatever process it was sent to: the stages for its metric, one after another.

What trials share is cached by then. The trial's own stages land in the same folders as anybody's, under the same
leases, but do not see the test split.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from raydistill.execution.gpu_share import with_gpu_shares
from raydistill.execution.local_backend import LocalBackend
from raydistill.execution.ray_backend import RayBackend
from raydistill.execution.request import Backend
from raydistill.execution.scheduler import run_stages
from raydistill.plan.order import Graph, order_stages
from raydistill.plan.schema import Plan
from raydistill.plan.search import Cost
from raydistill.runs.folder import METRICS
from raydistill.runs.mirror import open_storage
from raydistill.runs.plan_run import finished_record
from raydistill.runs.run_files import SUCCEEDED
from raydistill.training.model_cost import counted_cost

if TYPE_CHECKING:
    from raydistill.execution.ray_backend.resources import Resources

Key = TypeVar("Key", str, int)


@dataclass(frozen=True)
class TrialRequest:
    """A trial's checked plan, the folders of the nodes that are its own, and what is looked at. All fields are JSON
    values."""

    plan: dict[str, Any]
    stages: dict[str, str]
    stage: str
    metric: str
    root: str
    cost: Cost | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `TrialRequest(**values)` is the way back."""
        return asdict(self)


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended; the fields are those of its record."""

    status: Literal["done", "failed", "interrupted"]
    metric: float | None = None
    cost: float | None = None
    epochs: dict[int, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None


def run_trial(
    request: TrialRequest,
    *,
    stop: threading.Event,
    report: Callable[[int, float], None],
    share: "Resources | None" = None,
) -> TrialResult:
    """Run a trial to its end, in this process or on a `share` of the Ray cluster that it has joined.

    `report` hears an epoch of the metric's stage, if it has one replica, and its metric.
    """
    started = time.monotonic()
    plan = Plan.model_validate(request.plan)
    root = open_storage(request.root)
    graph = with_gpu_shares(order_stages(plan).needed_for([request.stage]), root)
    judged = graph.replicas[request.stage]

    def hear(node: str, metrics: Mapping[str, float]) -> None:
        if judged == (node,) and request.metric in metrics:
            report(int(metrics["epoch"]), float(metrics[request.metric]))

    backend: Backend = LocalBackend(stop, hear) if share is None else RayBackend(on_report=hear, share=share)
    with closing(backend):
        states = run_stages(graph, backend, task=plan.task, root=root, stop=stop, sees_test=False)
    failed = next((state.error for state in states.values() if state.status == "failed"), None)
    elapsed = round(time.monotonic() - started, 3)
    if failed is None and any(state.status not in SUCCEEDED for state in states.values()):
        return TrialResult("interrupted", seconds=elapsed)
    epochs = _epochs(graph, judged, request.metric, root)
    if failed is not None:
        return TrialResult("failed", epochs=epochs, seconds=elapsed, error=failed)
    return _judged(request, [graph.nodes[name].folder for name in judged], epochs)


def _judged(request: TrialRequest, folders: list[str], epochs: dict[int, float]) -> TrialResult:
    """The mean over the replicas of the metric's stage, which left these folders."""
    records = {
        folder: finished_record(open_storage(request.root) / folder) for folder in request.stages.values()
    }
    metrics = _mean_of([record.metrics for folder in folders if (record := records[folder]) is not None])
    value = metrics.get(request.metric)
    metrics = {name: number for name, number in metrics.items() if not name.startswith("test/")}
    seconds = round(sum(record.seconds for record in records.values() if record is not None), 3)
    if value is None or not math.isfinite(value):
        why = "is not finite" if value is not None else "was not reported: are there validation samples?"
        error = f"`{request.metric}` {why}"
        return TrialResult("failed", epochs=epochs, seconds=seconds, error=error)
    if request.cost is None or request.cost == "latency":  # which is measured when no trial runs
        return TrialResult("done", value, None, epochs, metrics, seconds)
    costs = [counted_cost(open_storage(request.root) / folder, request.cost) for folder in folders]
    known = [cost for cost in costs if cost is not None]
    if len(known) < len(costs):
        error = f"the {request.cost} of `{request.stage}` could not be counted; search with another `cost`"
        return TrialResult("failed", epochs=epochs, seconds=seconds, error=error)
    return TrialResult("done", value, fmean(known), epochs, metrics, seconds)


def _epochs(graph: Graph, nodes: tuple[str, ...], metric: str, root: Path) -> dict[int, float]:
    """The metric after every epoch that all replicas have ended, by what their stages wrote down."""
    curves = [_curve(root / graph.nodes[name].folder / METRICS, metric) for name in nodes]
    return _mean_of(curves)


def _curve(path: Path, metric: str) -> dict[int, float]:
    curve: dict[int, float] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # a power cut may have left half a line
                values = json.loads(line)
                if metric in values and math.isfinite(value := float(values[metric])):
                    curve[int(values["epoch"])] = value
    return curve


def _mean_of(members: list[dict[Key, float]]) -> dict[Key, float]:
    """The mean of what all members have."""
    if not members:
        return {}
    common = [key for key in members[0] if all(key in member for member in members)]
    return {key: fmean(member[key] for member in members) for key in common}
