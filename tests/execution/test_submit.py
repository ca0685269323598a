"""Plans sent to a Ray cluster: what travels, how it is quoted, what goes wrong; and jobs on a real head."""

import http.server
import importlib.util
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from raydistill.cli import main
from raydistill.errors import DistillError, PlanError
from raydistill.execution.ray_backend.tokens import read_token
from raydistill.execution.submit import package as package_module
from raydistill.execution.submit.client import (
    Job,
    JobsClient,
    Versions,
    check_versions,
    explain_status,
    resolve_address,
)
from raydistill.execution.submit.command import JobCommand, check_root, points_home, read_environment
from raydistill.execution.submit.following import exit_code, follow
from raydistill.execution.submit.package import Package, collect, write_zip

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 60.0
PLAN = """\
name: away
task: {name: tensors, file: DATA}
stages:
  teacher: {stage: train, model: {name: "my_nets.small:build"}, epochs: 1}
"""
SEARCH = """\
search:
  metric: teacher.validation/accuracy
  space: {teacher.optimizer.learning_rate: {loguniform: [1e-3, 1e-1]}}
  samples: 2
"""
LARGE_GRID = """\
search:
  metric: teacher.validation/accuracy
  searcher: {name: grid}
  space:
    teacher.epochs: {integer: [1, 1000]}
    teacher.seed: {integer: [1, 1000]}
"""
MODULE = """\
from pathlib import Path

import torch

import raydistill

PLACE = "FOLDER"


def build(num_classes, input_shape):
    Path(PLACE, "code.txt").write_text(raydistill.__file__)
    return torch.nn.Linear(input_shape[0], num_classes)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a plan, a package of models, and much that nobody wants to send."""
    folder = tmp_path / "project"
    (folder / "my_nets").mkdir(parents=True)
    (folder / "my_nets" / "__init__.py").write_text("")
    (folder / "my_nets" / "small.py").write_text(MODULE.replace("FOLDER", str(tmp_path)))
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(120, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=inputs[:, :3].argmax(axis=1))
    text = PLAN.replace("DATA", str(tmp_path / "data.npz"))
    (folder / "plan.yaml").write_text(text)
    monkeypatch.chdir(folder)
    return folder


def add_search(project: Path, search: str = SEARCH) -> None:
    with (project / "plan.yaml").open("a") as plan:
        plan.write(search)


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def names_of(folder: Path, *, exclude: tuple[str, ...] = (), include: tuple[str, ...] = ()) -> set[str]:
    return {file.name for file in collect(folder, folder / "plan.yaml", exclude, include).files}


CODE = {"plan.yaml", "my_nets/__init__.py", "my_nets/small.py"}


def test_data_results_caches_and_secrets_stay_at_home(project: Path) -> None:
    put(
        project,
        *("data/train.bin", "runs/stages/x/record.json", "mlruns/0/meta.yaml", "mlflow.db", "student.pt"),
        *(".env", ".git/config", ".venv/lib/a.py", "my_nets/__pycache__/small.pyc", "soft.parquet"),
        *("environment/pyvenv.cfg", "environment/lib/site.py"),
    )
    assert names_of(project) == CODE


def test_ignore_files_count_wherever_they_are_and_the_last_word_is_the_command_lines(project: Path) -> None:
    put(
        project,
        "notes/a.md",
        "big/video.mp4",
        "my_nets/draft.py",
        "data/small/x.csv",
        "data/large/y.csv",
        "kept.csv",
    )
    (project / ".gitignore").write_text("# mine\nnotes/\n")
    (project / ".rayignore").write_text("*.mp4\n")
    (project / "my_nets" / ".gitignore").write_text("draft.py\n")
    assert names_of(project) == CODE | {"kept.csv"}
    assert names_of(project, exclude=("*.csv",)) == CODE
    assert names_of(project, include=("data/small/",)) == CODE | {"kept.csv", "data/small/x.csv"}


def test_a_checkout_of_ours_sends_its_packages_once() -> None:
    files = collect(REPOSITORY, REPOSITORY / "configs" / "mnist_quickstart.yaml", (), ()).files
    tops = {file.name.partition("/")[0] for file in files}
    assert "configs" in tops
    assert not tops & {"orchestrator", "models", "tasks", "raydistill.egg-info"}


