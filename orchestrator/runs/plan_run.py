"""A plan being executed: its folder under `runs/plans/`, the graph it follows, and its results."""

import math
import os
import re
import shutil
import statistics
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from raydistill.errors import StoreError
from raydistill.masking import mask
from raydistill.plan.fingerprint import fingerprint
from raydistill.plan.load import plan_values
from raydistill.plan.order import Graph, Node
from raydistill.plan.schema import Plan
from raydistill.runs.data_files import write_listings
from raydistill.runs.files import atomic_write, make_folder, read_json, replaced_file, write_json
from raydistill.runs.folder import StageFolder
from raydistill.runs.mirror import bring, send, storage_name
from raydistill.runs.placement import STARTING, Placement
from raydistill.runs.record import Record
from raydistill.runs.run_files import (
    GRAPH,
    PLAN,
    PLOTS,
    REPORT,
    RESULTS,
    SUCCEEDED,
    SURVEY,
    GraphNode,
    Status,
)

SIZES = TypeAdapter(dict[str, Annotated[int, Field(ge=0)]])
FastDumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass
class NodeState:
    """What is known about one node while its plan runs."""

    status: Status = "waiting"
    seconds: float = 0.0
    error: str | None = None
    note: str = ""
    attempts: int = 0
    started: float | None = None
    placement: Placement = STARTING
    has_no_room: bool = False

    @property
    def phase(self) -> str:
        """What `running` and `waiting` stand for: `starting`, `waiting for room`, `node lost, attempt 2`; of other
        states their name."""
        attempt = self.attempts + (self.status == "waiting")
        again = f", attempt {attempt}" if attempt > 1 else ""
        if self.status == "running":
            return f"{self.placement.phase}{again}"
        if self.status == "waiting":
            return f"waiting{' for room' * self.has_no_room}{again}"
        return self.status


class Estimated(Protocol):
    """How long something will take."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        ...


class PlanRun:
    """`runs/plans/<plan name>/<run id>/`: plan.yaml, graph.json, results.json; later the report and plots."""

    def __init__(
        self, plan: Plan, graph: Graph, root: Path, *, command: str, versions: Mapping[str, str]
    ) -> None:
        self.plan, self.graph, self.root = plan, graph, root
        self.command, self.versions = command, dict(versions)
        self.run_id = time.strftime("%Y%m%d-%H%M%S-") + uuid.uuid4().hex[:4]
        self.started = time.monotonic()
        self.folder = root / "plans" / plan.name / self.run_id
        self.mlflow: dict[str, Any] = {}
        self.results: dict[str, Any] = {}
        self.remarks: list[dict[str, Any]] = []
        self.estimate: dict[str, Any] | None = None
        self.left: Callable[[], Estimated | None] = lambda: None
        self._records: dict[str, Record | None] = {}

    def begin(self) -> None:
        """Make the folder and write the plan and its graph."""
        make_folder(self.folder)
        with atomic_write(self.folder / PLAN) as temporary:
            temporary.write_text(plan_text(self.plan), encoding="utf-8")
        write_json(self.folder / GRAPH, graph_values(self.plan, self.graph, self.run_id))
        write_listings(self.root, self.plan.task, self.graph.task, self.graph.test)
        send(self.folder)  # and a storage root that nothing can be written to is told now

    def write_survey(self, survey: Mapping[str, Any]) -> None:
        """Keep what was found before the first stage: all of it in `survey.json`, the lines in the results too."""
        self.remarks = list(survey["remarks"])
        write_json(self.folder / SURVEY, survey)

    def write_results(self, states: Mapping[str, NodeState], status: str) -> None:
        """Write `results.json` as it stands now."""
        sizes = read_data_sizes(self.root, self.graph.task, self.graph.test)
        self.results = {
            "plan": self.plan.name,
            "run_id": self.run_id,
            "status": status,
            "seconds": round(time.monotonic() - self.started, 3),
            "storage": storage_name(self.root),
            "command": mask(self.command),
            "versions": self.versions,
            "task": {
                "name": self.plan.task.name,
                "num_classes": self.plan.task.num_classes,
                **sizes,
            },
            "survey": self.remarks,
            "stages": self._stages(states),
            "mlflow": self.mlflow,
        }
        if self.estimate is not None:
            self.results["estimate"] = self.estimate
        if status == "running" and (left := self.left()) is not None:
            self.results["left"] = {**left.to_dict(), "at": round(time.time(), 3)}
        write_json(self.folder / RESULTS, self.results)
        send(self.folder / RESULTS)

    def _stages(self, states: Mapping[str, NodeState]) -> dict[str, Any]:
        entries = {
            name: stage_entry(node, states[name], self._record(node, states[name]))
            for name, node in self.graph.nodes.items()
        }
        for stage, names in self.graph.replicas.items():
            members = [entries[name] for name in names if name in entries]
            if len(names) > 1 and members:
                entries[stage] = replicas_entry(members)
        return entries

    def _record(self, node: Node, state: NodeState) -> Record | None:
        """The node's record, read once: results are written often, and a finished stage does not change."""
        if state.status not in SUCCEEDED:
            self._records.pop(node.name, None)
            return None
        if node.name not in self._records:
            self._records[node.name] = finished_record(self.root / node.folder)
        return self._records[node.name]


