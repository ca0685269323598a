"""Plan runs and searches small enough to know every number, left on disk by the product's own writers."""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

from raydistill.plan.stage import StageConfig
from raydistill.runs.files import json_line, make_folder, write_json
from raydistill.runs.folder import CONFIG, METRICS, StageFolder
from raydistill.runs.plan_run import NodeState, replicas_entry, stage_entry
from raydistill.runs.record import Record
from raydistill.runs.run_files import GRAPH, PLAN, RESULTS, SURVEY, GraphFile, GraphNode, Status
from raydistill.runs.search_formatting import short_names
from raydistill.runs.search_run import SearchRun, TrialRecord, trial_id
from raydistill.runs.view import open_stage

START = 1_795_000_000.0
PREDICTIONS = "predictions-test.safetensors"
WITH_RECORD = ("done", "cached", "failed")


def fingerprint_of(name: str) -> str:
    """The same for a stage of the same name, in whatever run."""
    return hashlib.sha256(name.encode()).hexdigest()[:12]


class BuiltRun:
    """A plan run below `root` that grows stage by stage; `write` finishes it, and may be called again."""

    def __init__(
        self,
        root: Path,
        task: Mapping[str, Any] | None = None,
        *,
        plan: str = "fake",
        run_id: str = "20261121-041500-ab12",
        tracking: Any = None,
    ) -> None:
        self.root, self.plan = root, plan
        self.folder = root / "plans" / plan / run_id
        self.task = dict(task or {"name": "mnist"})
        self.tracking = tracking
        self.nodes: list[GraphNode] = []
        self.states: dict[str, NodeState] = {}

    def stage(
        self,
        name: str,
        kind: str = "train",
        *,
        role: str = "teacher",
        reads: Sequence[str] = (),
        status: Status = "done",
        inserted: bool = False,
        config: Mapping[str, Any] | None = None,
        error: str | None = None,
        is_recorded: bool = True,
        **result: Any,
    ) -> StageFolder:
        """Add a stage; `result` goes to `finish_stage` when it ended and `is_recorded` now, not by another run."""
        stage, _, replica = name.rpartition(".")
        is_replica = replica.isdigit()
        folder = begin_stage(self.root, name, kind, self.task, config)
        self.nodes.append(
            GraphNode(
                name=name,
                stage=stage if is_replica else name,
                kind=kind,
                makes=StageConfig.choices()[kind].makes,
                role=role,
                reads=tuple(reads),
                folder=f"stages/{folder.path.name}",
                fingerprint=fingerprint_of(name),
                inserted=inserted,
                adjusted=kind == "adjust_class_bias",
                replica=int(replica) if is_replica else None,
            )
        )
        self.states[name] = NodeState(status, 1.5, error)
        if status in WITH_RECORD and is_recorded:
            finish_stage(folder, error=error if status == "failed" else None, **result)
        return folder

    def stage_folder(self, name: str) -> StageFolder:
        """The folder of a stage that was added."""
        return StageFolder(self.root / next(node.folder for node in self.nodes if node.name == name))

    def write(self, status: str = "done", **more: Any) -> Path:
        """Write the run's own files; returns its folder."""
        make_folder(self.folder)
        self.write_graph()
        results = {
            "plan": self.plan,
            "run_id": self.folder.name,
            "status": status,
            "seconds": 61.2,
            "storage": str(self.root),
            "command": None,
            "versions": {"torch": "2.15.0"},
            "task": {"name": self.task["name"], "num_classes": 10, "train": 3600, "test": 1000},
            "survey": [],
            "stages": self._entries(),
            "mlflow": {},
            **more,
        }
        write_json(self.folder / RESULTS, results)
        values = {"name": self.plan, **({} if self.tracking is None else {"tracking": self.tracking})}
        (self.folder / PLAN).write_text(yaml.safe_dump(values))
        return self.folder

    def write_graph(self) -> None:
        """Write `graph.json`, as a run that begins."""
        make_folder(self.folder)
        graph = GraphFile(plan=self.plan, run_id=self.folder.name, test="", nodes=tuple(self.nodes))
        write_json(self.folder / GRAPH, graph.model_dump(mode="json"))

    def write_survey(self, counts: Mapping[str, Sequence[int]], *remarks: Mapping[str, Any]) -> None:
        """Write what was found before the first stage."""
        make_folder(self.folder)
        write_json(self.folder / SURVEY, {"counts": counts, "remarks": list(remarks)})

    def _entries(self) -> dict[str, Any]:
        entries, members = {}, dict[str, list[dict[str, Any]]]()
        for node in self.nodes:
            state = self.states[node.name]
            record = self._record(node) if state.status in ("done", "cached") else None
            entries[node.name] = stage_entry(node, state, record)
            if node.replica is not None:
                members.setdefault(node.stage, []).append(entries[node.name])
        return entries | {stage: replicas_entry(found) for stage, found in members.items()}

    def _record(self, node: GraphNode) -> Record | None:
        try:
            return StageFolder(self.root / node.folder).record()
        except Exception:  # a test damaged it
            return None