def test_a_plan_from_elsewhere_and_one_that_is_ignored_are_sent_all_the_same(
    project: Path, tmp_path: Path
) -> None:
    put(tmp_path, "elsewhere/other.yaml")
    (project / ".gitignore").write_text("*.yaml\n")
    files = collect(project, tmp_path / "elsewhere" / "other.yaml", (), ()).files
    assert {file.name for file in files} == CODE - {"plan.yaml"} | {"other.yaml"}
    assert "plan.yaml" in names_of(project)


def test_the_same_files_make_the_same_package_whenever_they_were_written(
    project: Path, tmp_path: Path
) -> None:
    archives = []
    for moment in (1_000_000_000, 1_700_000_000):
        for path in project.rglob("*"):
            os.utime(path, (moment, moment))
        archives.append(tmp_path / f"{moment}.zip")
        write_zip(collect(project, project / "plan.yaml", (), ()), archives[-1])
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with zipfile.ZipFile(archives[0]) as archive:
        assert set(archive.namelist()) == CODE
        assert archive.read("my_nets/small.py") == (project / "my_nets" / "small.py").read_bytes()


def test_too_much_is_refused_with_the_largest_files(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_module, "MAX_BYTES", 20_000)
    (project / "lookup.txt").write_bytes(np.random.default_rng(0).bytes(30_000))
    (project / "zeros.txt").write_bytes(bytes(500_000))  # which packs to nothing
    with pytest.raises(PlanError, match=r"--exclude(.|\n)*\n.*zeros\.txt\n.*lookup\.txt\n"):
        write_zip(collect(project, project / "plan.yaml", (), ()), tmp_path / "package.zip")
    write_zip(collect(project, project / "plan.yaml", ("lookup.txt",), ()), tmp_path / "package.zip")


def test_a_package_knows_what_it_holds(project: Path) -> None:
    package = collect(project, project / "plan.yaml", (), ())
    assert package.holds(project / "my_nets")
    assert package.holds(project / "my_nets" / "small.py")
    assert not package.holds(project / "my_net")
    assert not package.holds(project.parent)


@given(
    st.lists(
        st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1), max_size=4
    )
)
def test_the_shell_gives_every_option_back_as_it_was(values: list[str]) -> None:
    command = JobCommand("/shared/my runs", "my plan.yaml", overrides=tuple(values), more=("--samples", "3"))
    words = shlex.split(command.to_shell())
    assert words[:6] == ["exec", "python", "-P", "-m", "raydistill.cli", "run"]
    assert words[6:] == [
        "my plan.yaml",
        *(f"--set={value}" for value in values),
        *("--address=auto", "--runs=/shared/my runs", "--samples", "3"),
    ]


