"""Two runs, or two stages, side by side: what differs in what was asked for, and in what came of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raydistill.errors import PlanError
from raydistill.plan.fingerprint import DATA_CHANGED, differences
from raydistill.plan.written import MAX_STORED, yaml_values
from raydistill.runs.flat import flatten, with_names
from raydistill.runs.run_files import PLAN, StageEntry
from raydistill.runs.view import RunView, StageView

NOT_ASKED = (
    "name",
    "tracking",
    "search",
)  # of a plan: how it is shown, and what other plans are made from it


@dataclass(frozen=True)
class OptionDifference:
    """An option by its path in the plan, with its values as JSON; None where one side has none."""

    option: str
    left: str | None
    right: str | None


@dataclass(frozen=True)
class ResultDifference:
    """A value that a stage reached, or None; `stage` is empty for the whole run. Deviations are those of replicas."""

    stage: str
    metric: str
    left: float | None
    right: float | None
    left_deviation: float | None = None
    right_deviation: float | None = None

    @property
    def change(self) -> float | None:
        """From left to right."""
        return None if self.left is None or self.right is None else self.right - self.left


@dataclass(frozen=True)
class Contrast:
    """What differs between two sides; `others` are lines about what no option says: data, code, how stages ended."""

    left: str
    right: str
    options: tuple[OptionDifference, ...]
    others: tuple[str, ...]
    results: tuple[ResultDifference, ...]


def contrast(left: RunView | StageView, right: RunView | StageView) -> Contrast:
    """Two runs, of one plan or of two, or two stages. Stages of the same name are compared, those with replicas in sum.

    `PlanError` for a run and a stage.
    """
    if isinstance(left, RunView) and isinstance(right, RunView):
        return Contrast(
            left.key,
            right.key,
            tuple(_options(_asked(left), _asked(right))),
            tuple(dict.fromkeys(_others_of_runs(left, right))),
            tuple(_results_of_runs(left, right)),
        )
    if not (isinstance(left, StageView) and isinstance(right, StageView)):
        raise PlanError("a run and a stage cannot be compared: name two runs, or two stages")
    sides = [_entry(stage) for stage in (left, right)]
    return Contrast(
        left.name,
        right.name,
        tuple(_options(flatten(left.config), flatten(right.config))),
        (*_beyond_options(left.identity, right.identity), *_statuses("", *sides)),
        tuple(_results("", *sides)),
    )


def _asked(run: RunView) -> dict[str, str]:
    """The options of a run's plan, with all defaults."""
    try:
        values = yaml_values(run.plan_text, PLAN, MAX_STORED)
    except PlanError:
        values = None
    if not isinstance(values, dict):
        return {}
    return flatten({key: value for key, value in values.items() if key not in NOT_ASKED})


def _options(left: Mapping[str, str], right: Mapping[str, str]) -> Iterator[OptionDifference]:
    for path in dict.fromkeys([*left, *right]):
        if left.get(path) != right.get(path):
            yield OptionDifference(path, left.get(path), right.get(path))


def _others_of_runs(left: RunView, right: RunView) -> Iterator[str]:
    own, others = set(_groups(left)), set(_groups(right))
    for group in _groups(left, right):
        if group not in own & others:
            yield f"only {(left if group in own else right).key} has `{group}`"
    # Inputs are called by their names: what differs in them is told of them.
    names, other_names = (
        {stage.fingerprint: stage.name for stage in run.stages.values()} for run in (left, right)
    )
    for name, stage in left.stages.items():
        other = right.stages.get(name)
        if other and stage.fingerprint != other.fingerprint and stage.identity and other.identity:
            sides = with_names(stage.identity, names), with_names(other.identity, other_names)
            for line in _beyond_options(*sides):
                yield line if line == DATA_CHANGED else f"`{name}`: {line}"
    for group in _groups(left, right):
        sums = left.results.stages.get(group), right.results.stages.get(group)
        yield from _statuses(f"`{group}`: ", *sums)
    versions = left.results.versions, right.results.versions
    for name in dict.fromkeys([*versions[0], *versions[1]]):
        before, after = (side.get(name, "none") for side in versions)
        if before != after:
            yield f"{name} {before} → {after}"


def _beyond_options(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[str]:
    """What differs in what two stages are, besides options: data, files, code."""
    for line in differences(left, right):
        if line.startswith("version: "):
            yield f"the code of the stage, {line}"
        elif line.endswith("the file changed") or not line.startswith(("config", "task.")):
            yield line


def _statuses(about: str, left: StageEntry | None, right: StageEntry | None) -> Iterator[str]:
    if left is None or right is None:
        return
    before, after = ("done" if entry.status == "cached" else entry.status for entry in (left, right))
    if before != after:
        yield f"{about}{before} → {after}"


def _results_of_runs(left: RunView, right: RunView) -> Iterator[ResultDifference]:
    for group in _groups(left, right):
        yield from _results(group, left.results.stages.get(group), right.results.stages.get(group))


def _groups(*runs: RunView) -> list[str]:
    """The stages of the runs' plans, and those that their graphs inserted."""
    return list(dict.fromkeys(stage.group for run in runs for stage in run.stages.values()))


def _results(stage: str, left: StageEntry | None, right: StageEntry | None) -> Iterator[ResultDifference]:
    left, right = left or StageEntry(), right or StageEntry()
    if left.parameters != right.parameters:
        yield ResultDifference(stage, "parameters", left.parameters, right.parameters)
    for metric in dict.fromkeys([*left.metrics, *right.metrics]):
        values = left.metrics.get(metric), right.metrics.get(metric)
        if str(values[0]) != str(values[1]):  # NaN is not unlike NaN here
            yield ResultDifference(stage, metric, *values, left.std.get(metric), right.std.get(metric))


def _entry(stage: StageView) -> StageEntry:
    """A stage that was opened by itself, as a run's results would tell of it."""
    if stage.record is None:
        return stage.entry
    known = {
        "parameters": stage.record.parameters,
        "metrics": stage.record.metrics,
        "seconds": stage.record.seconds,
    }
    return stage.entry.model_copy(update=known)
