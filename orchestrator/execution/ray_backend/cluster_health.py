"""The two processes of Ray that a driver cannot do without: the head, and the one that serves the driver's own machine.

Without the head, most of Ray's calls block until Ray ends this very process after a minute, with a page of its own
words; without the other, every worker that is started dies at once. So both are looked at before Ray is asked for
anything, and a run without them ends with one line. Whether they live is whether they take a connection.
"""

import socket
import time

import ray

from raydistill.errors import StageError

HEAD_SECONDS = 30.0  # a head that keeps its state elsewhere may be started again; Ray's own patience is 60 s
CONNECT_SECONDS = 2.0


class ClusterHealth:
    """Knows since when the head does not answer, and whether all is lost."""

    def __init__(self) -> None:
        context = ray.get_runtime_context()
        own = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
        self._head = _endpoint(context.gcs_address)
        self._own = (own["NodeManagerAddress"], own["NodeManagerPort"])
        self._silent_since: float | None = None
        self.are_lost = False

    def hold(self) -> bool:
        """Whether Ray can be asked for something now. `StageError` when there is nothing to wait for any more."""
        if _is_refused(self._own):
            raise self._loss("Ray's process on this machine")
        if _answers(self._head):
            self._silent_since = None
            return True
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        if now - self._silent_since >= HEAD_SECONDS:
            raise self._loss("the head of the Ray cluster, at `{}:{}`,".format(*self._head))
        return False

    def _loss(self, what: str) -> StageError:
        self.are_lost = True
        return StageError(
            f"{what} is gone; when the Ray cluster is back, run the plan again: what is done is kept, what was begun"
            " continues from its last checkpoint"
        )


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