def test_a_real_shell_agrees(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    awkward = "stages.student.method={method: hinton, temperature: 4} # $HOME `id` 'x' \"y\""
    shell = JobCommand(
        "/r", "plan.yaml", "tune", (awkward,), only=("a b",), force=("c",), tracking_uri="http://m"
    ).to_shell()
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    printed = subprocess.run(
        ["sh", "-c", shell], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert printed.splitlines() == [
        *("-P", "-m", "raydistill.cli", "tune", "plan.yaml", f"--set={awkward}", "--only=a b", "--force=c"),
        *("--address=auto", "--runs=/r", "--tracking-uri=http://m"),
    ]


@pytest.mark.parametrize("root", [None, Path("runs"), Path("../runs")])
def test_results_in_the_jobs_own_folder_would_be_lost(root: Path | None) -> None:
    with pytest.raises(PlanError, match="--runs /shared/runs"):
        check_root(root)
    assert check_root(Path("/shared/runs")) == "/shared/runs"


def test_variables_are_set_or_passed_on() -> None:
    mine = {"HF_TOKEN": "secret", "MLFLOW_TRACKING_URI": "http://m:5000", "OTHER": "1"}
    read = read_environment(["A=b=c", "HF_TOKEN", "EMPTY="], mine)
    assert (
        read.items()
        >= {"A": "b=c", "HF_TOKEN": "secret", "EMPTY": "", "MLFLOW_TRACKING_URI": "http://m:5000"}.items()
    )
    assert "OTHER" not in read
    # A job gets more time to stop than its stages (10 s) and the tracking store (3 s) take.
    assert int(read["RAY_JOB_STOP_WAIT_TIME_S"]) > 13
    for wrong in ("MISSING", "1A=2", "=x"):
        with pytest.raises(PlanError, match="--env"):
            read_environment([wrong], mine)


def test_a_database_of_this_machine_is_not_passed_on() -> None:
    assert "MLFLOW_TRACKING_URI" not in read_environment([], {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"})


@pytest.mark.parametrize(
    ("uri", "expected"),
    [("http://localhost:5000", True), ("http://127.0.0.1", True), ("http://m:5000", False), (None, False)],
)
def test_an_address_that_every_machine_takes_for_itself_is_known(uri: str | None, expected: bool) -> None:
    assert points_home(uri) is expected


def test_the_address_is_the_option_then_rays_variable_then_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert resolve_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:1234/")
    assert resolve_address(None) == "http://head:1234"
    assert resolve_address("other:8265") == "http://other:8265"
    for wrong in ("ray://head:10001", "head:6379", "http://", "http://head:port"):
        with pytest.raises(PlanError, match="http://HEAD:8265"):
            resolve_address(wrong)


@pytest.mark.parametrize(("status", "word"), [("SUCCEEDED", 0), ("STOPPED", 130), ("FAILED", 1)])
def test_the_exit_code_is_the_jobs(status: str, word: int) -> None:
    assert exit_code(Job("j", status, "")) == word
    assert exit_code(Job("j", "FAILED", "", exit_code=2)) == 2


# Errors: a server that answers as a head would.


class Answers(http.server.BaseHTTPRequestHandler):
    """(status, text) by "METHOD /path"; everything that was asked is kept."""

    table: dict[str, tuple[int, str]]
    asked: list[tuple[str, str | None]]

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append((f"{self.command} {self.path}", self.headers.get("Authorization")))
        found = [
            answer for path, answer in self.table.items() if f"{self.command} {self.path}".startswith(path)
        ]
        status, text = found[0] if found else (404, "404: Not Found")
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_PUT = do_POST = _answer  # noqa: N815 - the names that the base class looks for

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


Server = Callable[[dict[str, tuple[int, str]]], str]
VERSION = {"GET /api/version": (200, json.dumps({"version": "4", "ray_version": "2.60.0"}))}


@pytest.fixture
def server() -> Iterator[Server]:
    servers = []

    def serve(table: dict[str, tuple[int, str]]) -> str:
        handler = type("Handler", (Answers,), {"table": table, "asked": []})
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for one in servers:
        one.shutdown()
        one.server_close()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            {"GET /api/version": (401, "Unauthorized: Missing authentication token")},
            "wants a token.*RAY_AUTH_MODE=token",
        ),
        (
            {"GET /api/version": (403, "Forbidden: Invalid authentication token")},
            "refuses this client's token.*auth_token",
        ),
        ({}, "not as the dashboard of a Ray cluster"),
        ({"GET /api/version": (200, "<html>hello</html>")}, "not as the dashboard of a Ray cluster"),
        (
            {"GET /api/version": (500, "Traceback:\n  deep\nOSError: disk full\n")},
            "error 500: OSError: disk full",
        ),
        ({"GET /api/version": (500, "RpcError: unavailable\n.\n>\n")}, "error 500: RpcError: unavailable"),
    ],
)
def test_a_head_that_refuses_is_explained_in_one_line(
    server: Server, table: dict[str, tuple[int, str]], words: str
) -> None:
    with pytest.raises(DistillError, match=words) as raised:
        JobsClient(server(table))
    assert "\n" not in raised.value.message


def test_an_address_where_nobody_listens_is_said_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(PlanError, match=r"no Ray cluster answers.*refused.*ray start --head"):
            JobsClient(f"http://127.0.0.1:{unused.getsockname()[1]}")


def test_what_listens_there_but_speaks_no_http_is_no_dashboard() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"\0\0\x18\4\0\0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(PlanError, match="not as the dashboard"):
            JobsClient(f"http://127.0.0.1:{other.getsockname()[1]}")
        thread.join()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            {"PUT /api/packages": (413, "Maximum request body size 104857600 exceeded")},
            "100.0 MiB.*--exclude",
        ),
        (
            {
                "GET /api/packages": (200, ""),
                "POST /api/jobs/": (
                    500,
                    "Traceback\nValueError: Job with submission_id twice already exists. Please use",
                ),
            },
            "has had a job `twice`; choose another",
        ),
        (
            {"GET /api/packages": (200, ""), "POST /api/jobs/": (500, "No available agent to submit job")},
            "No available agent",
        ),
    ],
)
def test_a_refused_job_is_explained_in_one_line(
    server: Server, table: dict[str, tuple[int, str]], words: str, tmp_path: Path
) -> None:
    put(tmp_path, "code/a.py")
    client = JobsClient(server(VERSION | table))
    with pytest.raises(DistillError, match=words) as raised:
        client.submit("true", "twice", {"working_dir": str(tmp_path / "code")}, {})
    assert "\n" not in raised.value.message


