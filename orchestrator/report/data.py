"""What a plan run left on disk, read once: its graph, its results, and for every stage record, config and curves."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from raydistill.errors import StoreError
from raydistill.kinds.stages import STAGES
from raydistill.runs.files import read_json
from raydistill.runs.folder import CONFIG, METRICS, StageFolder
from raydistill.runs.plan_run import SURVEY
from raydistill.runs.record import Record

SUCCEEDED = frozenset({"done", "cached"})
ADJUST = "adjust_class_bias"
Made = TypeVar("Made")
MODEL_KINDS = frozenset(name for name, kind in STAGES.items() if kind.makes == "model")


class Curve(NamedTuple):
    """One metric of one stage over its epochs."""

    epochs: list[float]
    values: list[float]


@dataclass(frozen=True)
class StageResult:
    """One node of the graph and how it ended. `record` is None when the stage left none that can be read."""

    name: str
    group: str
    kind: str
    role: str
    reads: tuple[str, ...]
    inserted: bool
    fingerprint: str
    folder: StageFolder
    status: str
    seconds: float
    record: Record | None = None
    error: str | None = None

    @property
    def has_result(self) -> bool:
        """Whether what the stage made can be read."""
        return self.status in SUCCEEDED and self.record is not None and self.record.status == "done"

    @property
    def makes_model(self) -> bool:
        """Whether the stage makes a model of its own; a specialist answers only as part of a committee."""
        return self.kind in MODEL_KINDS

    @property
    def is_adjusted(self) -> bool:
        """Whether the model is another one with the logits of some classes shifted."""
        return self.kind == ADJUST

    @property
    def parameters(self) -> int | None:
        """Size of the model, or of all models of an ensemble or a committee."""
        return self.record.parameters if self.record and self.has_result else None

    def metric(self, name: str) -> float | None:
        """A metric of the record."""
        return self.record.metrics.get(name) if self.record and self.has_result else None

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The stage's config as its folder keeps it; empty when there is none."""
        try:
            return dict(read_json(self.folder.path / CONFIG).get("config", {}))
        except (StoreError, AttributeError):
            return {}

    @cached_property
    def progress(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, without those that a crash tore."""
        try:
            text = (self.folder.path / METRICS).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        return list(_lines(text))

    def curve(self, name: str) -> Curve:
        """A metric by epoch, or by step where no epoch was written. Values that are not finite are left out."""
        points = [
            (float(line.get("epoch", line["step"])), float(line[name]))
            for line in self.progress
            if isinstance(line.get(name), int | float) and math.isfinite(line[name])
        ]
        return Curve([epoch for epoch, _ in points], [value for _, value in points])


@dataclass(frozen=True)
class Run:
    """A plan run as it is on disk now."""

    plan: str
    run_id: str
    status: str
    seconds: float
    command: str | None
    versions: Mapping[str, str]
    task: Mapping[str, Any]
    mlflow: Mapping[str, Any]
    plan_text: str
    folder: Path
    root: Path
    stages: Mapping[str, StageResult] = field(default_factory=dict)
    remarks: Sequence[Mapping[str, Any]] = ()
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def in_role(self, *roles: str) -> list[StageResult]:
        """Stages that play one of these roles, in the order of the graph."""
        return [stage for stage in self.stages.values() if stage.role in roles]

    def readers(self, name: str) -> list[StageResult]:
        """Stages that read this one."""
        return [stage for stage in self.stages.values() if name in stage.reads]

    def ancestors(self, name: str) -> list[StageResult]:
        """Everything that a stage was made from, in the order of the graph."""
        found, wanted = set[str](), list(self.stages[name].reads)
        while wanted:
            if (read := wanted.pop()) not in found:
                found.add(read)
                wanted.extend(self.stages[read].reads)
        return [stage for stage in self.stages.values() if stage.name in found]

    def blamed(self, name: str) -> list[StageResult]:
        """The failed stages because of which a stage was skipped."""
        return [stage for stage in self.ancestors(name) if stage.status == "failed"]


def read_in_role(run: Run, role: str, read: Callable[[StageResult], Made]) -> tuple[list[Made], list[str]]:
    """What `read` finds in the finished stages of a role, and why others cannot be read."""
    found, problems = [], []
    for stage in run.in_role(role):
        if not stage.has_result:
            continue
        try:
            found.append(read(stage))
        except StoreError as error:
            problems.append(error.message)
    return found, problems


def read_run(folder: Path, root: Path) -> Run:
    """Read a plan run. `StoreError` names the graph or the results when they are missing or damaged."""
    graph, results = read_json(folder / "graph.json"), read_json(folder / "results.json")
    try:
        nodes = {node["name"]: node for node in graph["nodes"]}
        names = [name for name in graph.get("order", nodes) if name in nodes]
        entries = results.get("stages", {})
        stages = {name: _read_stage(nodes[name], entries.get(name, {}), root) for name in names}
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"`{folder / 'graph.json'}` is damaged: {error!r}") from error
    for stage in stages.values():
        if unknown := set(stage.reads) - stages.keys():
            raise StoreError(f"`{folder / 'graph.json'}` is damaged: `{stage.name}` reads {sorted(unknown)}")
    return Run(
        plan=str(results.get("plan", folder.parent.name)),
        run_id=str(results.get("run_id", folder.name)),
        status=str(results.get("status", "unknown")),
        seconds=float(results.get("seconds") or 0.0),
        command=results.get("command"),
        versions=results.get("versions") or {},
        task=results.get("task") or {},
        mlflow=results.get("mlflow") or {},
        plan_text=_read_text(folder / "plan.yaml"),
        folder=folder,
        root=root,
        stages=stages,
        **_read_survey(folder),
    )


def _read_survey(folder: Path) -> dict[str, Any]:
    """What was found before the first stage: remarks, and split → samples per class; nothing where all was cached."""
    try:
        survey = read_json(folder / SURVEY)
        return {"remarks": survey["remarks"], "counts": survey["counts"]}
    except (StoreError, KeyError, TypeError):
        return {}


def _read_stage(node: Mapping[str, Any], entry: Mapping[str, Any], root: Path) -> StageResult:
    folder = StageFolder(_below(root, node["folder"]))
    status = str(entry.get("status", "waiting"))
    record, problem = _read_record(folder) if status in SUCCEEDED | {"failed"} else (None, None)
    seconds = float(entry.get("seconds") or 0.0)
    return StageResult(
        name=node["name"],
        group=node["stage"],
        kind=node["kind"],
        role=node.get("role") or "",
        reads=tuple(node["reads"]),
        inserted=bool(node.get("inserted")),
        fingerprint=node["fingerprint"],
        folder=folder,
        status=status,
        seconds=record.seconds if record and status in SUCCEEDED else seconds,
        record=record,
        error=entry.get("error") or (record.error if record else None) or problem,
    )


def _read_record(folder: StageFolder) -> tuple[Record | None, str | None]:
    """The record, or what is wrong with it."""
    try:
        record = folder.record()
    except StoreError as error:
        return None, error.message
    return record, None if record else f"`{folder.path}` holds no record"


def _below(root: Path, folder: str) -> Path:
    path = root / folder
    if not path.resolve().is_relative_to(root.resolve()):
        raise StoreError(f"`{folder}` in `graph.json` lies outside the storage root")
    return path


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int | float):
            yield values
