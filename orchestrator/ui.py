"""The MLflow UI on a storage root's tracking store: one server process group, ended with the command."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO

import click

from raydistill.errors import DistillError
from raydistill.masking import mask
from raydistill.tracking import resolve_uri
from raydistill.tracking.own_store import artifacts_uri
from raydistill.tracking.store import open_client, reason

START_PAGE = "#/experiments?workflowType=machine_learning"  # else it opens on pages about agents
START_SECONDS = 90.0
STOP_SECONDS = 5.0
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


def serve(
    root: Path,
    tracking_uri: str | None = None,
    host: str = "127.0.0.1",
    port: int = 5000,
    on_ready: Callable[[str], None] = click.echo,
) -> None:
    """Serve MLflow's pages until interrupted; `on_ready` gets one line with the address once they answer.

    Raises `DistillError` when the port is taken or the server does not start.
    """
    uri = resolve_uri(root, tracking_uri)
    if uri.startswith(("http://", "https://")):
        on_ready(f"the runs are tracked by a server that has pages of its own: {mask(uri)}")
        return
    _check_port(host, port)
    _create_schema(uri, root)
    url = _url(host, port)
    with (
        tempfile.TemporaryFile() as output,
        _server(_command(root, host, port), _environment(uri), output) as server,
    ):
        _wait_until_healthy(server, url, output)
        on_ready(f"MLflow shows {mask(uri)} at {url}/{START_PAGE} (interrupt to stop)")
        with suppress(KeyboardInterrupt):
            server.wait()
            raise DistillError(f"the MLflow server ended: {_last_words(output)}")


def _command(root: Path, host: str, port: int) -> list[str]:
    options = {
        "--artifacts-destination": artifacts_uri(root),
        "--host": host,
        "--port": str(port),
        "--workers": "1",
    }
    return [sys.executable, "-m", "mlflow", "server", *(part for pair in options.items() for part in pair)]


def _environment(uri: str) -> dict[str, str]:
    """The server's environment: the store may be written with a password, which a command line would show."""
    return {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 2 processes and 0.5 GB instead of 13 and 2 GB
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


@contextmanager
def _server(
    command: list[str], environment: Mapping[str, str], output: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """The server in a process group of its own, which is gone afterwards, with all that it started."""
    process = subprocess.Popen(
        command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )
    try:
        with _interrupted_by_sigterm():
            yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM ends us like an interrupt, so that the server is stopped; Python alone would just die."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DistillError(
                f"cannot listen on {host}:{port}: {error.strerror or error}; choose another one with `--port`"
            ) from error


def _create_schema(uri: str, root: Path) -> None:
    """Make a new database before the server's processes do it all at once and crash."""
    try:
        open_client(uri, root).search_experiments(max_results=1)
    except DistillError:  # it says what to do
        raise
    except Exception as error:  # whatever the database's driver raises
        raise DistillError(f"the tracking store `{mask(uri)}` cannot be opened: {reason(error)}") from error


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str, output: IO[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise DistillError(f"the MLflow server does not start: {_last_words(output)}")
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{url}/health", timeout=2):
            return
        time.sleep(0.1)
    raise DistillError(f"the MLflow server did not answer within {START_SECONDS:g} s: {_last_words(output)}")


def _url(host: str, port: int) -> str:
    name = EVERYWHERE.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _last_words(output: IO[bytes]) -> str:
    output.seek(0)
    lines = mask(output.read().decode(errors="replace")).strip().splitlines()
    return lines[-1] if lines else "it said nothing"
