"""The default tracking store: `mlflow.db` and `mlartifacts/` in the storage root, wherever that is and is moved to.

MLflow keeps the places of artifacts as absolute addresses. A root that was moved or copied is noticed by them, and they
are rewritten before anything is sent: nothing goes to the old place, and nothing there is looked for.
"""

import re
import sqlite3
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from raydistill.masking import mask
from raydistill.runs.mirror import url_of

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
PLACES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Table → columns of MLflow's schema that hold an address of artifacts."""
LIBRARIES = {
    "s3": ("boto3", "boto3"),
    "s3a": ("boto3", "boto3"),
    "gs": ("google.cloud.storage", "google-cloud-storage"),
}
"""What MLflow itself reaches a kind of object store by: module and package."""


def own_uri(root: Path) -> str:
    """The database's address.

    SQLAlchemy decodes it, and MLflow makes the folder of what follows `sqlite:///` without decoding: so a path with
    odd characters names the driver too.
    """
    path = f"{root.absolute()}/{DATABASE}"
    return f"sqlite:///{path}" if quote(path) == path else f"sqlite+pysqlite:///{quote(path)}"


def artifacts_uri(root: Path) -> str:
    """Where artifacts go: beside the results, also where these lie in a bucket that MLflow can write to."""
    bucket = url_of(root)
    if bucket is None or missing_library(root) is not None:
        return _folder_uri(root)
    return f"{re.sub('^s3a:', 's3:', bucket)}/{ARTIFACTS}"


def missing_library(root: Path) -> str | None:
    """What MLflow lacks to write to the bucket of a storage root: artifacts stay on this machine. None where it lacks
    nothing."""
    if (bucket := url_of(root)) is None:
        return None
    scheme = bucket.partition("://")[0]
    module, package = LIBRARIES.get(scheme, ("", ""))
    if not module:
        return f"MLflow writes to no `{scheme}://`"
    try:
        is_there = find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        is_there = False
    return None if is_there else f"MLflow writes to `{scheme}://` by `{package}`: `pip install {package}`"


def _folder_uri(root: Path) -> str:
    return (root.absolute() / ARTIFACTS).as_uri()


def name_of(uri: str, root: Path) -> str:
    """A store as it is remembered in the root: our own by its name there, others by their address without login."""
    return DATABASE if uri == own_uri(root) else mask(uri)


def uri_of(name: str, root: Path) -> str:
    """The way back from `name_of`."""
    return own_uri(root) if name == DATABASE else name


def follow_root(root: Path) -> None:
    """Let the database say where its artifacts are now. Whoever calls this is alone with it."""
    if not (root / DATABASE).exists():
        return
    here = _folder_uri(root)
    with closing(sqlite3.connect(root / DATABASE)) as connection, connection:
        for place in _former_places(connection, here):
            for table, columns in PLACES.items():
                for column in columns:
                    _rewrite(connection, table, column, place, here)


def _former_places(connection: sqlite3.Connection, here: str) -> list[str]:
    if not _has_column(connection, "experiments", "artifact_location"):
        return []
    found = connection.execute("SELECT DISTINCT artifact_location FROM experiments")
    places = [place for (place,) in found if place and place != here]
    return [place for place in places if place.startswith("file:") and place.endswith(f"/{ARTIFACTS}")]


def _rewrite(connection: sqlite3.Connection, table: str, column: str, old: str, new: str) -> None:
    if _has_column(connection, table, column):
        connection.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
            f" WHERE {column} = ? OR substr({column}, 1, ?) = ?",
            (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
        )


def _has_column(connection: sqlite3.Connection, table: str, column: str) -> bool:
    rows = connection.execute("SELECT 1 FROM pragma_table_info(?) WHERE name = ?", (table, column))
    return rows.fetchone() is not None
