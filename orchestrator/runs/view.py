"""The one reader of what a plan run left on disk: its graph, its results, and of every stage record, config and curves.

Reports, tracking, the terminal and commands look through it. Small files are read at once, those of a stage when
somebody asks; a view shows the moment at which it was made. `search_view.py` is the same for a search.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from raydistill.errors import StoreError, did_you_mean
from raydistill.plan.stage import StageConfig
from raydistill.runs.files import read_as, read_json, read_text
from raydistill.runs.folder import CONFIG, METRICS, RECORD, StageFolder
from raydistill.runs.record import Record
from raydistill.runs.run_files import (
    GRAPH,
    PLAN,
    RESULTS,
    SURVEY,
    GraphFile,
    GraphNode,
    ResultsFile,
    StageEntry,
    Status,
    SurveyFile,
)

WITH_RESULT: frozenset[Status] = frozenset({"done", "cached"})


class Curve(NamedTuple):
    """One metric of one stage over its epochs."""

    epochs: list[float]
    values: list[float]


@dataclass(frozen=True)
class StageView:
    """One node of a run's graph, how it ended, and what lies in its folder.

    Its name is `teacher.0`, that of its `group`, the stage of the plan, `teacher`. The plan does not name an `inserted`
    one. The model of an adjusted one is that of the node it reads, with the logits of some classes shifted.
    """

    name: str
    group: str
    kind: str
    makes: str
    role: str
    reads: tuple[str, ...]
    inserted: bool
    is_adjusted: bool
    fingerprint: str
    folder: StageFolder
    entry: StageEntry

    @property
    def status(self) -> Status:
        """How it ended in this run, or that it goes on."""
        return self.entry.status

    @property
    def seconds(self) -> float:
        """Of its work; of a cached stage those that it once took."""
        is_known = self.record is not None and self.status in WITH_RESULT
        return self.record.seconds if self.record and is_known else self.entry.seconds

    @property
    def error(self) -> str | None:
        """Why there is no result, or why it cannot be read."""
        record, problem = self._record_or_problem
        return self.entry.error or (record.error if record else None) or problem

    @property
    def record(self) -> Record | None:
        """What the stage left when it ended; None when it has not, or nothing that can be read."""
        return self._record_or_problem[0]

    @cached_property
    def _record_or_problem(self) -> tuple[Record | None, str | None]:
        if self.status not in WITH_RESULT | {"failed"}:
            return None, None
        try:
            record = self.folder.record()
        except StoreError as error:
            return None, error.message
        return record, None if record else f"`{self.folder.path}` holds no record"

    @property
    def has_result(self) -> bool:
        """Whether what the stage made can be read."""
        return self.status in WITH_RESULT and self.record is not None and self.record.status == "done"

    @property
    def makes_model(self) -> bool:
        """Whether the stage makes a model of its own; a specialist answers only as part of a committee."""
        return self.makes == "model"

    @property
    def parameters(self) -> int | None:
        """Size of the model, or of all models of an ensemble or a committee."""
        return self.record.parameters if self.record and self.has_result else None

    @property
    def metrics(self) -> Mapping[str, float]:
        """How good what it made is, such as `test/accuracy`; empty where there is no result."""
        return self.record.metrics if self.record and self.has_result else {}

    def metric(self, name: str) -> float | None:
        """A metric of the record."""
        return self.record.metrics.get(name) if self.record and self.has_result else None

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """What the stage is, as its folder keeps it: task, config, fingerprints of what it reads; empty before it
        started, or when that cannot be read."""
        try:
            values = read_json(self.folder.path / CONFIG)
        except StoreError:
            return {}
        return values if isinstance(values, dict) else {}

    @property
    def config(self) -> Mapping[str, Any]:
        """The stage's options; empty when they cannot be read."""
        config = self.identity.get("config")
        return config if isinstance(config, dict) else {}

    @cached_property
    def progress(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, without those that a crash tore."""
        return list(_lines(read_text(self.folder.path / METRICS)))

    def curve(self, name: str) -> Curve:
        """A metric by epoch, or by step where no epoch was written. Values that are not finite are left out."""
        points = [
            (float(line.get("epoch", line["step"])), float(line[name]))
            for line in self.progress
            if isinstance(line.get(name), int | float) and math.isfinite(line[name])
        ]
        return Curve([epoch for epoch, _ in points], [value for _, value in points])


@dataclass(frozen=True)
class RunView:
    """A plan run as it is on disk now, below the storage `root`; its `stages` by name, in the order of the graph."""

    folder: Path
    root: Path
    graph: GraphFile
    results: ResultsFile
    stages: Mapping[str, StageView]

    @property
    def plan(self) -> str:
        """The name of the plan."""
        return self.graph.plan

    @property
    def run_id(self) -> str:
        """The name of the run among those of its plan."""
        return self.graph.run_id

    @property
    def status(self) -> str:
        """How the run ended; `running` before."""
        return self.results.status

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.results.seconds

    @property
    def key(self) -> str:
        """What names it among all runs and searches: `mnist/20261126-120000-1f0c`."""
        return f"{self.plan}/{self.run_id}"

    @property
    def started(self) -> float:
        """Unix time in seconds: the graph is written once, when the run begins."""
        return (self.folder / GRAPH).stat().st_mtime

    @property
    def ended(self) -> float:
        """Unix time in seconds of the last word on the results."""
        path = self.folder / RESULTS
        return path.stat().st_mtime if path.exists() else self.started

    @property
    def plan_text(self) -> str:
        """The plan with all defaults; empty when it is gone."""
        return read_text(self.folder / PLAN)

    @cached_property
    def survey(self) -> SurveyFile:
        """What was found before the first stage; nothing where all was cached."""
        try:
            return read_as(SurveyFile, self.folder / SURVEY)
        except StoreError:
            return SurveyFile()

    def __getitem__(self, name: str) -> StageView:
        """The stage of this name; a replica as `teacher.0`."""
        if name not in self.stages:
            raise KeyError(f"the run has no stage `{name}`{did_you_mean(name, self.stages)}")
        return self.stages[name]

    def table(self) -> list[dict[str, Any]]:
        """A row per stage, for `pandas.DataFrame`: how it ended, what it cost, and its metrics."""
        return [
            {
                "stage": stage.name,
                "kind": stage.kind,
                "role": stage.role,
                "status": stage.status,
                "seconds": stage.seconds,
                "parameters": stage.parameters,
                **stage.metrics,
            }
            for stage in self.stages.values()
        ]

    def in_role(self, *roles: str) -> list[StageView]:
        """Stages that play one of these roles, in the order of the graph."""
        return [stage for stage in self.stages.values() if stage.role in roles]

    def best(self, *roles: str) -> StageView | None:
        """The finished stage that is best on validation, in the first of the `roles` that any stage plays. None: there
        is no such stage, or all failed."""
        found = next(filter(None, (self.in_role(role) for role in roles)), [])
        done = [stage for stage in found if stage.status in WITH_RESULT]
        return max(done, key=lambda stage: stage.entry.metrics.get("validation/accuracy", 0.0), default=None)

    def readers(self, name: str) -> list[StageView]:
        """Stages that read this one."""
        return [stage for stage in self.stages.values() if name in stage.reads]

    def ancestors(self, name: str) -> list[StageView]:
        """Everything that a stage was made from, in the order of the graph."""
        found, wanted = set[str](), list(self.stages[name].reads)
        while wanted:
            if (read := wanted.pop()) not in found:
                found.add(read)
                wanted.extend(self.stages[read].reads)
        return [stage for stage in self.stages.values() if stage.name in found]

    def blamed(self, name: str) -> list[StageView]:
        """The failed stages because of which a stage was skipped."""
        return [stage for stage in self.ancestors(name) if stage.status == "failed"]


def open_run(folder: Path, root: Path) -> RunView:
    """Look at a plan run. `StoreError` names its graph or its results when they cannot be read; a run whose results
    are not there yet has just begun."""
    graph = read_as(GraphFile, folder / GRAPH)
    has_results = (folder / RESULTS).exists()
    results = read_as(ResultsFile, folder / RESULTS) if has_results else ResultsFile()
    names = {node.name for node in graph.nodes}
    for node in graph.nodes:
        if unknown := set(node.reads) - names:
            raise StoreError(f"`{folder / GRAPH}` is damaged: `{node.name}` reads {sorted(unknown)}")
    stages = {node.name: _open_stage(node, results, root, folder) for node in graph.nodes}
    return RunView(folder, root, graph, results, stages)


def open_stage(folder: Path) -> StageView:
    """Look at a stage by its folder, in no run: its name is the folder's, it is done or stopped half-way."""
    found = StageFolder(folder)
    kind, _, fingerprint = folder.name.rpartition("-")
    known = StageConfig.choices().get(kind)
    return StageView(
        name=folder.name,
        group=folder.name,
        kind=kind,
        makes=known.makes if known else "",
        role="",
        reads=(),
        inserted=False,
        is_adjusted=False,
        fingerprint=fingerprint,
        folder=found,
        entry=StageEntry(status="done" if (folder / RECORD).exists() else "stopped"),
    )


def _open_stage(node: GraphNode, results: ResultsFile, root: Path, run_folder: Path) -> StageView:
    return StageView(
        name=node.name,
        group=node.stage,
        kind=node.kind,
        makes=node.makes,
        role=node.role,
        reads=node.reads,
        inserted=node.inserted,
        is_adjusted=node.adjusted,
        fingerprint=node.fingerprint,
        folder=StageFolder(_below(root, node.folder, run_folder)),
        entry=results.stages.get(node.name, StageEntry()),
    )


def _below(root: Path, stage_folder: str, run_folder: Path) -> Path:
    """A stage's folder as the graph names it: what lies there is shown, and sent away."""
    path = root / stage_folder
    try:
        is_below = path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError):  # a name that no file can have
        is_below = False
    if not is_below:
        raise StoreError(f"`{run_folder / GRAPH}` is damaged: `{stage_folder}` lies outside the storage root")
    return path


def _lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int | float):
            yield values
