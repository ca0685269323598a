"""Runs a graph: whatever is ready and fits starts; a failure stops only what depends on it.

The scheduler owns every stage that it starts through a lease, so that two drivers over one storage root never do
the same work: the second waits for the first one's result. What is done is never done twice; what is damaged is
named and done again.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.errors import StoreError
from orchestrator.execution.request import Backend, Outcome, build_request
from orchestrator.plan.order import Graph, Node
from orchestrator.runs.context import claim_attempt
from orchestrator.runs.folder import RECORD, StageFolder
from orchestrator.runs.lease import Leases
from orchestrator.runs.plan_run import FINISHED, SUCCEEDED, NodeState
from orchestrator.runs.record import Record
from tasks.task import Task

MAX_ATTEMPTS = 4  # the first, and three after a process died
POLL_SECONDS = 0.5
RECHECK_SECONDS = 2.0  # between looks at a stage that another driver owns

log = logging.getLogger(__name__)

Watcher = Callable[[Mapping[str, NodeState]], None]


def run_stages(
    graph: Graph,
    backend: Backend,
    *,
    task: Task,
    root: Path,
    forced: frozenset[str] = frozenset(),
    stop: threading.Event | None = None,
    watch: Watcher = lambda states: None,
) -> dict[str, NodeState]:
    """Run every node that has no result yet; returns how each ended. `forced` nodes run again from the start.

    Setting `stop` ends the running stages at their next checkpoint. `watch` is called after every change.
    """
    run = _Run(graph, backend, task, root, forced, stop or threading.Event(), watch)
    try:
        return run.until_finished()
    finally:
        run.leases.close()


class _Run:
    """One execution of a graph."""

    def __init__(
        self,
        graph: Graph,
        backend: Backend,
        task: Task,
        root: Path,
        forced: frozenset[str],
        stop: threading.Event,
        watch: Watcher,
    ) -> None:
        self.graph, self.backend, self.task, self.root = graph, backend, task, root
        self.forced, self.stop, self.watch = set(forced), stop, watch
        self.states = {name: NodeState() for name in graph.nodes}
        self.leases = Leases()
        self.sound: set[str] = set()
        self.next_look: dict[str, float] = {}
        self.work_below = _work_below(graph)

    def until_finished(self) -> dict[str, NodeState]:
        """The story: look, start, wait, until nothing is left."""
        self._mark_cached()
        waiting = [self.graph.nodes[name] for name, state in self.states.items() if state.status == "waiting"]
        if waiting:
            self.backend.check_feasible(waiting)
        while not self.stop.is_set() and any(state.status not in FINISHED for state in self.states.values()):
            self._start_ready()
            for name, outcome in self.backend.wait(POLL_SECONDS if self._is_blocked() else 0.0):
                self._ended(name, outcome)
        if self.stop.is_set():
            self._stop_all()
        return self.states

    def _mark_cached(self) -> None:
        for name in self.graph.nodes:
            if name not in self.forced and self._has_result(name):
                self._change(name, "cached")

    def _has_result(self, name: str) -> bool:
        folder = self._folder(name)
        try:
            record = folder.record()
        except StoreError as error:
            log.warning("%s: %s; the stage runs again", name, error.message)
            return False
        return record is not None and record.status == "done"

    def _is_blocked(self) -> bool:
        """Whether nothing can be done before something ends elsewhere."""
        return all(
            state.status != "waiting" or not self._is_ready(name) for name, state in self.states.items()
        ) or any(state.status == "running" for state in self.states.values())

    def _start_ready(self) -> None:
        ready = [
            name for name, state in self.states.items() if state.status == "waiting" and self._is_ready(name)
        ]
        for name in sorted(ready, key=lambda name: -self.work_below[name]):
            if self.stop.is_set():
                return
            if time.monotonic() >= self.next_look.get(name, 0.0):
                self._try(name)

    def _is_ready(self, name: str) -> bool:
        return all(self.states[read].status in FINISHED for read in self.graph.nodes[name].reads)

    def _try(self, name: str) -> None:
        """Skip, reuse, or start one node whose inputs are finished."""
        node = self.graph.nodes[name]
        lost = [read for read in node.reads if self.states[read].status not in SUCCEEDED]
        if lost:
            self._change(name, "skipped", note=f"needs `{lost[0]}`, which {_ended_how(self.states[lost[0]])}")
            return
        if not self._inputs_are_sound(node):
            return
        folder = self._folder(name)
        try:
            folder.create(node.identity)
            if not self.leases.acquire(folder.path):
                self._wait_for_other_driver(name)
                return
            if name not in self.forced and self._has_result(name):
                self.leases.release(folder.path)
                self._change(name, "cached")
                return
            self._start(node, folder)
        except StoreError as error:
            self.leases.release(folder.path)
            self._change(name, "failed", error=error.message)

    def _start(self, node: Node, folder: StageFolder) -> None:
        attempt = uuid.uuid4().hex
        request = build_request(node, self.graph, self.task, self.root, attempt)
        if node.name in self.forced:
            folder.forget()
            folder.create(node.identity)
            self.forced.discard(node.name)
        (folder.path / RECORD).unlink(missing_ok=True)
        claim_attempt(folder, attempt)
        state = self.states[node.name]
        state.started = time.monotonic()
        if not self.backend.try_start(request):
            self.leases.release(folder.path)
            self.next_look[node.name] = time.monotonic() + POLL_SECONDS
            return
        state.attempts += 1
        self._change(node.name, "running")

    def _inputs_are_sound(self, node: Node) -> bool:
        """Check once what earlier runs left; damaged inputs are made again before this node starts."""
        for read in node.reads:
            if read in self.sound or self.states[read].status != "cached":
                continue
            if damage := self._folder(read).damage():
                log.warning("%s: %s; the stage runs again", read, damage)
                self.forced.add(read)
                self._change(read, "waiting")
                return False
            self.sound.add(read)
        return True

    def _wait_for_other_driver(self, name: str) -> None:
        self.next_look[name] = time.monotonic() + RECHECK_SECONDS
        if not self.states[name].note:
            self._change(name, "waiting", note="another driver runs it")

    def _ended(self, name: str, outcome: Outcome) -> None:
        state = self.states[name]
        state.seconds += outcome.seconds or (time.monotonic() - (state.started or time.monotonic()))
        self.leases.release(self._folder(name).path)
        # There is room now: whoever was refused is asked again, the longest chain first.
        self.next_look = {name: look for name, look in self.next_look.items() if self.states[name].note}
        if outcome.status == "lost" and state.attempts < MAX_ATTEMPTS:
            log.warning(
                "%s: %s; it continues from its last checkpoint", name, outcome.error or "its process died"
            )
            self._change(name, "waiting")
        elif outcome.status == "lost":
            self._record_loss(name, f"its process died {state.attempts} times: {outcome.error}")
        else:
            self._change(name, outcome.status, error=outcome.error)

    def _record_loss(self, name: str, error: str) -> None:
        node = self.graph.nodes[name]
        record = Record(
            kind=node.kind,
            fingerprint=node.fingerprint,
            status="failed",
            seconds=self.states[name].seconds,
            finished=time.time(),
            error=error,
        )
        self._folder(name).write_record(record)
        self._change(name, "failed", error=error)

    def _stop_all(self) -> None:
        for name, outcome in self.backend.stop():
            self._ended(name, outcome)
        for name, state in self.states.items():
            if state.status not in FINISHED:
                self._change(name, "stopped", note="the run was interrupted")

    def _change(self, name: str, status: str, *, note: str = "", error: str | None = None) -> None:
        state = self.states[name]
        state.status, state.note, state.error = status, note, error  # type: ignore[assignment]
        self.watch(self.states)

    def _folder(self, name: str) -> StageFolder:
        return StageFolder(self.root / self.graph.nodes[name].folder)


def _ended_how(state: NodeState) -> str:
    return {"failed": "failed", "skipped": "was skipped", "stopped": "was stopped"}[state.status]


def _work_below(graph: Graph) -> dict[str, float]:
    """Length of the longest chain of training epochs that waits for each node: the longest starts first."""
    below = dict.fromkeys(graph.nodes, 0.0)
    for name in reversed(list(graph.nodes)):
        node = graph.nodes[name]
        below[name] += float(getattr(node.config, "epochs", 1))
        for read in node.reads:
            below[read] = max(below[read], below[name])
    return below