def stage_entry(node: Node | GraphNode, state: NodeState, record: Record | None) -> dict[str, Any]:
    """One stage of `results.json`."""
    entry: dict[str, Any] = {
        "stage": node.kind,
        "status": state.status,
        "seconds": round(state.seconds, 3),
        "fingerprint": node.fingerprint,
        "folder": node.folder,
    }
    if state.phase != state.status:
        entry["phase"] = state.phase
    if state.placement.nodes:
        entry["nodes"] = list(state.placement.nodes)
    if state.attempts > 1:
        entry["attempts"] = state.attempts
    if record is not None:
        if record.workers is not None:
            entry["workers"] = record.workers
            config = node.config if isinstance(node, Node) else None
            is_same = config is None or config.workers_come_and_go  # any number makes the same bytes
            asked = record.workers if config is None or is_same else config.resources.workers
            if note := note_on_workers(record.workers, asked):
                entry["note"] = note
        if record.stacked is not None:
            entry["stacked"] = record.stacked
            entry.setdefault("note", f"one of {record.stacked} trained as one model")
        if record.parameters is not None:
            entry["parameters"] = record.parameters
        entry["metrics"] = {name: tidy(value) for name, value in record.metrics.items()}
        if record.warnings:
            entry["warnings"] = list(record.warnings)
    if state.error:
        entry["error"] = state.error
    if state.status == "not needed":
        entry["note"] = state.note
    return entry


def note_on_workers(made_by: int, asked: int) -> str:
    """How many workers made a result, where that is worth a word.

    Any number of them makes the same batches. Sums over several processes round otherwise, and after some thousand
    steps a few test samples change sides: 91.40 against 91.70 % in a student that two workers, and one, trained.
    """
    counted = f"{made_by} worker{'s' * (made_by > 1)}"
    if made_by != asked:
        return f"made by {counted}, not {asked}: the same but for rounding"
    return counted if made_by > 1 else ""