def begin_stage(
    root: Path,
    name: str,
    kind: str = "train",
    task: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> StageFolder:
    """The folder of a stage that has begun, with what it is; one that an earlier run began stays as it is."""
    folder = StageFolder(root / "stages" / f"{kind}-{fingerprint_of(name)}")
    if not (folder.path / CONFIG).exists():
        identity = {"kind": kind, "version": 1, "task": dict(task or {"name": "mnist"})}
        folder.create({**identity, "config": dict(config or {})})
    return folder


def finish_stage(
    folder: StageFolder,
    *,
    error: str | None = None,
    traceback: str | None = None,
    errors: int | None = None,
    samples: int = 1000,
    parameters: int | None = None,
    logits: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    ids: np.ndarray | None = None,
    accuracies: Sequence[float] = (),
    class_names: Sequence[str] = (),
    metrics: Mapping[str, float] | None = None,
    costs: Mapping[str, float] | None = None,
    files: Mapping[str, str | Mapping[str, np.ndarray]] | None = None,
    payload: Sequence[str] = (),
    lines: Sequence[Mapping[str, float]] = (),
    warnings: Sequence[str] = (),
    seconds: float = 12.0,
    finished: float = START,
    reserved: Mapping[str, float] | None = None,
) -> None:
    """Record, curves, predictions and other `files` (text or tensors) of a stage that ended; with an `error` it failed.

    `payload` are files that lie there already.
    """
    written = [*payload]
    if logits is not None and labels is not None:
        samples, errors = len(labels), int((logits.argmax(axis=1) != labels).sum())
        task = {"name": "mnist", **_task_of(folder)}
        names = [str(name) for name in class_names or range(logits.shape[1])]
        write_json(folder.path / "model.json", {"class_names": names, "task": task})
        tensors = {"ids": np.arange(samples) if ids is None else ids, "labels": labels}
        whole = {name: tensor.astype(np.int64) for name, tensor in tensors.items()}
        save_file({**whole, "logits": logits.astype(np.float16)}, folder.path / PREDICTIONS)
        written += [PREDICTIONS, "model.json"]
    for name, content in (files or {}).items():
        if isinstance(content, str):
            (folder.path / name).write_text(content)
        else:
            save_file(dict(content), folder.path / name)
        written.append(name)
    measured = dict(metrics or {})
    if errors is not None:
        judged = {"test/errors": errors, "test/samples": samples, "test/accuracy": 1 - errors / samples}
        measured = judged | {"test/ece": 0.031, "validation/accuracy": 0.91} | measured
    lines = lines or [
        {"step": 10 * epoch, "epoch": epoch, "train/loss": 2.0 / epoch, "validation/accuracy": accuracy}
        for epoch, accuracy in enumerate(accuracies, start=1)
    ]
    if lines or not (folder.path / METRICS).exists():
        (folder.path / METRICS).write_text("".join(json_line(line) + "\n" for line in lines))
    kind, _, fingerprint = folder.path.name.rpartition("-")
    folder.write_record(
        Record(
            kind=kind,
            fingerprint=fingerprint,
            status="failed" if error else "done",
            seconds=seconds,
            finished=finished,
            reserved=dict(reserved or {}),
            metrics=measured,
            parameters=parameters,
            costs=dict(costs or {}),
            payload=folder.checksums(written),
            warnings=tuple(warnings),
            git_commit="c0ffee",
            error=error,
            traceback=traceback,
        )
    )


def _task_of(folder: StageFolder) -> dict[str, Any]:
    return dict(open_stage(folder.path).identity["task"])


def made_up_predictions(labels: np.ndarray, classes: int, errors: int, seed: int = 0) -> dict[str, Any]:
    """What a model with so many errors says: it takes the first samples for the next class."""
    answers = labels.copy()
    answers[:errors] = (answers[:errors] + 1) % classes
    logits = np.random.default_rng(seed).uniform(0, 1, size=(len(labels), classes))
    logits[np.arange(len(labels)), answers] += 2
    return {"logits": logits, "labels": labels}


class BuiltSearch:
    """A search's folder that grows trial by trial; `about` is what `search.json` says, and `write` changes it."""

    def __init__(self, root: Path, space: Mapping[str, Any], *, plan: str = "fake", **more: Any) -> None:
        self.run = SearchRun(root, plan, "0123456789ab")
        self.run.begin()
        self.about: dict[str, Any] = {
            "plan": plan,
            "fingerprint": "0123456789ab",
            "command": f"distill tune {plan}.yaml",
            "storage": str(root),
            "metric": "student.validation/accuracy",
            "mode": "max",
            "replicas": 1,
            "experiment": plan,
            "names": short_names(list(space)),
            "own": {},
            "space": dict(space),
            "searcher": {"name": "tpe", "seed": 0},
            "scheduler": {"name": "asha"},
            "samples": 8,
            "status": "done",
            "started": START,
            "seconds": 61.0,
            "plan_runs": [],
            "best": None,
        }
        self.write(**more)

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.run.folder

    def write(self, status: str | None = None, **more: Any) -> Path:
        """Change what `search.json` says; returns the folder."""
        self.about |= more | ({} if status is None else {"status": status})
        self.run.write(self.about)
        return self.folder

    def trial(
        self, values: Mapping[str, Any], metric: float | None, status: Any = "done", **more: Any
    ) -> TrialRecord:
        """Write a trial; its curve rises to the metric unless `epochs` are given."""
        number = more.pop("number", 0) or len(self.run.trials()) + 1
        epochs = {} if metric is None else {1: metric - 0.2, 2: metric - 0.1, 3: metric}
        told = {
            "id": trial_id(values),
            "number": number,
            "epochs": epochs,
            "metrics": {"validation/samples": 400.0},
            "seconds": 2.0,
            **more,
        }
        record = TrialRecord(values=dict(values), status=status, metric=metric, **told)
        self.run.write_trial(record)
        return record


def age(path: Path, days: float) -> None:
    """Make a file or all of a folder look so many days older."""
    then = time.time() - 86400 * days
    for found in [path, *path.rglob("*")]:
        os.utime(found, (then, then), follow_symlinks=False)
