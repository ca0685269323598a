"""User and password of a tracking URI or an address: nowhere printed, stored, shown, or on a command line."""

import base64
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from raydistill import doctor, ui
from raydistill.cli import main
from raydistill.execution.submit.client import JobsClient
from raydistill.execution.submit.command import JobCommand
from raydistill.masking import mask, split_login

PLAN = """\
name: tiny
task: {name: tensors, file: data.npz}
stages:
  model: {stage: train, model: {name: mlp, widths: [4]}, epochs: 1}
"""
NOBODY = "http://alice:s3cret@127.0.0.1:9"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    labels = np.arange(60) % 3
    np.savez(tmp_path / "data.npz", inputs=np.eye(3, dtype=np.float32)[labels], labels=labels)
    (tmp_path / "plan.yaml").write_text(PLAN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://alice:s3cret@m:5000/x", "http://***@m:5000/x"),
        ("https://s3cret@m", "https://***@m"),
        ("postgresql+psycopg2://alice:s3/c#r?e@t@db:5432/runs", "postgresql+psycopg2://***@db:5432/runs"),
        (
            "postgresql://db/runs?user=alice&password=s3cret&a=b",
            "postgresql://db/runs?user=***&password=***&a=b",
        ),
        ("http://m/x?access_token=s3cret#top", "http://m/x?access_token=***#top"),
        ("http://m:5000/a@b", "http://m:5000/a@b"),
        ("sqlite:////runs/mlflow.db", "sqlite:////runs/mlflow.db"),
        (
            "no one at `http://alice:s3cret@[::1`, nor at http://b:p@c",
            "no one at `http://***@[::1`, nor at http://***@c",
        ),
        ("mail alice@example.org", "mail alice@example.org"),
    ],
)
def test_what_is_shown_has_no_login(text: str, shown: str) -> None:
    assert mask(text) == shown


def test_a_login_is_sent_as_a_header_and_not_as_part_of_an_address() -> None:
    words = base64.b64encode(b"alice:s/cret").decode()
    assert split_login("http://alice:s%2Fcret@m:5000/x") == (
        "http://m:5000/x",
        {"Authorization": f"Basic {words}"},
    )
    assert split_login("http://m:5000/x") == ("http://m:5000/x", {})


def test_a_run_leaves_no_password_in_any_file_nor_on_the_screen(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["run", "plan.yaml", "--local", "--tracking-uri", NOBODY]
    monkeypatch.setattr(sys, "argv", ["distill", *words])
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "s3cret" not in result.output + caplog.text
    assert "***@127.0.0.1:9" in caplog.text
    holding = [file for file in project.rglob("*") if file.is_file() and b"s3cret" in file.read_bytes()]
    assert holding == []
    [results] = project.glob("runs/plans/tiny/*/results.json")
    assert json.loads(results.read_text())["command"].endswith("--tracking-uri http://***@127.0.0.1:9")


@pytest.mark.parametrize("words", [("--tracking-uri", NOBODY), ("--", f"--tracking-uri={NOBODY}")])
def test_a_job_gets_a_login_by_its_environment(project: Path, words: tuple[str, ...]) -> None:
    options = ("--runs", "/r", "--dry-run", "--include", "data.npz", *words)
    result = CliRunner().invoke(main, ["submit", "plan.yaml", *options])
    assert result.exit_code == 0, result.output
    assert "s3cret" not in result.output
    command = JobCommand("/r", "plan.yaml", tracking_uri=NOBODY)
    assert "s3cret" not in command.to_shell()
    assert command.environment == {"MLFLOW_TRACKING_URI": NOBODY}


def test_the_pages_of_mlflow_get_a_login_by_their_environment(tmp_path: Path) -> None:
    uri = "postgresql://alice:s3cret@db/runs"
    assert not any("s3cret" in word for word in ui._command(tmp_path, "127.0.0.1", 5000))
    assert ui._environment(uri)["MLFLOW_BACKEND_STORE_URI"] == uri


class Guarded(http.server.BaseHTTPRequestHandler):
    """A head, or a tracking server, behind a proxy with a login."""

    def do_GET(self) -> None:
        is_known = self.headers.get("Authorization") == f"Basic {base64.b64encode(b'alice:s3cret').decode()}"
        answers = {"/api/version": b'{"ray_version": "2.60.0"}', "/version": b"3.1.0"}
        self.send_response(200 if is_known else 401)
        self.end_headers()
        self.wfile.write(answers.get(self.path, b"{}") if is_known else b"who are you?")

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_the_doctor_uses_a_login_and_does_not_show_it(port: int, tmp_path: Path) -> None:
    [known] = doctor._tracking(tmp_path, f"http://alice:s3cret@127.0.0.1:{port}")
    assert known.text == f"`http://***@127.0.0.1:{port}`, MLflow 3.1.0"
    [refused] = doctor._tracking(tmp_path, f"http://alice:wrong@127.0.0.1:{port}")
    assert (refused.verdict, "user and password" in refused.way_out) == ("fail", True)
    assert "wrong" not in refused.text + refused.way_out


def test_the_address_of_a_dashboard_uses_a_login_and_does_not_show_it(port: int) -> None:
    client = JobsClient(f"http://alice:s3cret@127.0.0.1:{port}")
    assert client.versions.ray == "2.60.0"
    assert client.page("j") == f"http://***@127.0.0.1:{port}/#/jobs/j"


@pytest.mark.parametrize(
    "words",
    [
        ("jobs", "list", "--address", NOBODY),
        ("jobs", "list", "--address", "http://alice:s3cret@:6379"),
        ("run", "plan.yaml", "--address", "http://alice:s3cret@h:6379"),
        ("doctor", "--address", "alice:s3cret@127.0.0.1:9"),
        ("sync", "--tracking-uri", NOBODY),
        ("ui", "--tracking-uri", NOBODY),
        ("ui", "--tracking-uri", "postgresql://alice:s3cret@127.0.0.1:9/x"),
    ],
)
def test_no_message_shows_a_password(project: Path, words: tuple[str, ...]) -> None:
    assert "s3cret" not in CliRunner().invoke(main, words).output
