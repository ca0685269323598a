"""The two processes of Ray that a driver cannot do without: the head, and the one that serves the driver's own machine.

Without the head, most of Ray's calls block until Ray aborts this very process after a minute, with a page of its own
words; without the other, every worker that is started dies at once. So both are looked at before Ray is asked for
anything, and once a second while it answers: a run without them ends with one line. Whether they live is whether they
take a connection.
"""

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import ray

from raydistill.errors import ClusterLost

HEAD_SECONDS = 30.0  # a head that keeps its state elsewhere may be started again; Ray's own patience is 60 s
OWN_HEAD_SECONDS = 4.0  # that of a cluster which this process has started, nobody starts again
CONNECT_SECONDS = 2.0
LOOK_SECONDS = 1.0

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class ClusterHealth:
    """Knows since when the head does not answer, and whether all is lost. `patience`: seconds for it to come back."""

    def __init__(self, patience: float) -> None:
        context = ray.get_runtime_context()
        own = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
        self._head = _endpoint(context.gcs_address)
        self._own = (own["NodeManagerAddress"], own["NodeManagerPort"])
        self._patience = patience
        self._silent_since: float | None = None
        self._lock = threading.Lock()
        self.is_lost = False

    def hold(self) -> bool:
        """Whether Ray can be asked for something now. `ClusterLost` when there is nothing to wait for any more."""
        with self._lock:
            return self._hold()

    def _hold(self) -> bool:
        if _is_refused(self._own):
            raise self._loss("Ray's process on this machine")
        now = time.monotonic()
        if _answers(self._head):
            if self._silent_since is not None:
                log.warning("the head of the Ray cluster answers again")
            self._silent_since = None
            return True
        if self._silent_since is None:
            self._silent_since = now
            log.warning(
                "%s does not answer; waiting %g s for it. What is done is kept",
                self._name_of_head(),
                self._patience,
            )
        if now - self._silent_since >= self._patience:
            raise self._loss(self._name_of_head())
        return False

    def _name_of_head(self) -> str:
        return "the head of the Ray cluster, at `{}:{}`,".format(*self._head)

    def _loss(self, what: str) -> ClusterLost:
        self.is_lost = True
        return ClusterLost(
            f"{what} is gone; the same command goes on when the Ray cluster is back: what is done is kept, what was"
            " begun continues from its last checkpoint"
        )


def health_of(is_own: bool) -> ClusterHealth:
    """Of the Ray cluster that this process has joined, or started on its own machine."""
    return ClusterHealth(OWN_HEAD_SECONDS if is_own else HEAD_SECONDS)


class GuardedCalls:
    """Calls to Ray, one after another on a thread of their own, so that whoever waits for one can give it up.

    A call that the head was to answer, and does not, blocks in Ray's core, where no signal and no exception reaches it.
    """

    def __init__(self, health: ClusterHealth) -> None:
        self.health = health
        self._waiting: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="ray calls", daemon=True).start()

    def __call__(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """What the function returns or raises; `ClusterLost` when the Ray cluster is lost while it runs."""
        call = _Call(function, arguments)
        self._waiting.put(call)
        while not call.is_over.wait(LOOK_SECONDS):
            self.health.hold()
        if call.error is not None:
            raise call.error
        result: Result = call.result
        return result

    def end(self) -> None:
        """No call comes any more."""
        self._waiting.put(None)

    def _work(self) -> None:
        while (call := self._waiting.get()) is not None:
            try:
                call.result = call.function(*call.arguments)
            except BaseException as error:  # it is the caller's
                call.error = error
            call.is_over.set()


class _Call:
    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments = function, arguments
        self.is_over = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None


def _endpoint(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _answers(endpoint: tuple[str, int]) -> bool:
    try:
        socket.create_connection(endpoint, timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _is_refused(endpoint: tuple[str, int]) -> bool:
    """Nobody listens there. A machine that is too busy to answer is another matter."""
    try:
        socket.create_connection(endpoint, timeout=CONNECT_SECONDS).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
