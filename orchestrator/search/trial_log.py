"""Keeps the records of a search while its trials run: whoever runs them says what happened, one thread at a time."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from raydistill.errors import PlanError
from raydistill.kinds.searches import PopulationConfig
from raydistill.runs.mirror import storage_name
from raydistill.runs.search_run import SearchRun, TrialRecord, best_first, now, trial_id
from raydistill.search.population import Population
from raydistill.search.problem import SearchProblem
from raydistill.search.progress import SearchProgress
from raydistill.search.suggestions import Suggestion, Suggestions, TrialSource
from raydistill.search.trial import TrialRequest, TrialResult


def belongs(record: TrialRecord, problem: SearchProblem) -> bool:
    """Whether a record is of values that the search can have tried; any other is damaged, and no record."""
    config = problem.config
    is_counted = config.cost not in (None, "latency")
    if is_counted and record.status == "done" and record.cost is None:
        return False
    is_segment = record.segment is not None
    if is_segment != isinstance(config.scheduler, PopulationConfig) or not record.is_in(config.space):
        return False
    return is_segment or record.id == trial_id(record.values)


class TrialLog:
    """Every change of a trial is on disk before anything else happens."""

    def __init__(self, problem: SearchProblem, run: SearchRun, progress: SearchProgress) -> None:
        self.problem, self._run, self._progress = problem, run, progress
        self.records = {record.id: record for record in run.trials() if belongs(record, problem)}
        self._source = source_of(problem, self.records.values())
        progress.best = self.best

    @property
    def left(self) -> int:
        """How many trials are still to begin."""
        return self._source.left

    @property
    def is_waiting(self) -> bool:
        """Whether there may be another trial once one that runs is over, though there is none now."""
        return self._source.is_waiting

    @property
    def best(self) -> TrialRecord | None:
        """The best finished trial so far."""
        done = [record for record in self.records.values() if record.status == "done"]
        return best_first(done, self.problem.metric.mode)[0] if done else None

    def next(self) -> tuple[Suggestion, TrialRequest] | None:
        """The next trial that can be run. Values that do not go together are a trial that failed."""
        while (suggestion := self._source.next()) is not None:
            try:
                plan, stages = self.problem.trial_of(self.problem.written_values(suggestion))
            except PlanError as error:
                self.begin(suggestion)
                self.end(suggestion.id, TrialResult("failed", error=error.message))
                continue
            metric = self.problem.metric
            root = storage_name(self._run.root)
            return suggestion, TrialRequest(plan, stages, metric.stage, metric.name, root, metric.cost)
        return None

    def begin(self, suggestion: Suggestion, stages: Mapping[str, str] | None = None) -> None:
        """A trial starts, perhaps again. `stages` are the folders of its own nodes."""
        known = self.records.get(suggestion.id)
        record = TrialRecord(
            id=suggestion.id,
            number=suggestion.number,
            values=suggestion.values,
            segment=suggestion.segment,
            epochs=known.epochs if known is not None else {},
            started=known.started if known is not None else now(),
            stages=dict(stages or {}),
        )
        self._keep(record)
        self._progress.began(record)

    def note_epoch(self, name: str, epoch: int, value: float) -> None:
        """A trial has reached the end of an epoch."""
        self.note_epochs(name, {epoch: value})

    def note_epochs(self, name: str, values: Mapping[int, float]) -> None:
        """A trial has reached the end of these epochs."""
        record = self.records[name]
        if new := {epoch: value for epoch, value in values.items() if math.isfinite(value)}:
            last = max(new)
            self._change(record, epochs={**record.epochs, **new}, metric=new[last])
            self._progress.reached(self.records[name], last)

    def end(self, name: str, result: TrialResult) -> None:
        """A trial has ended by itself."""
        record = self.records[name]
        changes = {**result.__dict__, "epochs": _own_epochs(record, result.epochs)}
        if result.status != "done":
            changes = {key: value for key, value in changes.items() if value or key == "error"}
        self._end(record, **changes)

    def note_cost(self, name: str, cost: float | None) -> None:
        """What the model of a finished trial was found to cost."""
        self._change(self.records[name], cost=cost)
        self._progress.best = self.best

    def stop_early(self, name: str) -> None:
        """The scheduler has given a trial up."""
        record = self.records[name]
        self._end(record, status="stopped_early", seconds=round(now() - record.started, 3))

    def interrupt(self, name: str) -> None:
        """A trial goes on next time."""
        self._end(self.records[name], status="interrupted")

    def _end(self, record: TrialRecord, **changes: Any) -> None:
        changed = self._change(record, finished=now(), **changes)
        if changed.is_over:
            self._source.tell(changed)
        self._progress.best = self.best
        self._progress.ended(changed)

    def _change(self, record: TrialRecord, **changes: Any) -> TrialRecord:
        changed = record.model_copy(update=changes)
        self._keep(changed)
        return changed

    def _keep(self, record: TrialRecord) -> None:
        self._run.write_trial(record)
        self.records[record.id] = record


def source_of(problem: SearchProblem, records: Iterable[TrialRecord]) -> TrialSource:
    """Where the trials of a search come from, given those that it had."""
    config, mode = problem.config, problem.metric.mode
    if isinstance(config.scheduler, PopulationConfig):
        return Population(config.scheduler, config.space, problem.trained.epochs, records, mode)
    return Suggestions(config, records, mode)


def _own_epochs(record: TrialRecord, epochs: Mapping[int, float]) -> dict[int, float]:
    """Without those that other segments trained."""
    start = 0 if record.segment is None else record.segment.start
    return {epoch: value for epoch, value in epochs.items() if epoch > start}