def test_jobs_are_told_as_json(server: Server) -> None:
    job = {
        "type": "SUBMISSION",
        "submission_id": "first",
        "job_id": None,
        "status": "FAILED",
        "entrypoint": "exec python",
        "message": "gone",
        "start_time": 1000,
        "end_time": 3500,
        "metadata": {"plan": "away", "runs": "/shared/runs"},
        "driver_exit_code": 2,
    }
    answers = {"GET /api/jobs/first": (200, json.dumps(job)), "GET /api/jobs/": (200, json.dumps([job]))}
    address = server(VERSION | answers)

    def told(*words: str) -> Any:
        return json.loads(CliRunner().invoke(main, ["jobs", *words, "--json", "--address", address]).stdout)

    [listed] = told("list")
    assert (listed["id"], listed["status"], listed["exit_code"], listed["plan"]) == (
        "first",
        "FAILED",
        2,
        "away",
    )
    assert (listed["started"], listed["ended"], listed["seconds"]) == (1.0, 3.5, 2.5)
    assert told("status", "first") == listed
    assert told("stop", "first") == listed, "it had ended: nothing is stopped"


def test_a_job_that_is_not_there_is_not_taken_for_a_missing_head() -> None:
    assert "no job `x`" in explain_status(404, "", "http://h", "x").message


def test_versions_too_old_for_us_are_refused_and_others_are_mentioned() -> None:
    from importlib.metadata import version
    from platform import python_version

    own = Versions(version("ray"), python_version())
    assert check_versions(own) is None
    assert "Ray 2.99.1 on Python 3.13.0" in str(check_versions(Versions("2.99.1", "3.13.0")))
    for old in (Versions("2.9.3", own.python), Versions(own.ray, "3.10.14")):
        with pytest.raises(PlanError, match=r"raydistill needs Ray 2\.60 and Python 3\.11 or newer"):
            check_versions(old)


@pytest.mark.parametrize("trouble", ["a folder", "empty", "bytes"])
def test_a_token_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert read_token() is None
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    if trouble == "a folder":
        file.mkdir()
    else:
        file.write_bytes(b"" if trouble == "empty" else b"\xff\xfe")
    with pytest.raises(PlanError, match=rf"token file `{file}` (cannot be read|is empty).*auth_token"):
        read_token()


class BrokenStream:
    """A client whose log stream breaks off twice, and each time begins at the beginning."""

    text = "".join(f"line {number}\n" for number in range(9))

    def __init__(self) -> None:
        self.streams = 0

    def job(self, job_id: str) -> Job:
        return Job(job_id, "SUCCEEDED" if self.streams >= 3 else "RUNNING", "")

    def logs(self, job_id: str) -> str:
        return self.text

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        self.streams += 1
        for line in self.text.splitlines(keepends=True)[: 3 * self.streams - 1]:
            yield line
        raise ConnectionError("gone")


def test_a_log_is_written_once_although_its_stream_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydistill.execution.submit.following.POLL_SECONDS", 0.01)
    written: list[str] = []
    assert follow(BrokenStream(), "job", written.append).status == "SUCCEEDED"  # type: ignore[arg-type]
    assert "".join(written) == BrokenStream.text


