"""Runs a graph: whatever is ready and fits starts; a failure stops only what depends on it.

The scheduler owns every stage that it starts through a lease, so that two drivers over one storage root never do
the same work: the second waits for the first one's result. What is done is never done twice; what is damaged is
named and done again.
"""

import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from raydistill.errors import PlanError, StoreError
from raydistill.execution.gpu_share import settled, share_of
from raydistill.execution.needed import WHY_NOT, not_needed
from raydistill.execution.ready import ReadyStages
from raydistill.execution.request import Backend, Outcome, StageRequest, build_request
from raydistill.execution.stacks import alike, size_of_stack, why_alone
from raydistill.plan.order import Graph, Node
from raydistill.runs.context import claim_attempt
from raydistill.runs.folder import StageFolder
from raydistill.runs.lease import Leases
from raydistill.runs.placement import STARTING
from raydistill.runs.plan_run import NodeState, finished_record
from raydistill.runs.record import Record
from raydistill.runs.remote_stage import refresh_stages
from raydistill.runs.run_files import SUCCEEDED, Status
from raydistill.tasks.task import Task

POLL_SECONDS = 0.5  # a stage that ends is heard at once; an interrupt, or another driver's result, so late
RECHECK_SECONDS = 2.0  # between looks at a stage that another driver owns, or that found no room

log = logging.getLogger(__name__)

Watcher = Callable[[str, NodeState], None]
Surveyor = Callable[[Sequence[Node]], Mapping[str, str]]


