"""Joining a Ray cluster or starting one, quietly, with errors that name the way out."""

import logging
import os
import re
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from raydistill.errors import DistillError, PlanError
from raydistill.execution.ray_backend.private import address_of_auto
from raydistill.execution.ray_backend.tokens import TOKEN_HINT, give_back, guard_own_cluster, match_cluster
from raydistill.runs.record import summary_of

REACH_SECONDS = 5.0
PART_SECONDS = 10.0

ENVIRONMENT = {
    # One report of Ray's own per lost worker would land on stdout, between our results: Ray has no switch for it but
    # this filter. The same facts are in the stage's outcome and in Ray's session folder.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the user's machines unasked
}

JOINING = {"RAY_NUM_REDIS_GET_RETRIES": "5"}  # seconds until a refused client gives up, in place of 20

log = logging.getLogger(__name__)


def connect(address: str | None, cpus: int | None = None) -> bool:
    """Join the Ray cluster at `address`, or at `RAY_ADDRESS`, or start one here with `cpus` CPUs (default: all).

    Returns False if this process had already joined one, which is then used. `PlanError` when the address cannot be
    used, `DistillError` when Ray does not start.
    """
    address = meant_address(address)
    _check_reachable(address)
    if _has_joined():
        return False
    _prepare_environment(address)

    # Warnings of Ray are about its own workings; what a user can change, our outcomes say.
    logging.getLogger("ray").setLevel(logging.ERROR)
    with _own_signal_handlers():
        if address == "local":
            _start(cpus)
        else:
            _join(address)
    return True


def leave(*, is_lost: bool = False) -> None:
    """Part from the Ray cluster; one that was started here ends. One that `is_lost` may answer nothing."""
    import ray

    # Ray takes leave of a head that does not answer for a minute, and then aborts the process with a page of its own.
    if is_lost:
        parting = threading.Thread(target=ray.shutdown, name="parting", daemon=True)
        parting.start()
        parting.join(PART_SECONDS)
    else:
        ray.shutdown()
    give_back()


def meant_address(address: str | None) -> str:
    """The Ray cluster that is meant: as asked, else as the environment says, else one of this machine's own."""
    return address or os.environ.get("RAY_ADDRESS") or "local"


def is_local(address: str | None) -> bool:
    """Whether a Ray cluster is started here, rather than joined."""
    return meant_address(address) == "local"


def _has_joined() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _start(cpus: int | None) -> None:
    """Start a Ray cluster on this machine.

    The dashboard stays on: without it Ray Train leaks the resources of a group that is cancelled.
    """
    import ray

    try:
        context = ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=True,  # 1 s more; see above
            log_to_driver=False,
            configure_logging=False,
        )
    except Exception as error:  # Ray raises plain `Exception` when its processes take too long to come up
        raise DistillError(
            f"Ray does not start on this machine: {summary_of(error)}; `--local` runs the plan without it"
        ) from error
    log.info("started Ray on this machine (dashboard: http://%s)", context.dashboard_url)


def _join(address: str) -> None:
    import ray

    with _core_messages() as messages:
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            messages.seek(0)
            if isinstance(error, ray.exceptions.AuthenticationError) or "AuthToken" in messages.read():
                raise PlanError(
                    f"the Ray cluster at `{address}` refuses this client's token: {TOKEN_HINT}"
                ) from error
            if mismatch := _other_versions(str(error)):
                raise PlanError(f"the Ray cluster at `{address}` {mismatch}") from error
            raise PlanError(f"cannot use the Ray cluster at `{address}`: {summary_of(error)}") from error
    log.info("joined the Ray cluster at %s", address)


def _other_versions(message: str) -> str | None:
    """What Ray says over several lines when versions differ, in one."""
    found = re.findall(r"Ray: (\S+)\s+Python: (\S+)", message)
    if "ersion mismatch" not in message or len(found) < 2:
        return None
    (ray, python), (own_ray, own_python) = found[:2]
    return (
        f"runs Ray {ray} on Python {python}, this machine Ray {own_ray} on Python {own_python}: make them equal, or let"
        " `distill submit` run the plan with the Ray cluster's own versions"
    )


@contextmanager
def _core_messages() -> Iterator[IO[str]]:
    """What Ray's core writes to stderr meanwhile: the only place where it says why it refuses a client.

    What we log meanwhile, such as the answer to a signal, is shown.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as messages:
        sys.stderr.flush()
        stderr = os.dup(2)
        handlers = [
            handler
            for handler in logging.getLogger().handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
        ]
        with os.fdopen(os.dup(2), "w", encoding=sys.stderr.encoding, errors=sys.stderr.errors) as shown:
            for handler in handlers:
                handler.setStream(shown)
            os.dup2(messages.fileno(), 2)
            try:
                yield messages
            finally:
                os.dup2(stderr, 2)
                os.close(stderr)
                for handler in handlers:
                    handler.setStream(sys.stderr)


def _prepare_environment(address: str) -> None:
    """Settings that Ray reads when it is imported or started; what the user has set stays."""
    for name, value in (ENVIRONMENT if address == "local" else ENVIRONMENT | JOINING).items():
        os.environ.setdefault(name, value)
    if address == "local":
        guard_own_cluster()
    elif where := (address_of_auto() if address == "auto" else address):
        match_cluster(where)


def _check_reachable(address: str) -> None:
    """Ray itself tries for over two minutes before it gives up on an address where nobody listens."""
    if address in ("local", "auto"):
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        raise PlanError(
            f"`{address}` is no address of a Ray cluster; write `host:6379`, as `ray start --head` printed it"
            " (`distill submit` is what takes the dashboard's `http://host:8265`)"
        )
    try:
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise PlanError(
            f"no Ray cluster answers at `{address}` ({error}); start one with `ray start --head`, or leave the"
            " address out to run on this machine"
        ) from None


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keep our answer to SIGTERM: `ray.init` puts its own in its place, which ends the process without a word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        if callable(handler):
            handler(signal.SIGTERM, None)
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGTERM, handler)
