"""What a plan run left on disk, read as plain JSON: the graph, the results so far, the folders of its stages."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydistill.errors import DistillError

RAN = frozenset({"running", "done", "failed", "stopped"})
SUCCEEDED = frozenset({"done", "cached"})


@dataclass(frozen=True)
class TrackedNode:
    """One node of `graph.json`, with the state it has in `results.json` and the files of its stage."""

    name: str
    stage: str
    kind: str
    role: str
    fingerprint: str
    reads: tuple[str, ...]
    folder: Path
    status: str
    error: str | None
    metrics: Mapping[str, float]
    parameters: int | None

    @property
    def record(self) -> dict[str, Any]:
        """The stage's record; empty before the stage ended, or when it was asked to stop."""
        return read_json(self.folder / "record.json")

    @property
    def identity(self) -> dict[str, Any]:
        """What the stage is, as in its `config.json`; empty before it started."""
        return read_json(self.folder / "config.json")


@dataclass(frozen=True)
class TrackedRun:
    """A plan run: `graph.json`, `results.json` and what the plan says about tracking."""

    folder: Path
    plan: str
    run_id: str
    status: str
    results: Mapping[str, Any]
    nodes: tuple[TrackedNode, ...]
    experiment: str
    register_student_as: str | None

    @property
    def key(self) -> str:
        """What names this plan run in the whole tracking store."""
        return f"{self.plan}/{self.run_id}"

    @property
    def tags(self) -> dict[str, str]:
        """Of its MLflow run and of those of its stages."""
        return {"plan": self.plan, "plan_run": self.run_id}

    @property
    def students(self) -> list[TrackedNode]:
        """The finished students."""
        return [node for node in self.nodes if node.role == "student" and node.status in SUCCEEDED]

    @property
    def started(self) -> float:
        """Unix time in seconds: the graph is written once, when the run begins."""
        return (self.folder / "graph.json").stat().st_mtime

    @property
    def ended(self) -> float:
        """Unix time in seconds of the last word on the results."""
        path = self.folder / "results.json"
        return path.stat().st_mtime if path.exists() else self.started


def read_run(folder: Path, root: Path) -> TrackedRun:
    """Read a plan run's folder. `FileNotFoundError` or `ValueError` when it has no readable graph."""
    graph = json.loads((folder / "graph.json").read_text(encoding="utf-8"))
    results = read_json(folder / "results.json")
    entries = results.get("stages", {})
    written = _tracking(folder / "plan.yaml")
    tracking = written if isinstance(written, dict) else {}
    return TrackedRun(
        folder=folder,
        plan=graph["plan"],
        run_id=graph["run_id"],
        status=results.get("status", "running"),
        results=results,
        nodes=tuple(_node(values, entries.get(values["name"], {}), root) for values in graph["nodes"]),
        experiment=tracking.get("experiment") or graph["plan"],
        register_student_as=tracking.get("register_student_as"),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of our own that appears whole or not at all; empty when it is not there or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _below(root: Path, folder: str) -> Path:
    """A stage's folder as the graph names it: what lies there is sent away."""
    path = root / folder
    if not path.resolve().is_relative_to(root.resolve()):
        raise DistillError(f"`{folder}` in `graph.json` lies outside the storage root")
    return path


def _node(values: Mapping[str, Any], entry: Mapping[str, Any], root: Path) -> TrackedNode:
    return TrackedNode(
        name=values["name"],
        stage=values["stage"],
        kind=values["kind"],
        role=values.get("role", ""),
        fingerprint=values["fingerprint"],
        reads=tuple(values["reads"]),
        folder=_below(root, values["folder"]),
        status=entry.get("status", "waiting"),
        error=entry.get("error"),
        metrics=entry.get("metrics", {}),
        parameters=entry.get("parameters"),
    )


def is_untracked(folder: Path) -> bool:
    """Whether the plan of a run or a search keeps it out of MLflow."""
    return _tracking(folder / "plan.yaml") == "none"


def _tracking(plan: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(plan.read_text(encoding="utf-8")).get("tracking")
    except (OSError, yaml.YAMLError, AttributeError):
        return None
