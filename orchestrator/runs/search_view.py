"""The one reader of what a search left on disk; for its trials see `search_run.py`, for plan runs `view.py`."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict

from raydistill.kinds.searches import PopulationConfig
from raydistill.plan.search import Cost, Domain
from raydistill.runs.files import read_as, read_text
from raydistill.runs.mirror import bring_all
from raydistill.runs.run_files import PLAN, FromFile, Seconds
from raydistill.runs.search_run import BEST_PLAN, FRONT, SEARCH, TrialRecord, front_of, read_trials

SEARCHES_FOLDER = "searches"


class Named(FromFile):
    """A searcher or a scheduler, with its options."""

    model_config = ConfigDict(extra="allow")

    name: str


class BestTrial(FromFile):
    """The winner, with its judgement on the test split; `plan_run` is where its plan ran, below the storage root."""

    trial: str
    number: int
    values: dict[str, Any]
    metric: float
    metrics: dict[str, float]
    plan_run: str


class FrontTrial(FromFile):
    """A trial that no other beats in both metric and cost; `plan` is the file of its plan in the search's folder."""

    trial: str
    number: int
    values: dict[str, Any]
    metric: float
    cost: float
    plan: str


class SearchFile(FromFile):
    """`search.json`. The `metric` is that of a stage: `student.validation/accuracy`. `names` are short forms of the
    searched paths, `own` the plan's own values there. `seconds` are those of all sessions, `session_seconds` of the
    last one. `plan_runs` made what all trials share. With a `cost`, `front` is what no other trial beats, the cheapest
    first."""

    plan: str
    fingerprint: str
    command: str
    metric: str
    form: str | None = None
    """How the metric is written, as `Metric.form`; None in older files, whose metric is one of ours."""
    mode: Literal["max", "min"]
    cost: Cost | None = None
    machine: str = ""
    """Where latencies were measured."""
    replicas: int
    experiment: str
    names: dict[str, str]
    own: dict[str, Any]
    space: dict[str, Domain]
    searcher: Named
    scheduler: Named
    samples: int
    status: str
    started: Seconds
    seconds: Seconds
    session_seconds: Seconds = 0.0
    plan_runs: tuple[str, ...]
    best: BestTrial | None
    front: tuple[FrontTrial, ...] = ()


@dataclass(frozen=True)
class SearchView:
    """A search as it is on disk now, below the storage `root`."""

    folder: Path
    root: Path
    about: SearchFile

    @property
    def plan(self) -> str:
        """The name of the plan."""
        return self.about.plan

    @property
    def status(self) -> str:
        """How it ended; `running` before."""
        return self.about.status

    @property
    def key(self) -> str:
        """What names it among all runs and searches: `mnist/search-0123456789ab`."""
        return f"{self.plan}/search-{self.about.fingerprint}"

    @property
    def started(self) -> float:
        """Unix time in seconds."""
        return self.about.started

    @property
    def ended(self) -> float:
        """Unix time in seconds of the last word on it."""
        return (self.folder / SEARCH).stat().st_mtime

    @property
    def metric(self) -> str:
        """What the metric's stage calls it: `validation/accuracy`."""
        return self.about.metric.rpartition(".")[2]

    @property
    def stage(self) -> str:
        """The stage that is judged."""
        return self.about.metric.rpartition(".")[0]

    @property
    def is_population(self) -> bool:
        """Whether trials are segments of a population's members."""
        return self.about.scheduler.name == PopulationConfig.word

    @property
    def best_plan(self) -> Path:
        """The plan of the best trial."""
        return self.folder / BEST_PLAN

    @property
    def plan_text(self) -> str:
        """The plan with all defaults; empty when it is gone."""
        return read_text(self.folder / PLAN)

    @property
    def plan_runs(self) -> list[str]:
        """Where what all trials share ran, and the best plan, below the storage root."""
        return [*self.about.plan_runs, *([self.about.best.plan_run] if self.about.best else [])]

    def table(self) -> list[dict[str, Any]]:
        """A row per trial, for `pandas.DataFrame`: number, how it ended, its values by their paths, its metric; with
        a cost, that too and whether it is `in front`."""
        front = {trial.id for trial in self.front()}
        return [
            {
                "trial": trial.number,
                "status": trial.status,
                **trial.values,
                self.metric: trial.metric,
                **({self.about.cost: trial.cost, "in front": trial.id in front} if self.about.cost else {}),
                "seconds": trial.seconds,
            }
            for trial in self.trials()
        ]

    def front(self) -> list[TrialRecord]:
        """The trials that no other beats in both metric and cost, the cheapest first; none where no cost counts."""
        return front_of(self.trials(), self.about.mode) if self.about.cost else []

    def plan_of(self, trial: str) -> Path:
        """The plan of a trial of the front, by its id."""
        return self.folder / FRONT / f"{trial}.yaml"

    def trials(self, but: Collection[str] = ()) -> list[TrialRecord]:
        """The trials whose records can be read, but for some, by their numbers."""
        return [trial for trial in read_trials(self.folder, but) if trial.is_in(self.about.space)]


def open_search(folder: Path, root: Path) -> SearchView:
    """Look at a search; `StoreError` names its description when it is missing or damaged."""
    return SearchView(folder, root, read_as(SearchFile, folder / SEARCH))


def searches(root: Path, plan_name: str) -> list[Path]:
    """The folders of all searches of a plan, the latest last."""
    bring_all(root / SEARCHES_FOLDER)
    files = (root / SEARCHES_FOLDER).glob(f"{plan_name}-{'[0-9a-f]' * 12}/{SEARCH}")
    return [path.parent for path in sorted(files, key=lambda path: path.stat().st_mtime)]