def run_stages(
    graph: Graph,
    backend: Backend,
    *,
    task: Task,
    root: Path,
    forced: frozenset[str] = frozenset(),
    stop: threading.Event | None = None,
    watch: Watcher = lambda name, state: None,
    sees_test: bool = True,
    survey: Surveyor = lambda nodes: {},
) -> dict[str, NodeState]:
    """Run every node that has no result yet; returns how each ended. `forced` nodes run again from the start.

    Setting `stop` makes the running stages write a checkpoint and end. `watch` is called with a node's name and state
    after every change of it. What was judged on another test split is judged again. With `sees_test` False no stage
    sees the test split, and results without its judgement are good enough.

    `survey` is shown the nodes without a result before the first of them starts. What it has against some of them, by
    their names, stops them all.
    """
    run = _Run(graph, backend, task, root, forced, stop or threading.Event(), watch, sees_test, survey)
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
        sees_test: bool,
        survey: Surveyor,
    ) -> None:
        self.backend, self.task, self.root = backend, task, root
        # Our own: what is left to `gpus: auto` is settled here.
        self.graph = replace(graph, nodes=dict(graph.nodes))
        self.stop, self.watch, self.sees_test, self.survey = stop, watch, sees_test, survey
        # By folder: nodes that are the same stage share one, and it is made again once.
        self.forced = {graph.nodes[name].folder for name in forced}
        self.damaged: set[str] = set()
        self.sound: set[str] = set()
        self.is_short = False
        self.alone: dict[str, str] = {}  # why nodes are not stacked with others any more
        self.stacked: set[str] = set()
        self.deaths: Counter[str] = Counter()
        self.states = {name: NodeState() for name in graph.nodes}
        self.ready = ReadyStages(self.graph)
        self.leases = Leases()

    def until_finished(self) -> dict[str, NodeState]:
        """The story: look, start, wait, until nothing is left."""
        # First: what is done needs no room. Machines without a GPU show, and report on, what was trained on one.
        self._mark_cached()
        if self.ready.unfinished:
            # Before the survey, which reads all data: it takes no time to see that a stage never fits.
            self.backend.check_feasible(self._unfinished())
            self._refuse(self.survey(self._unfinished()))
        while self.ready.unfinished and not self.stop.is_set():
            self._start_ready()
            self._tell_what_waits()
            self._note_placements()
            # Starting may have finished all that was left: cached by another driver meanwhile, or skipped.
            if self.ready.unfinished:
                for name, outcome in self.backend.wait(POLL_SECONDS):
                    self._ended(name, outcome)
                self._note_placements()
        if self.stop.is_set():
            self._stop_all()
        return self.states

    def _refuse(self, errors: Mapping[str, str]) -> None:
        for node in self._unfinished() if errors else ():
            if node.name in errors:
                self._finish(node.name, "failed", error=errors[node.name])
            else:
                self._finish(node.name, "skipped", note="nothing was started")

    def _mark_cached(self) -> None:
        refresh_stages(self._folder(node).path for node in self.graph.nodes.values())
        finished = [name for name, node in self.graph.nodes.items() if self._has_result(node)]
        forced = [name for name, node in self.graph.nodes.items() if node.folder in self.forced]
        for name in finished:
            self._finish(name, "cached")
        for name in not_needed(self.graph, self.root, set(finished), set(forced)):
            self._finish(name, "not needed", note=WHY_NOT)

    def _has_result(self, node: Node) -> bool:
        folder = self._folder(node)
        if node.folder in self.forced:
            return False
        if node.folder in self.damaged:
            return folder.damage() is None  # another driver may have made it again
        try:
            record = folder.record()
        except StoreError as error:
            self._note_damage(node, error.message)
            return False
        if record is None or record.status != "done":
            return False
        # By size and time of change alone, 3 µs a file: to read all of a finished plan takes 0.7 s a GB.
        if damage := folder.damage_since(record):
            self._note_damage(node, damage)
            return False
        if record.missing_metrics(self.graph.metrics):
            return False
        return not self.sees_test or record.is_judged_on(self.graph.test)

    def _note_damage(self, node: Node, damage: str) -> None:
        log.warning("%s: %s; the stage runs again", node.name, damage)
        self.damaged.add(node.folder)

    def _start_ready(self) -> None:
        while not self.stop.is_set() and (name := self.ready.next()) is not None:
            self._try(self.graph.nodes[name])

    def _tell_what_waits(self) -> None:
        was_short, self.is_short = self.is_short, self.ready.has_waiting()
        if self.is_short or was_short:
            self.backend.want(self._waiting())

    def _waiting(self) -> Iterator[Node]:
        for name in self.ready.waiting_for_room():
            yield self.graph.nodes[name]

    def _note_placements(self) -> None:
        """Whether what was started has begun, and where: a stage may wait for Ray, or stand still on a dead node, for
        as long as it would have trained."""
        for name, placement in self.backend.placements().items():
            state = self.states[name]
            if state.status == "running" and state.placement != placement:
                state.placement = placement
                self.watch(name, state)

    def _try(self, node: Node) -> None:
        """Skip, reuse, or start one node whose inputs are finished."""
        missing = [read for read in node.reads if self.states[read].status not in SUCCEEDED]
        left_out = [read for read in node.reads if self.states[read].status == "not needed"]
        for read in left_out:  # it was not, before this node's own result turned out to be damaged
            self._make_again(read)
        if left_out:
            return
        if missing:
            how = _ended_how(self.states[missing[0]])
            self._finish(node.name, "skipped", note=f"needs `{missing[0]}`, which {how}")
            return
        if not self._inputs_are_sound(node):
            return
        folder = self._folder(node)
        try:
            # The result is looked for again under the lease: another driver may have finished between our first look
            # and now.
            if not self.leases.acquire(folder.path):
                self._wait_for_other_driver(node.name)
            elif self._has_result(node):
                self.leases.release(folder.path)
                self._finish(node.name, "cached")
            else:
                self._start(node)
        # A folder that cannot be written fails its own stage alone: it may be another user's.
        except StoreError as error:
            self.leases.release(folder.path)
            self._finish(node.name, "failed", error=error.message)

    def _start(self, node: Node) -> None:
        """Start a node whose lease we have, and beside it others that it may be stacked with."""
        alone, others = self.alone.get(node.name, ""), list[Node]()
        if not alone and finished_record(self._folder(node).path) is None:
            found = alike(self.graph, node, self.ready)
            if (first := next(found, None)) is not None and not (
                alone := why_alone(node.config, self.backend)
            ):
                others = [first, *found]
        requests = {node.name: self._claim(node, alone)}
        requests |= {} if alone else self._stacked_with(node, others)
        nodes = [self.graph.nodes[name] for name in requests]
        if not self.backend.try_start(*requests.values()):
            # A driver whose machines have room must not wait for us, who have none.
            for each in nodes:
                self.leases.release(self._folder(each).path)
                self.ready.put_back(each.name)
            for name in self.ready.found_no_room(node.name, seconds=RECHECK_SECONDS):
                self._note_no_room(name)
            return
        for each in nodes:
            self.ready.begin(each.name)
            state = self.states[each.name]
            state.started = time.monotonic()
            state.attempts += 1
            state.placement, state.has_no_room = STARTING, False
            self._change(each.name, "running")
        self.stacked.update(requests if len(requests) > 1 else ())

    def _stacked_with(self, node: Node, others: Sequence[Node]) -> dict[str, StageRequest]:
        """Requests for those of the others, which are like a node, that start beside it."""
        others = [other for other in others if other.name not in self.alone]
        if not others or not (room := self.backend.places(node.config.resources)):
            return {}
        wanted = size_of_stack(node.config, 1 + len(others), room) - 1
        requests: dict[str, StageRequest] = {}
        for other in others:
            if len(requests) < wanted and (request := self._claim_to_train(other)) is not None:
                self.ready.take(other.name)
                requests[other.name] = request
        return requests

    def _claim_to_train(self, node: Node) -> StageRequest | None:
        """The request for a node that waits for nothing but room, whose lease is ours then. What stands against it is
        told when its own turn comes."""
        folder = self._folder(node)
        with suppress(StoreError):
            if not self.leases.acquire(folder.path):
                return None
            if not self._has_result(node) and finished_record(folder.path) is None:
                return self._claim(node, "")
        self.leases.release(folder.path)
        return None

    def _claim(self, node: Node, alone: str) -> StageRequest:
        """The request for a new attempt at a node, whose folder is made ready for it."""
        attempt, folder = uuid.uuid4().hex, self._folder(node)
        # In this order: preparing may remove a claim with all else, and a process that starts before its attempt is
        # claimed takes itself for one that was superseded.
        self._prepare(node, folder)
        claim_attempt(folder, attempt)
        return build_request(
            node,
            self.graph,
            self.task,
            self.root,
            attempt,
            sees_test=self.sees_test,
            number=self.states[node.name].attempts + 1,
            alone=alone,
        )

    def _note_no_room(self, name: str) -> None:
        state = self.states[name]
        if not state.has_no_room:
            state.has_no_room = True
            self.watch(name, state)

    def _prepare(self, node: Node, folder: StageFolder) -> None:
        """Clear the folder for an attempt: unfinished work of this very stage stays, work that must be made again goes.

        A result that only has to be judged on another test split stays a result meanwhile.
        """
        folder.create(node.identity)
        if node.folder in self.forced | self.damaged:
            folder.forget()
            folder.create(node.identity)
            self.forced.discard(node.folder)
            self.damaged.discard(node.folder)
        if finished_record(folder.path) is None:
            folder.unfinish()

    def _inputs_are_sound(self, node: Node) -> bool:
        """Check once what earlier runs left; damaged inputs are made again before this node starts."""
        for read in node.reads:
            if read in self.sound or self.states[read].status != "cached":
                continue
            # Here every byte is read, once a run: a flipped bit in a teacher changes every result after it, and nobody
            # would know. Stages that finished in this run wrote their sums moments ago.
            if damage := self._folder(self.graph.nodes[read]).damage():
                self._note_damage(self.graph.nodes[read], damage)
                self._make_again(read)
                return False
            self.sound.add(read)
        return True

    def _make_again(self, name: str) -> None:
        self.ready.reopen(name)
        try:
            # The check before the first stage left it out, as it was cached then.
            self.backend.check_feasible([self.graph.nodes[name]])
        except PlanError as error:
            self._finish(name, "failed", error=error.message)
        else:
            self._change(name, "waiting")

    def _wait_for_other_driver(self, name: str) -> None:
        self.ready.put_back(name, seconds=RECHECK_SECONDS)
        if not self.states[name].note:
            self._change(name, "waiting", note="another driver runs it")

    def _ended(self, name: str, outcome: Outcome) -> None:
        self.ready.end(name)
        state, folder = self.states[name], self._folder(self.graph.nodes[name])
        with suppress(StoreError):  # the news of another machine's work; whoever reads the result looks again
            folder.refresh()
        state.seconds += outcome.seconds or (time.monotonic() - (state.started or time.monotonic()))
        self.deaths[name] += outcome.status == "lost" and not outcome.preempted
        # Before the outcome is looked at: whatever this attempt says, the folder is written by another driver now.
        if not self.leases.is_ours(folder.path):
            self._try_again(name, "another driver took it over while this one gave no sign of life")
        elif outcome.status == "apart":
            self.alone[name] = outcome.error or "it left its stack"
            state.attempts -= 1  # nothing went wrong
            self._change(name, "waiting")
            self.ready.put_back(name)
        # A stage that failed by its own error would fail again; only a process that died gets another attempt.
        elif outcome.status != "lost":
            self._warn_readers(name, outcome.warnings)
            self._finish(name, outcome.status, error=self._with_names(outcome.error))
            self._share_gpus(name)
        # Not for ever: a stage that runs out of memory ends its own process each time. But machines that are taken away
        # with notice have done their part.
        elif outcome.preempted or self.deaths[name] <= self.graph.nodes[name].config.resources.retries:
            if (
                not outcome.preempted
                and name in self.stacked
                and self.graph.nodes[name].config.stack == "auto"
            ):
                self.alone[name] = "the process of their stack died"  # it takes more memory
            self._try_again(
                name, f"{outcome.error or 'its process died'}; it continues from its last checkpoint"
            )
        else:
            times = "" if self.deaths[name] == 1 else f" {self.deaths[name]} times"
            self._give_up(name, f"its process died{times}: {outcome.error}")
        self.leases.release(folder.path)

    def _share_gpus(self, name: str) -> None:
        """Let what waits, and is like a training that ended, take the part of a GPU which that one needed."""
        if self.graph.nodes[name].config.resources.gpus != "auto":
            return
        record = finished_record(self._folder(self.graph.nodes[name]).path)
        if record is None or share_of(record) is None:
            return
        waiting = [node for node in self._unfinished() if self.states[node.name].status == "waiting"]
        for node in settled(waiting, self.graph, self.root).values():
            self.ready.reshape(node)

    def _with_names(self, error: str | None) -> str | None:
        """An error message with the plan's names in place of fingerprints, the only names that a stage's process
        knows."""
        for node in self.graph.nodes.values() if error else ():
            error = str(error).replace(f"`{node.fingerprint}`", f"`{node.name}`")
        return error

    def _warn_readers(self, name: str, warnings: tuple[str, ...]) -> None:
        """Log a stage's warnings now, and not only at the end of the run, when other stages are about to learn from
        it."""
        if warnings and any(name in node.reads for node in self._unfinished()):
            for text in warnings:
                log.warning("%s: %s", name, text)

    def _try_again(self, name: str, why: str) -> None:
        log.warning("%s: %s", name, why)
        self.states[name].placement = STARTING  # it may run anywhere next
        self._change(name, "waiting")
        self.ready.put_back(name)

    def _give_up(self, name: str, error: str) -> None:
        node = self.graph.nodes[name]
        record = Record(
            kind=node.kind,
            fingerprint=node.fingerprint,
            status="failed",
            seconds=self.states[name].seconds,
            finished=time.time(),
            error=error,
            nodes=self.states[name].placement.nodes,
            attempts=self.states[name].attempts,
        )
        try:
            self._folder(node).write_failure(record)
        except StoreError as second:  # a full disk must not hide the first error
            log.error("%s: %s", name, second.message)
        self._finish(name, "failed", error=error)

    def _stop_all(self) -> None:
        for name, outcome in self.backend.stop():
            self._ended(name, outcome)
        for node in self._unfinished():
            self._finish(node.name, "stopped", note="the run was interrupted")

    def _finish(self, name: str, status: Status, *, note: str = "", error: str | None = None) -> None:
        self.ready.finish(name)
        self._change(name, status, note=note, error=error)

    def _change(self, name: str, status: Status, *, note: str = "", error: str | None = None) -> None:
        state = self.states[name]
        state.status, state.note, state.error = status, note, error
        self.watch(name, state)

    def _unfinished(self) -> list[Node]:
        return [node for name, node in self.graph.nodes.items() if name in self.ready.unfinished]

    def _folder(self, node: Node) -> StageFolder:
        return StageFolder(self.root / node.folder)


def _ended_how(state: NodeState) -> str:
    return {"failed": "failed", "skipped": "was skipped", "stopped": "was stopped"}[state.status]
