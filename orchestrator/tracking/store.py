"""The MLflow client: imported late, kept silent, quick to give up. The mirror tries again, so nothing here does."""

import fcntl
import logging
import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raydistill.errors import DistillError
from raydistill.masking import mask
from raydistill.tracking.database import database_file, make_database, set_aside
from raydistill.tracking.own_store import artifacts_uri, follow_root, missing_library, own_uri

SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development"
}  # or the UI opens on pages about agents
CONNECTS_TO_DATABASE = 2
MAX_KEY, MAX_PARAM, MAX_TAG = 250, 6000, 8000

log = logging.getLogger(__name__)


def resolve_uri(root: Path, tracking_uri: str | None) -> str:
    """Where runs are tracked: as asked, else `MLFLOW_TRACKING_URI`, else a database in the storage root."""
    return tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or own_uri(root)


def is_missing(uri: str) -> bool:
    """Whether the store is a database file that is not there; of other stores only they themselves could tell."""
    file = database_file(uri)
    return file is not None and not file.exists()


def is_folder_missing(uri: str) -> bool:
    """Whether the store is a database file that could not be made either, because its folder is not there."""
    file = database_file(uri)
    return file is not None and not file.parent.exists()


def import_mlflow() -> Any:
    """MLflow without its voice: no logs, no links on stdout, no progress bars. What the user has set stays."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return mlflow


def open_client(uri: str, root: Path) -> Any:
    """An `MlflowClient`; makes a new database. `DistillError` says what to do with one that does not open.

    Nothing global is set, so that a script's own MLflow runs are left alone.
    """
    mlflow = import_mlflow()
    registry = os.environ.get("MLFLOW_REGISTRY_URI", uri)
    with _alone(root):
        if uri == own_uri(root):
            follow_root(root)
        file = database_file(uri)
        if file is not None and not file.exists():
            make_database(uri)
        try:
            with _without_patience(uri):
                return mlflow.MlflowClient(tracking_uri=uri, registry_uri=registry)
        except mlflow.exceptions.MlflowException as error:
            if file is None or "schema" not in str(error):
                raise
            set_aside(uri)
            make_database(uri)
            return mlflow.MlflowClient(tracking_uri=uri, registry_uri=registry)


def open_experiment(client: Any, uri: str, name: str, root: Path) -> str:
    """The id of the experiment, made if there is none. Its files go below `root` unless a server decides."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        experiment = _create_experiment(client, uri, name, root)
    if experiment.lifecycle_stage == "deleted":
        raise DistillError(
            f"the experiment `{name}` was deleted in MLflow; restore it there, or name another one in the plan:"
            " `tracking: {experiment: ...}`"
        )
    return str(experiment.experiment_id)


def _create_experiment(client: Any, uri: str, name: str, root: Path) -> Any:
    from mlflow.exceptions import MlflowException

    # A server decides where artifacts go; a database alone would put them below the working directory.
    location = artifacts_uri(root) if uri.startswith(DATABASES) else None
    if location is not None and (lacks := missing_library(root)) is not None:
        log.warning("tracking: models and reports in MLflow stay on this machine, as %s", lacks)
    try:
        client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.get_experiment_by_name(name)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One driver at a time: of several that create one database at once, all but one would crash."""
    with (root / ".mlflow.lock").open("a", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def _without_patience(uri: str) -> Iterator[None]:
    """MLflow asks a database ten times, and for 100 seconds in all, also one that has refused the password."""
    if not uri.startswith(DATABASES):
        yield
        return
    from mlflow.store.db import utils

    before, utils.MAX_RETRY_COUNT = utils.MAX_RETRY_COUNT, CONNECTS_TO_DATABASE
    try:
        yield
    finally:
        utils.MAX_RETRY_COUNT = before


def answers(uri: str, root: Path) -> bool:
    """Whether the store is there at all."""
    try:
        open_client(uri, root).search_experiments(max_results=1)
    except Exception:  # of whatever kind: it does not serve us
        return False
    return True


def find_run(client: Any, experiment_ids: list[str], condition: str) -> str | None:
    """The newest run that meets a condition in MLflow's search language."""
    order = ["attributes.start_time DESC"]
    runs = client.search_runs(experiment_ids, condition, max_results=1, order_by=order)
    return str(runs[0].info.run_id) if runs else None


def key_of(name: str) -> str:
    """A name as MLflow takes it for params, metrics and tags: no odd characters, and a plain path."""
    cleaned = re.sub(r"[^/\w.\- :]", "_", name)
    return posixpath.normpath(cleaned).strip("/.")[:MAX_KEY] or "_"


def reason(error: BaseException) -> str:
    """One short line for a warning. Errors of HTTP and of databases repeat the address, login and all."""
    lines = str(error).strip().splitlines() or [""]
    text = mask(f"{type(error).__name__}: {lines[0]}")
    return text if len(text) <= 160 else text[:157] + "..."
