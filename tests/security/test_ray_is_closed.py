"""A Ray that `distill` starts obeys nobody else; one that it joins is met as it is."""

import http.client
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

from raydistill.errors import PlanError
from raydistill.execution.ray_backend import tokens
from raydistill.execution.ray_backend.tokens import (
    QUESTION,
    give_back,
    guard_own_cluster,
    match_cluster,
)

PATIENCE = 120.0
PLAN = """\
name: open
task: {name: tensors, file: data.npz}
stages:
  model: {stage: train, model: {name: mlp, widths: [4]}, epochs: EPOCHS}
"""
TOKEN = "s" * 64
# One question to each kind of server: the head's, a node's, a worker's.
SERVICES = (
    "NodeInfoGcsService/CheckAlive",
    "NodeManagerService/GetNodeStats",
    "CoreWorkerService/GetCoreWorkerStats",
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    labels = np.arange(60) % 3
    np.savez(tmp_path / "data.npz", inputs=np.eye(3, dtype=np.float32)[labels], labels=labels)
    (tmp_path / "plan.yaml").write_text(PLAN.replace("EPOCHS", "1"))
    (tmp_path / "home").mkdir()
    return tmp_path


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    return kept | {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"} | more


def distill(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "raydistill.cli", *words]


def listening(process: psutil.Process) -> set[int]:
    """Ports on which a process and all that it started accept connections."""
    ports = set()
    for one in (process, *process.children(recursive=True)):
        try:
            ports |= {at.laddr.port for at in one.net_connections("tcp") if at.status == psutil.CONN_LISTEN}
        except psutil.NoSuchProcess:
            continue
    return ports


def asked(port: int, service: str) -> str:
    """What a server of Ray's answers to a stranger with a token of his own; without one it is no other answer."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for metadata in (None, [("authorization", f"Bearer {'w' * 64}")]):
            try:
                channel.unary_unary(f"/ray.rpc.{service}")(b"", timeout=5, metadata=metadata)
            except grpc.RpcError as error:
                code = str(error.code().name)
            else:
                return "OK"
    return code


def submitted(port: int, path: str) -> int:
    """What a stranger's job is answered; 0 where nobody takes jobs, such as a page of numbers about the machine."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("POST", path, '{"entrypoint": "id"}', {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return 0 if answer.read().startswith(b"# HELP") else answer.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


@pytest.mark.ray
@pytest.mark.parametrize("mode", ["disabled", None])
def test_a_stranger_is_refused_by_every_port_of_a_running_plan(project: Path, mode: str | None) -> None:
    (project / "plan.yaml").write_text(PLAN.replace("EPOCHS", "1000000"))
    own = environment(project / "home", **({} if mode is None else {"RAY_AUTH_MODE": mode}))
    words = distill("run", "plan.yaml", "--tracking-uri", "http://127.0.0.1:9")
    with subprocess.Popen(
        words, cwd=project, env=own, stderr=subprocess.DEVNULL, start_new_session=True
    ) as run:
        try:
            deadline = time.monotonic() + PATIENCE
            while not list(project.glob("runs/stages/*/metrics.jsonl")):
                assert run.poll() is None, "the plan has ended"
                assert time.monotonic() < deadline, "the plan does not run"
                time.sleep(0.2)
            ports = listening(psutil.Process(run.pid))
            answers = {service: [asked(port, service) for port in ports] for service in SERVICES}
            jobs = {submitted(port, f"/api/{who}/") for who in ("jobs", "job_agent/jobs") for port in ports}
        finally:
            os.killpg(run.pid, signal.SIGINT)
            run.wait(PATIENCE)
    assert all("UNAUTHENTICATED" in answer for answer in answers.values()), answers
    assert not any("OK" in answer for answer in answers.values()), answers
    assert jobs - {0, 404, 405} == {401}
    assert not (project / "home" / ".ray").exists()


@pytest.fixture(scope="module")
def clusters(free_ports: Callable[[int], list[int]]) -> Iterator[Callable[[str | None], str]]:
    """`ray start --head` with this token or without one; its address."""
    started: dict[str | None, tuple[str, subprocess.Popen[bytes], Path]] = {}

    def start(token: str | None) -> str:
        if token not in started:
            folder = Path(tempfile.mkdtemp(prefix="rd-"))
            port, client_port = free_ports(2)
            mode = (
                {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
                if token
                else {"RAY_AUTH_MODE": "disabled"}
            )
            words = ("start", "--head", "--block", "--num-cpus", "2", "--include-dashboard", "false")
            places = (
                "--port",
                str(port),
                "--ray-client-server-port",
                str(client_port),
                "--temp-dir",
                str(folder / "r"),
            )
            process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", *words, *places],
                env=environment(folder, **mode),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            started[token] = f"127.0.0.1:{port}", process, folder
            deadline = time.monotonic() + PATIENCE
            while not list((folder / "r").glob("session_latest/sockets/raylet*")):
                assert time.monotonic() < deadline, "the head does not start"
                time.sleep(0.2)
        return started[token][0]

    yield start
    for _, process, folder in started.values():
        process.terminate()
        process.wait(PATIENCE)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.parametrize("theirs", [None, TOKEN])
def test_a_plan_runs_on_a_cluster_as_it_is_whatever_token_lies_at_home(
    project: Path, clusters: Callable[[str | None], str], theirs: str | None
) -> None:
    (project / "home" / ".ray").mkdir()
    (project / "home" / ".ray" / "auth_token").write_text(TOKEN)
    words = distill("run", "plan.yaml", "--tracking-uri", "http://127.0.0.1:9", "--address", clusters(theirs))
    ended = subprocess.run(
        words, cwd=project, env=environment(project / "home"), capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ("has no token: this machine's is not used" in ended.stderr) == (theirs is None)


# The same without Ray: a server that wants a token, or none.


@pytest.fixture
def head() -> Iterator[Callable[[str | None], str]]:
    servers = []

    def serve(token: str | None) -> str:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if token and dict(context.invocation_metadata()).get("authorization") != f"Bearer {token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        server = grpc.server(futures.ThreadPoolExecutor(2))
        _, service, method = QUESTION.split("/")
        handlers = {method: grpc.unary_unary_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield serve
    for server in servers:
        server.stop(None).wait()


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path) -> Iterator[None]:
    """No token of the person who runs the tests, and all as it was afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path / "home"))
        patch.setattr(tokens, "_replaced", {})
        for name in (tokens.MODE, tokens.TOKEN, tokens.TOKEN_PATH):
            patch.delenv(name, raising=False)
        yield
        give_back()
    give_back()  # only now can Ray read the settings of the tests' shared cluster anew


@pytest.mark.parametrize(
    ("theirs", "mode", "ours", "words"),
    [
        (None, "token", TOKEN, "has no token, and `RAY_AUTH_MODE=token` is set here"),
        (TOKEN, "disabled", TOKEN, "wants a token, and `RAY_AUTH_MODE=disabled` keeps this client"),
        (TOKEN, None, None, "wants a token, and there is none here"),
        (TOKEN, None, "w" * 64, "refuses this client's token"),
    ],
)
def test_a_mismatch_is_named_in_one_line_before_anything_starts(
    head: Callable[[str | None], str],
    monkeypatch: pytest.MonkeyPatch,
    theirs: str | None,
    mode: str | None,
    ours: str | None,
    words: str,
) -> None:
    for name, value in ((tokens.MODE, mode), (tokens.TOKEN, ours)):
        if value:
            monkeypatch.setenv(name, value)
    with pytest.raises(PlanError, match=words) as raised:
        match_cluster(head(theirs))
    assert "\n" not in raised.value.message
    assert TOKEN not in raised.value.message


@pytest.mark.parametrize(("theirs", "mode"), [(None, "disabled"), (TOKEN, "token")])
def test_a_token_at_home_is_shown_to_a_cluster_that_wants_it_alone(
    head: Callable[[str | None], str], monkeypatch: pytest.MonkeyPatch, theirs: str | None, mode: str
) -> None:
    monkeypatch.setenv(tokens.TOKEN, TOKEN)
    match_cluster(head(theirs))
    assert os.environ[tokens.MODE] == mode
    give_back()
    assert tokens.MODE not in os.environ


@pytest.mark.parametrize("mode", ["disabled", "token", None])
def test_every_cluster_of_ours_gets_a_token_of_its_own(
    monkeypatch: pytest.MonkeyPatch, mode: str | None
) -> None:
    monkeypatch.setenv(tokens.TOKEN_PATH, "/nowhere")
    if mode:
        monkeypatch.setenv(tokens.MODE, mode)
    found = set()
    for _ in range(2):
        guard_own_cluster()
        assert os.environ[tokens.MODE] == "token"
        assert tokens.TOKEN_PATH not in os.environ
        found.add(os.environ[tokens.TOKEN])
        give_back()
    assert {len(token) for token in found} == {64}
    assert len(found) == 2
    assert os.environ.get(tokens.MODE) == mode