def replicas_entry(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A stage with replicas in sum: mean and standard deviation of what its members reached."""
    statuses = [member["status"] for member in members]
    order: list[Status] = [
        "failed",
        "stopped",
        "skipped",
        "running",
        "waiting",
        "done",
        "cached",
        "not needed",
    ]
    entry: dict[str, Any] = {
        "stage": members[0]["stage"],
        "status": next(status for status in order if status in statuses),
        "seconds": round(sum(member["seconds"] for member in members), 3),
        "replicas": len(members),
    }
    measured = [member for member in members if "metrics" in member]
    if measured:
        names = [
            name for name in measured[0]["metrics"] if all(name in member["metrics"] for member in measured)
        ]
        values = {name: [member["metrics"][name] for member in measured] for name in names}
        if "parameters" in measured[0]:
            entry["parameters"] = measured[0]["parameters"]
        entry["metrics"] = {name: statistics.fmean(numbers) for name, numbers in values.items()}
        entry["std"] = {name: _deviation(numbers) for name, numbers in values.items()}
    return entry


def _deviation(numbers: Sequence[float]) -> float:
    """The sample standard deviation; NaN where a number is not finite, as `stdev` then fails."""
    if not all(map(math.isfinite, numbers)):
        return math.nan
    return statistics.stdev(numbers) if len(numbers) > 1 else 0.0


def finished_record(folder: Path) -> Record | None:
    """The record of a finished stage, or None when there is none that can be read."""
    try:
        record = StageFolder(folder).record()
    except StoreError:
        return None
    return record if record is not None and record.status == "done" else None


def tidy(value: float) -> float | int:
    """Counts as whole numbers."""
    return int(value) if float(value).is_integer() and abs(value) >= 2 else value


def graph_values(plan: Plan, graph: Graph, run_id: str) -> dict[str, Any]:
    """What `graph.json` holds: every node with what it reads and the part it plays."""
    roles = node_roles(graph)
    nodes = [
        {
            "name": node.name,
            "stage": node.stage,
            "kind": node.kind,
            "makes": node.config.makes,
            "reads": list(node.reads),
            "folder": node.folder,
            "fingerprint": node.fingerprint,
            "inserted": node.inserted,
            "adjusted": node.config.stands_for is not None,
            "replica": int(node.name.rpartition(".")[2]) if node.name != node.stage else None,
            "role": roles[node.name],
        }
        for node in graph.nodes.values()
    ]
    return {
        "plan": plan.name,
        "run_id": run_id,
        "test": graph.test,
        "nodes": nodes,
    }


def node_roles(graph: Graph) -> dict[str, str]:
    """The part each node plays: teacher, specialist, assistant, student, baseline, targets, clusters, ensemble,
    committee or comparison, or a mere evaluation."""
    teaching = {str(ref) for node in graph.nodes.values() for ref in node.config.taught_by}
    has_student = any(node.config.makes_students for node in graph.nodes.values())
    begun = {str(node.config.begins_as) for node in graph.nodes.values()}
    # Its classifier guesses. The student is whoever goes on from it, by labels alone or not.
    halves = {
        name for name, node in graph.nodes.items() if name in begun and not node.config.trains_classifier
    }
    roles: dict[str, str] = {}
    for name, node in graph.nodes.items():
        role = node.config.role(teaches=name in teaching, has_student=has_student)
        if name in halves and role == "student":
            role = "assistant"
        elif str(node.config.begins_as) in halves and role == "baseline":
            role = "student"
        roles[name] = roles[other] if (other := node.config.stands_for) is not None else role
    return roles


def plan_text(plan: Plan) -> str:
    """The plan with all defaults, as YAML that `distill run` takes."""
    return str(yaml.dump(plan_values(plan), Dumper=FastDumper, sort_keys=False, width=100))


def read_data_sizes(root: Path, task: Mapping[str, Any], test: str) -> dict[str, int]:
    """Samples per split of a task with this identity and test split, as a stage noted them; empty before any stage
    loaded the data."""
    path = _data_sizes_file(root, task, test)
    try:
        if not path.exists():
            bring(path)
        return SIZES.validate_python(read_json(path))
    except (StoreError, ValidationError):
        return {}


def write_data_sizes(root: Path, task: Mapping[str, Any], test: str, sizes: Mapping[str, int]) -> None:
    """Note the samples per split of a task for all plans."""
    path = _data_sizes_file(root, task, test)
    if read_data_sizes(root, task, test) != sizes:
        make_folder(path.parent)
        write_json(path, dict(sizes))
        send(path)


def _data_sizes_file(root: Path, task: Mapping[str, Any], test: str) -> Path:
    name = re.sub(r"[^\w.-]", "-", task["name"])  # of the user's own: `package.module:Class`
    return root / "tasks" / f"{name}-{fingerprint({**task, 'test': test})}.json"


def copy_report(source: Path, target: Path) -> None:
    """Reuse the report of a run that shows the same; the page comes last, when all of it is there."""
    if (source / PLOTS).is_dir():
        shutil.copytree(source / PLOTS, target / PLOTS, copy_function=_link_or_copy, dirs_exist_ok=True)
    for name in (SURVEY, REPORT):
        if (source / name).exists():
            _link_or_copy(str(source / name), str(target / name))


def _link_or_copy(source: str, target: str) -> None:
    """A link where that is allowed: not to another user's file, nor on every file system."""
    try:
        os.link(source, target)
    except OSError:
        with replaced_file(Path(target)) as temporary:
            shutil.copyfile(source, temporary)
