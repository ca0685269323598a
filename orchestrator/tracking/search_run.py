"""What a search left on disk, read as plain JSON: what is searched, and the records of its trials."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raydistill.tracking.plan_run import read_json

SEARCH = "search.json"
OVER = frozenset({"done", "stopped_early", "failed"})


@dataclass(frozen=True)
class TrackedTrial:
    """One trial's record."""

    id: str
    number: int
    values: Mapping[str, Any]
    status: str = "running"
    metric: float | None = None
    epochs: Mapping[int, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    started: float = 0.0
    finished: float | None = None
    stages: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    segment: Mapping[str, Any] | None = None

    @property
    def round(self) -> int:
        """Of population based training, counted from 0."""
        return int(self.segment["round"]) if self.segment else 0

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be heard of it."""
        return self.status in OVER


@dataclass(frozen=True)
class TrackedSearch:
    """A search: `search.json`. Trials are read on demand, as there may be thousands."""

    folder: Path
    description: Mapping[str, Any]

    @property
    def plan(self) -> str:
        """The name of the plan."""
        return str(self.description["plan"])

    @property
    def status(self) -> str:
        """How it ended; `running` before."""
        return str(self.description["status"])

    @property
    def key(self) -> str:
        """What names this search in the whole tracking store."""
        return f"{self.plan}/search-{self.description['fingerprint']}"

    @property
    def tags(self) -> dict[str, str]:
        """Of its MLflow run and of those of its trials."""
        return {
            "plan": self.plan,
            "search": str(self.description["fingerprint"]),
            "mlflow.source.name": "distill tune",
        }

    @property
    def experiment(self) -> str:
        """Where its runs are shown: beside those of the plan."""
        return str(self.description.get("experiment") or self.plan)

    @property
    def started(self) -> float:
        """Unix time in seconds."""
        return float(self.description["started"])

    @property
    def ended(self) -> float:
        """Unix time in seconds of the last word on it."""
        return (self.folder / SEARCH).stat().st_mtime

    @property
    def metric(self) -> str:
        """What the metric's stage calls it: `validation/accuracy`."""
        return str(self.description["metric"]).rpartition(".")[2]

    @property
    def best(self) -> Mapping[str, Any]:
        """What is said of the best trial; empty before there is one."""
        return self.description.get("best") or {}

    def called(self, trial: str, number: int) -> str:
        """The name of the run of a trial: `trial 07`, or `member-03-round-2` in a population."""
        return trial if self.description["scheduler"]["name"] == "pbt" else f"trial {number:02d}"

    def short(self, path: str) -> str:
        """A searched path as people call it: `temperature`."""
        return str(self.description.get("names", {}).get(path, path))

    def trials(self, but: Collection[str] = ()) -> list[TrackedTrial]:
        """The trials whose records can be read, but for some, by their numbers."""
        files = [path for path in (self.folder / "trials").glob("*.json") if path.stem not in but]
        found = [trial for path in files if (trial := _trial(read_json(path))) is not None]
        return sorted(found, key=lambda trial: trial.number)


def is_search(folder: Path) -> bool:
    """Whether a folder is that of a search rather than of a plan run."""
    return (folder / SEARCH).exists()


def read_search(folder: Path) -> TrackedSearch:
    """Read a search's folder. `FileNotFoundError` or `ValueError` when its description cannot be read."""
    return TrackedSearch(folder, json.loads((folder / SEARCH).read_text(encoding="utf-8")))


def _trial(values: Mapping[str, Any]) -> TrackedTrial | None:
    try:
        epochs = {int(epoch): float(value) for epoch, value in values["epochs"].items()}
        known = {key: value for key, value in values.items() if key in TrackedTrial.__dataclass_fields__}
        return TrackedTrial(**{**known, "epochs": epochs})
    except (KeyError, TypeError, ValueError):
        return None
