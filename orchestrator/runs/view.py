"""The one reader of what a plan run left on disk: its graph, its results, and of every stage record, config and curves.

Reports, tracking, the terminal and commands look through it. Small files are read at once, those of a stage when
somebody asks; a view shows the moment at which it was made. `search_view.py` is the same for a search.
"""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from raydistill.errors import StoreError, did_you_mean
from raydistill.metrics import METRICS as METRIC_TABLE
from raydistill.metrics import Accuracy, Metric
from raydistill.plan.stage import StageConfig
from raydistill.runs.files import parse_json, read_as, read_text
from raydistill.runs.folder import CONFIG, METRICS, RECORD, StageFolder, predictions_of
from raydistill.runs.mirror import bring_all
from raydistill.runs.record import Hours, Record
from raydistill.runs.remote_stage import refresh_stages
from raydistill.runs.run_files import (
    GRAPH,
    PLAN,
    RESULTS,
    SURVEY,
    GraphFile,
    GraphNode,
    IdentityFile,
    ResultsFile,
    StageEntry,
    Status,
    SurveyFile,
)

if TYPE_CHECKING:
    from raydistill.runs.stored_predictions import StoredPredictions

STAGES_FOLDER, PLANS_FOLDER = "stages", "plans"
RUNS_BACK = 20  # an earlier run than the last one may have made, or shown, what that left out
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
    def hours(self) -> Hours:
        """Of CPU and GPU that it took, attempts that were lost included; of a cached stage those that it once took."""
        if self.record is None or self.status == "cached":
            return self.record.hours if self.record else Hours()
        return self.record.hours_of(self.entry.seconds)

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
            return read_identity(self.folder.path)
        except StoreError:
            return {}

    @property
    def config(self) -> Mapping[str, Any]:
        """The stage's options; empty when they cannot be read."""
        return dict(self.identity.get("config", {}))

    @cached_property
    def progress(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, without those that a crash tore."""
        return list(_lines(read_text(self.folder.path / METRICS)))

    def history(self) -> list[dict[str, Any]]:
        """A row per epoch, for `pandas.DataFrame`: `epoch`, `train/loss`, `validation/accuracy` and whatever else was
        written during training; empty for a stage that does not train."""
        return [line for line in self.progress if "epoch" in line]

    def curve(self, name: str) -> Curve:
        """A metric by epoch, or by step where no epoch was written. Values that are not finite are left out."""
        points = [
            (float(line.get("epoch", line["step"])), float(line[name]))
            for line in self.progress
            if isinstance(line.get(name), int | float) and math.isfinite(line[name])
        ]
        return Curve([epoch for epoch, _ in points], [value for _, value in points])

    def predictions(self, split: str = "test") -> "StoredPredictions":
        """What the model that it made or judged says of a split, `test` or `validation`; `StoreError` says why there is
        nothing."""
        from raydistill.runs.stored_predictions import load_predictions

        if not self.has_result:
            raise StoreError(f"`{self.name}` has no result ({self.status})")
        name = predictions_of(split)
        if self.record is None or name not in self.record.payload:
            raise StoreError(f"`{self.name}` stored no predictions on the {split} split")
        return load_predictions(self.folder.payload(name))


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
    def saved_seconds(self) -> float:
        """How long the stages whose results were there already took when they ran, on whatever machines; each once,
        however many names it has."""
        return sum(record.seconds for record in self._saved)

    @property
    def saved_hours(self) -> Hours:
        """The same in hours of CPU and GPU, as far as they were noted."""
        return sum((record.hours for record in self._saved), Hours())

    @property
    def _saved(self) -> list[Record]:
        stages = self.stages.values()
        cached = {stage.folder.path: stage.record for stage in stages if stage.status == "cached"}
        return [record for record in cached.values() if record is not None]

    @property
    def hours(self) -> Hours:
        """Of CPU and GPU that the stages held that ended in this run; those that were interrupted left no record."""
        ran = (stage.hours for stage in self.stages.values() if stage.status in ("done", "failed"))
        return sum(ran, Hours())

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

    @cached_property
    def metrics(self) -> tuple[type[Metric], ...]:
        """What its models were judged by: our metrics, and the user's own as their records describe them."""
        own = {
            own.name: own for stage in self.stages.values() if stage.record for own in stage.record.judged_by
        }
        return (*METRIC_TABLE, *(metric.as_metric() for metric in own.values()))

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
                "cpu_hours": stage.hours.cpus,
                "gpu_hours": stage.hours.gpus,
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
        return max(
            done, key=lambda stage: stage.entry.metrics.get(Accuracy.on("validation"), 0.0), default=None
        )

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
    graph = read_graph(folder)
    if os.path.islink(root / STAGES_FOLDER):  # noqa: PTH114 - as below
        raise StoreError(
            f"`{root / STAGES_FOLDER}` is a link and may lie outside the storage root; move it there"
        )
    has_results = (folder / RESULTS).exists()
    results = read_as(ResultsFile, folder / RESULTS) if has_results else ResultsFile()
    names = {node.name for node in graph.nodes}
    for node in graph.nodes:
        if unknown := set(node.reads) - names:
            raise StoreError(f"`{folder / GRAPH}` is damaged: `{node.name}` reads {sorted(unknown)}")
    folders = [root / node.folder for node in graph.nodes]
    refresh_stages(folder for folder in folders if not (folder / RECORD).exists())
    stages = {node.name: _open_stage(node, results, root, folder) for node in graph.nodes}
    return RunView(folder, root, graph, results, stages)


def read_graph(folder: Path) -> GraphFile:
    """The graph of a plan run alone; `StoreError` names the file when it cannot be read."""
    return read_as(GraphFile, folder / GRAPH)


def runs_of(root: Path, plan_name: str) -> list[Path]:
    """The folders of a plan's last runs that wrote results, the latest first; not of all that there ever were."""
    bring_all(root / PLANS_FOLDER / plan_name, (GRAPH, PLAN, RESULTS))
    files = sorted((root / PLANS_FOLDER / plan_name).glob(f"*/{RESULTS}"), reverse=True)
    return [path.parent for path in files[:RUNS_BACK]]


def open_stage(folder: Path) -> StageView:
    """Look at a stage by its folder, in no run: its name is the folder's, it ended as its record says or was stopped.

    What it makes is known of our own kinds; it is not asked of a user's, whose code this would run.
    """
    found = StageFolder(folder)
    named, _, fingerprint = folder.name.rpartition("-")
    try:
        kind = str(read_identity(folder)["kind"])
    except StoreError:
        kind = named
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
        entry=StageEntry(status=_ended(found)),
    )


def read_identity(folder: Path) -> Mapping[str, Any]:
    """What a stage is: task, config, fingerprints of what it reads. `StoreError` when that cannot be read."""
    return read_as(IdentityFile, folder / CONFIG).model_dump()


def _ended(folder: StageFolder) -> Status:
    try:
        record = folder.record()
    except StoreError:
        return "done"  # there was a result; `error` says what is wrong with it
    return record.status if record else "stopped"


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
    """A stage's folder as the graph names it: what lies there is shown, and sent away.

    Names are compared and the last one is looked at, as resolving two thousand of them takes a tenth of a second.
    """
    path, parts = root / stage_folder, PurePath(stage_folder).parts
    is_stage = len(parts) == 2 and parts[0] == STAGES_FOLDER and parts[1] != ".." and "\0" not in parts[1]
    if not is_stage or os.path.islink(path):  # noqa: PTH114 - 5 × faster
        raise StoreError(f"`{run_folder / GRAPH}` is damaged: `{stage_folder}` lies outside the storage root")
    return path


def _lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            values = parse_json(line)
        except ValueError:
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int | float):
            yield values