# The command, up to where it would send something.


def distill(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_dry_run_says_what_would_be_sent_and_run(project: Path) -> None:
    result = distill(
        "submit", "plan.yaml", "--runs", "/shared/runs", "--set", "stages.teacher.epochs=2", "--dry-run"
    )
    assert result.exit_code == 0, result.output
    assert "sends 3 files" in result.output
    assert "raydistill.cli run plan.yaml --set=stages.teacher.epochs=2 --address=auto" in result.output
    assert "note:" not in result.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--runs", "/r", "--set", "stages.teacher.epohs=1"), "did you mean `epochs`"),
        (("--runs", "/r", "--only", "techer"), "did you mean `teacher`"),
        (("--runs", "/r", "--force", "techer"), "did you mean `teacher`"),
        ((), "--runs /shared/runs"),
        (("--runs", "/r", "--submission-id", "a/b"), "--submission-id"),
        (("--runs", "/r", "--pip", "a", "--uv", "b"), "cannot be mixed"),
    ],
)
def test_what_is_wrong_with_a_plan_is_said_before_anything_is_sent(
    project: Path, options: tuple[str, ...], words: str
) -> None:
    result = distill("submit", "plan.yaml", *options, "--dry-run")
    assert result.exit_code == 2
    assert words in result.output


