"""One push: the plan run or search, what was sent of it, and the store that it goes to."""

import getpass
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from raydistill.errors import DistillError
from raydistill.tracking import store
from raydistill.tracking.curves import Point
from raydistill.tracking.state import ChildState, State

KEY = "raydistill.id"
METRICS_PER_BATCH, OTHERS_PER_BATCH = 1000, 100  # MLflow's own limits


class GivenUp(DistillError):  # noqa: N818 - an outcome, not a fault
    """Nobody waits for this push any longer."""


class Tracked(Protocol):
    """What becomes a parent run in MLflow: a plan run, or a search."""

    @property
    def folder(self) -> Path:
        """Where its own files lie."""
        ...

    @property
    def status(self) -> str:
        """How it ended, as its files say; `running` before."""
        ...

    @property
    def key(self) -> str:
        """What names it in the whole tracking store."""
        ...

    @property
    def ended(self) -> float:
        """Unix time in seconds of the last word on it."""
        ...


Run = TypeVar("Run", bound=Tracked)


class Session(Generic[Run]):
    """What every part of a push needs.

    `tags` are those of the run in MLflow and of all below it. `is_over`: no driver works on the run, so what is open
    gets closed. `has_time`: exporting models, which takes seconds, is welcome.
    """

    def __init__(
        self,
        run: Run,
        tags: Mapping[str, str],
        state: State,
        root: Path,
        uri: str,
        give_up: threading.Event,
        *,
        is_over: bool,
        has_time: bool = True,
    ) -> None:
        self.run, self.tags, self.state, self.root, self.uri = run, tags, state, root, uri
        self.give_up, self.is_over, self.has_time = give_up, is_over, has_time

    @property
    def client(self) -> Any:
        """The MLflow client, made when there is something to send."""
        if self.give_up.is_set():
            raise GivenUp("the rest is sent later")
        return self._client

    @cached_property
    def _client(self) -> Any:
        return store.open_client(self.uri, self.root)

    def save(self) -> None:
        """Remember what has arrived."""
        self.state.save(self.run.folder)

    def find_or_create(
        self, key: str, name: str, tags: Mapping[str, str], started: float
    ) -> tuple[str, bool]:
        """The id of the MLflow run tagged `key`, and whether an earlier push made it; `started` in Unix seconds."""
        experiment = self.state.experiment_id
        if found := store.find_run(self.client, [str(experiment)], f"tags.`{KEY}` = '{key}'"):
            return found, True
        shown = {"mlflow.user": _user(), "mlflow.source.name": "distill run"}
        created = self.client.create_run(
            experiment,
            start_time=int(started * 1000),
            run_name=name,
            tags={KEY: key, **shown, **self.tags, **tags},
        )
        return str(created.info.run_id), False

    def is_deleted(self, run_id: str) -> bool:
        """Whether somebody deleted the run in MLflow, as far as the store tells. It is not ours to bring back."""
        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == "deleted")
        except Exception:  # the failure that made us ask is the one to report
            return False

    @contextmanager
    def passing_over_deleted(self, state: ChildState) -> Iterator[None]:
        """Whatever fails because somebody deleted a child's run in MLflow: that child is done with."""
        try:
            yield
        except Exception:
            if state.run_id is None or not self.is_deleted(state.run_id):
                raise
            state.is_finished = state.is_model_done = True
            self.save()

    def is_forgotten(self) -> bool:
        """Whether the store answers but has never heard of the run: a database that was deleted."""
        try:
            self.client.get_run(self.state.run_id)
        except Exception as error:
            return getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"
        return False

    def log_points(self, run_id: str | None, points: Sequence[Point]) -> None:
        """Log metrics."""
        client = self.client  # first: it silences what is imported next
        from mlflow.entities import Metric

        for start in range(0, len(points), METRICS_PER_BATCH):
            batch = points[start : start + METRICS_PER_BATCH]
            rows = [
                Metric(store.key_of(point.key), point.value, point.timestamp, point.step) for point in batch
            ]
            client.log_batch(run_id, metrics=rows)

    def log_params(self, run_id: str | None, params: Mapping[str, str]) -> None:
        """Log params; MLflow takes the same ones twice, but never other values."""
        client = self.client
        from mlflow.entities import Param

        rows = [Param(*item) for item in _cleaned(params, store.MAX_PARAM).items()]
        for start in range(0, len(rows), OTHERS_PER_BATCH):
            client.log_batch(run_id, params=rows[start : start + OTHERS_PER_BATCH])

    def log_tags(self, run_id: str | None, tags: Mapping[str, str]) -> None:
        """Set tags."""
        client = self.client
        from mlflow.entities import RunTag

        rows = [RunTag(*item) for item in _cleaned(tags, store.MAX_TAG).items()]
        for start in range(0, len(rows), OTHERS_PER_BATCH):
            client.log_batch(run_id, tags=rows[start : start + OTHERS_PER_BATCH])


def _cleaned(values: Mapping[str, str], limit: int) -> dict[str, str]:
    return {store.key_of(key): value[:limit] for key, value in values.items()}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "unknown"
