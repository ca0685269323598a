"""`distill ui`: the server answers, says where, and leaves nothing behind."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from raydistill.errors import DistillError
from raydistill.ui import serve

SERVE = """
import sys
from pathlib import Path
from raydistill.ui import serve
serve(Path(sys.argv[1]), port=int(sys.argv[2]), on_ready=lambda line: print(line, flush=True))
"""

# MLflow 3.17 still uses a loader strategy that SQLAlchemy 2.1 wants to drop; both are theirs.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.slow
def test_the_server_shows_a_new_store_and_ends_with_the_command(
    tmp_path: Path, free_ports: Callable[[int], list[int]]
) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-c", SERVE, str(tmp_path), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert f"sqlite:///{tmp_path}/mlflow.db at http://127.0.0.1:{port}/" in line
        address = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
        with urllib.request.urlopen(address) as answer:
            assert json.load(answer)["experiment"]["experiment_id"] == "0"
        servers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stdout.read() == ""
    assert servers
    assert psutil.wait_procs(servers, timeout=10)[1] == []


def test_a_port_in_use_is_one_clear_error(tmp_path: Path, taken_port: int) -> None:
    with pytest.raises(DistillError, match=f"cannot listen on 127.0.0.1:{taken_port}: .*`--port`"):
        serve(tmp_path, port=taken_port)
    assert list(tmp_path.iterdir()) == []


def test_a_tracking_server_has_pages_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serve(tmp_path, "http://me:secret@mlflow.example:5000")
    assert "http://***@mlflow.example:5000" in capsys.readouterr().out


def test_a_store_that_is_no_database_is_one_clear_error(
    tmp_path: Path, free_ports: Callable[[int], list[int]]
) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to be looked at" * 100)
    with pytest.raises(DistillError, match="cannot be opened"):
        serve(tmp_path, port=free_ports(1)[0])
