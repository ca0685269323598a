"""A tracking database that is a file: whole or absent, and made anew where an earlier process left half of one."""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

from raydistill.errors import DistillError
from raydistill.masking import mask

log = logging.getLogger(__name__)


def database_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for another store."""
    scheme, _, path = uri.partition(":///")
    return Path(unquote(path.partition("?")[0])) if scheme.startswith("sqlite") and path else None


def make_database(uri: str) -> None:
    """Make a database beside its place, and rename it: the schema takes 65 tables and seconds, and a process may die.

    MLflow refuses a half-made one ever after.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder, _, name = uri.partition("?")[0].rpartition("/")
    beside = f"{folder}/.{name}.{os.getpid()}.tmp"
    unfinished, database = _file(beside), _file(uri)
    try:
        SqlAlchemyStore(beside, "./mlruns").engine.dispose()
        unfinished.replace(database)
    finally:
        unfinished.unlink(missing_ok=True)


def set_aside(uri: str) -> None:
    """Make way for a new database where this one was never finished; `DistillError` when it holds something."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    database = _file(uri)
    if holds_runs(database):
        raise DistillError(
            f"the tracking database `{database}` has another schema than MLflow's here: `mlflow db upgrade {mask(uri)}`"
            " brings it up to date; or move it away, and `distill sync` makes it anew from the storage root"
        )
    if engine := getattr(SqlAlchemyStore, "_engine_map", {}).get(uri):
        engine.dispose()  # its connections would keep to the old file
    database.replace(database.with_name(f"{database.name}.unfinished"))
    log.warning("tracking: `%s` was half made when a process died; it is made anew", database)


def holds_runs(database: Path) -> bool:
    """Whether a tracking database has runs or models, or cannot be asked."""
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {name for (name,) in found}
            return any(
                connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone()
                for table in ("runs", "logged_models", "registered_models")
                if table in tables
            )
    except sqlite3.Error:
        return True


def _file(uri: str) -> Path:
    file = database_file(uri)
    assert file is not None
    return file
