"""A process that dies at the worst moment leaves nothing that a later one cannot put right."""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import mlxtend
import numpy as np
import pytest

import raydistill
from raydistill.errors import DistillError
from raydistill.tracking.database import holds_runs, set_aside
from raydistill.tracking.store import open_client

# MLflow 3.17 still uses a loader strategy that SQLAlchemy 2.1 wants to drop; both are theirs.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)

# Dies after the first tables, before the migrations: the window in which a kill ended tracking for good.
DYING = """
import os, sys
from pathlib import Path
import mlflow.store.db.utils as utils
from raydistill.tracking.store import open_client
utils._upgrade_db = lambda engine: os._exit(9)
root = Path(sys.argv[1])
if sys.argv[2] == "ours":
    open_client(f"sqlite:///{root}/mlflow.db", root)
else:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    SqlAlchemyStore(f"sqlite:///{root}/mlflow.db", "./mlruns")
"""


@pytest.mark.slow
@pytest.mark.parametrize("who", ["ours", "mlflow"])
def test_a_kill_while_the_tracking_database_is_made_costs_nothing(tmp_path: Path, who: str) -> None:
    died = subprocess.run([sys.executable, "-c", DYING, str(tmp_path), who], cwd=tmp_path, check=False)
    assert died.returncode == 9
    database = tmp_path / "mlflow.db"
    assert database.exists() == (who == "mlflow")  # as earlier versions left it
    client = open_client(f"sqlite:///{database}", tmp_path)
    run = client.create_run(client.create_experiment("a")).info.run_id
    client.log_metric(run, "loss", 1.0)
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM metrics").fetchone() == (1,)


def tables(database: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(database)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    return database


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ((), False),
        (("CREATE TABLE experiments (a)", "INSERT INTO experiments VALUES (1)"), False),
        (("CREATE TABLE runs (a)",), False),
        (("CREATE TABLE runs (a)", "INSERT INTO runs VALUES (1)"), True),
        (("CREATE TABLE registered_models (a)", "INSERT INTO registered_models VALUES (1)"), True),
    ],
)
def test_a_database_with_something_in_it_is_known(
    tmp_path: Path, statements: tuple[str, ...], expected: bool
) -> None:
    assert holds_runs(tables(tmp_path / "a.db", *statements)) is expected


def test_what_cannot_be_asked_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(os.urandom(5000))
    assert holds_runs(tmp_path / "a.db")


def test_an_old_database_with_runs_is_left_alone_and_the_way_out_is_said(tmp_path: Path) -> None:
    database = tables(tmp_path / "mlflow.db", "CREATE TABLE runs (a)", "INSERT INTO runs VALUES (1)")
    before = database.read_bytes()
    with pytest.raises(DistillError, match=r"`mlflow db upgrade sqlite:.*`distill sync` makes it anew"):
        set_aside(f"sqlite:///{database}")
    assert database.read_bytes() == before


SHARED = """\
name: shared
task: {name: mnist}
stages:
  teacher: {stage: train, model: {name: mlp, widths: [8]}, epochs: 1, batch_size: 256}
"""

# Commands of two users in one process and its child: Python itself may lie where only the first may read.
TWO_USERS = """
import os, sys
from pathlib import Path
from raydistill.cli import main

def distill(*words):
    try:
        main([*words, "--runs", "runs"])
    except SystemExit as ended:
        return ended.code or 0
    return 0

os.umask(0o002)  # as groups that share a folder have it
run = ("run", "plan.yaml", "--local")
codes = [distill(*run)]
model = str(next(Path("runs/stages").glob("train-*")))
codes += [distill(*run), distill("predict", model, "digits.npy", "--output", "first.csv")]
if os.fork() == 0:
    os.setgroups([])
    os.setgid(0)
    os.setuid(65534)
    codes = [distill(*run), distill("predict", model, "digits.npy", "--output", "second.csv")]
    print("the other user:", *codes, flush=True)
    os._exit(0)
os.wait()
print("the first user:", *codes, flush=True)
"""


def is_readable_by_others(path: Path) -> bool:
    """Whether everybody may open the file, and every folder on the way."""
    may_pass = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)
    return may_pass and bool(path.stat().st_mode & stat.S_IROTH)


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root runs commands as somebody else")
def test_another_user_of_a_shared_root_runs_what_is_cached_and_predicts_with_it() -> None:
    if not all(is_readable_by_others(Path(str(module.__file__))) for module in (raydistill, mlxtend)):
        pytest.skip("what is installed here cannot be read by another user")
    folder = Path(tempfile.mkdtemp(prefix="shared-"))  # tmp_path lies in a folder of ours alone
    folder.chmod(0o2775)
    (folder / "plan.yaml").write_text(SHARED)
    np.save(folder / "digits.npy", np.zeros((2, 1, 28, 28), np.uint8))
    environment = os.environ | {"HOME": str(folder), "MPLCONFIGDIR": str(folder / "matplotlib")}
    done = subprocess.run(
        [sys.executable, "-c", TWO_USERS],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    told = done.stdout + done.stderr
    assert "the first user: 0 0 0" in told, told
    assert "the other user: 0 0" in told, told
    assert "Traceback" not in told, told
    assert (folder / "first.csv").read_text() == (folder / "second.csv").read_text()
    assert (folder / "second.csv").stat().st_uid == 65534
    shutil.rmtree(folder)