def test_a_search_is_checked_before_it_is_sent(project: Path) -> None:
    options = ("submit", "plan.yaml", "--tune", "--runs", "/r")
    without = distill(*options)
    assert (without.exit_code, "the plan searches nothing" in without.output) == (2, True), without.output
    add_search(project)
    planned = distill(*options, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "raydistill.cli tune plan.yaml" in planned.output
    unknown = distill(*options, "--set", "search.metric=teacher.validation/acuracy")
    assert (unknown.exit_code, "did you mean" in unknown.output) == (2, True), unknown.output
    dependent = distill(*options, "--force", "teacher")
    assert (dependent.exit_code, "finished trials are never repeated" in dependent.output) == (2, True)


def test_a_job_without_tracking_is_told_so(project: Path) -> None:
    result = distill("submit", "plan.yaml", "--runs", "/r", "--no-tracking", "--dry-run")
    assert result.exit_code == 0, result.output
    assert " --set=tracking=none " in result.output


def test_a_large_grid_is_asked_about_where_somebody_can_answer(project: Path) -> None:
    add_search(project, LARGE_GRID)
    refused = distill("submit", "plan.yaml", "--tune", "--runs", "/r")
    assert refused.exit_code == 2
    assert "the grid has 1,000,000 points" in refused.output


def test_data_beside_the_plan_must_be_sent_or_be_elsewhere(project: Path, tmp_path: Path) -> None:
    (project / "data").mkdir()
    shutil.copy(tmp_path / "data.npz", project / "data" / "digits.npz")
    options = ("submit", "plan.yaml", "--runs", "/r", "--set", "task.file=data/digits.npz", "--dry-run")
    refused = distill(*options)
    assert refused.exit_code == 2
    assert "task.file: `data/digits.npz` is not sent" in refused.output
    assert distill(*options, "--include", "data/digits.npz").exit_code == 0


def test_data_that_only_the_nodes_have_is_no_mistake(project: Path) -> None:
    result = distill("submit", "plan.yaml", "--runs", "/r", "--set", "task.file=/shared/d.npz", "--dry-run")
    assert result.exit_code == 0
    assert "the nodes are expected to have it" in result.output


def test_a_module_that_is_not_sent_is_mentioned(project: Path) -> None:
    result = distill("submit", "plan.yaml", "--runs", "/r", "--exclude", "my_nets/", "--dry-run")
    assert "`my_nets.small` is not among the files" in result.output


def test_an_empty_package_can_be_written(tmp_path: Path) -> None:
    write_zip(Package(tmp_path, ()), tmp_path / "empty.zip")
    assert zipfile.ZipFile(tmp_path / "empty.zip").namelist() == []


# A real head.


class Head:
    """`ray start --head` on free ports, in a home of its own."""

    def __init__(self, token: str | None, ports: list[int]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rd-"))  # short: Ray's sockets lie below it
        self.home = self.folder / "home"
        self.home.mkdir()
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))
        }
        self.environment = inherited | {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        self.token = token
        self.address = f"http://127.0.0.1:{ports[1]}"
        self.agent_port = ports[2]  # who starts the jobs
        options = ("--port", "--dashboard-port", "--dashboard-agent-listen-port", "--ray-client-server-port")
        words = [word for option, port in zip(options, ports, strict=True) for word in (option, str(port))]
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {}
        self.process = subprocess.Popen(
            [
                *(
                    sys.executable,
                    "-m",
                    "ray.scripts.scripts",
                    "start",
                    "--head",
                    "--block",
                    "--num-cpus",
                    "2",
                ),
                *("--temp-dir", str(self.folder / "ray"), *words),
            ],
            env=self.environment | secret,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._wait()
        except BaseException:  # also an interrupt: nobody else would end it
            self.end()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        request = urllib.request.Request(
            f"{self.address}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"}
        )
        while True:
            try:
                urllib.request.urlopen(request, timeout=5).close()
                socket.create_connection(("127.0.0.1", self.agent_port), timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < deadline, "the head does not start"
                time.sleep(0.2)

    def distill(
        self, *arguments: object, folder: Path, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(*arguments),
            cwd=folder,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    def command(self, *arguments: object) -> list[str]:
        return [
            sys.executable,
            "-P",
            "-m",
            "raydistill.cli",
            *map(str, arguments),
            "--address",
            self.address,
        ]

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)  # it ends the processes that it has started
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One storage root for all jobs: a new tracking store takes seconds."""
    return tmp_path_factory.mktemp("shared") / "runs"


@pytest.fixture(scope="module")
def open_head(free_ports: Callable[[int], list[int]]) -> Iterator[Head]:
    head = Head(None, free_ports(4))
    yield head
    head.end()


@pytest.fixture(scope="module")
def guarded_head(free_ports: Callable[[int], list[int]]) -> Iterator[Head]:
    head = Head("s" * 64, free_ports(4))
    yield head
    head.end()


@pytest.mark.ray
def test_a_followed_job_runs_the_code_that_was_sent_and_ends_with_its_exit_code(
    open_head: Head, project: Path, shared_root: Path, tmp_path: Path
) -> None:
    options = ("--runs", shared_root, "--submission-id", "first", "--follow")
    ended = open_head.distill("submit", "plan.yaml", *options, folder=project)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "/#/jobs/first" in ended.stdout
    assert "teacher  done" in ended.stdout
    assert "job `first`: succeeded" in ended.stderr
    assert str(open_head.folder) in (tmp_path / "code.txt").read_text()  # not our installation

    again = open_head.distill("submit", "plan.yaml", *options, folder=project)
    assert again.returncode == 2
    assert again.stderr.strip().count("\n") == 0
    assert "has had a job `first`" in again.stderr

    failing = (
        "--runs",
        shared_root,
        "--set",
        "task.file=/nowhere/d.npz",
        "--submission-id",
        "second",
        "--wait",
    )
    failed = open_head.distill("submit", "plan.yaml", *failing, folder=project)
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert "job `second`: failed with exit code 2" in failed.stderr

    listed = open_head.distill("jobs", "list", folder=project).stdout
    assert [line.split()[0] for line in listed.splitlines()[1:]] == ["second", "first"]
    shown = open_head.distill("jobs", "status", "first", folder=project).stdout
    assert "succeeded, exit code 0" in shown
    logs = open_head.distill("jobs", "logs", "second", folder=project).stdout
    assert "error: --set task.file=/nowhere/d.npz: task.file" in logs


@pytest.mark.ray
def test_a_stopped_job_marks_its_run_as_interrupted(
    open_head: Head, project: Path, shared_root: Path
) -> None:
    root = shared_root
    earlier = set(root.glob("plans/away/*"))
    endless = (
        "--set",
        "stages.teacher.epochs=1000000",
        "--runs",
        root,
        "--submission-id",
        "endless",
        "--follow",
    )
    with subprocess.Popen(
        open_head.command("submit", "plan.yaml", *endless),
        cwd=project,
        env=open_head.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        try:
            assert following.stdout is not None
            while "teacher: running" not in (line := following.stdout.readline()):
                assert line, "the job has ended"
            following.send_signal(signal.SIGINT)
            _, errors = following.communicate(timeout=PATIENCE)
        finally:
            following.kill()
    assert following.returncode == 130
    assert "`distill jobs stop endless --address" in errors
    assert "running" in open_head.distill("jobs", "status", "endless", folder=project).stdout

    stopped = open_head.distill("jobs", "stop", "endless", folder=project)
    assert "job `endless`: stopped" in stopped.stdout, stopped.stderr
    [run] = set(root.glob("plans/away/*")) - earlier
    assert json.loads((run / "results.json").read_text())["status"] == "interrupted"


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_runs_as_a_job(open_head: Head, project: Path, shared_root: Path) -> None:
    add_search(project)
    ended = open_head.distill(
        "submit", "plan.yaml", "--tune", "--runs", shared_root, "--follow", folder=project
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    [search] = (shared_root / "searches").iterdir()
    assert f"results   {search}\n" in ended.stdout
    assert len(list((search / "trials").glob("*.json"))) == 2
    assert (search / "best.yaml").exists()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_what_is_installed_on_top_is_there_for_the_stages(
    open_head: Head, project: Path, shared_root: Path, tmp_path: Path, installer: str
) -> None:
    if installer == "uv" and importlib.util.find_spec("uv") is None:
        pytest.skip("Ray would fetch uv from the internet")
    wheel = write_wheel(tmp_path, f"extra_{installer}")
    module = project / "my_nets" / "small.py"
    module.write_text(module.read_text().replace("    Path(", f"    import extra_{installer}\n\n    Path("))
    own = f"stages.teacher.seed={20 + len(installer)}"
    options = ("--runs", shared_root, "--set", own, f"--{installer}", wheel, "--follow")
    ended = open_head.distill("submit", "plan.yaml", *options, folder=project)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "teacher  done" in ended.stdout
    assert importlib.util.find_spec(f"extra_{installer}") is None, "it was there anyway"


def write_wheel(folder: Path, name: str) -> Path:
    """A package of one empty module, which needs no network to install."""
    wheel, information = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{information}/RECORD", "")
    return wheel


@pytest.mark.ray
def test_the_doctor_visits_the_nodes_as_a_job(open_head: Head, project: Path, tmp_path: Path) -> None:
    ended = open_head.distill("doctor", "plan.yaml", "--runs", tmp_path / "runs", folder=project)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "my_nets.small" in ended.stdout
    assert "reads and writes the same files" in ended.stdout


@pytest.mark.ray
@pytest.mark.parametrize("more", [("--dry-run",), ()])
def test_a_plan_that_no_node_can_run_is_refused_before_it_is_sent(
    open_head: Head, project: Path, more: tuple[str, ...]
) -> None:
    too_large = ("--set", "stages.teacher.resources={workers: 2, cpus: 3}", "--runs", "/r")
    refused = open_head.distill("submit", "plan.yaml", *too_large, *more, folder=project)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "teacher" in refused.stderr
    assert "job " not in refused.stdout


@pytest.mark.ray
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "wants a token and this client sent none"),
        ({"RAY_AUTH_TOKEN": "w" * 64}, "refuses this client's token"),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere/token"}, "token file `/nowhere/token` cannot be read"),
    ],
)
def test_a_guarded_head_wants_the_right_token(
    guarded_head: Head, project: Path, variables: dict[str, str], words: str
) -> None:
    refused = guarded_head.distill("jobs", "list", folder=project, **variables)
    assert refused.returncode == 2
    assert words in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.ray
def test_with_the_token_a_job_runs_and_reaches_the_ray_cluster(
    guarded_head: Head, project: Path, shared_root: Path
) -> None:
    options = ("--runs", shared_root, "--set", "stages.teacher.seed=8", "--wait")
    token: dict[str, Any] = {"RAY_AUTH_TOKEN": guarded_head.token}
    ended = guarded_head.distill("submit", "plan.yaml", *options, folder=project, **token)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "succeeded" in ended.stderr
