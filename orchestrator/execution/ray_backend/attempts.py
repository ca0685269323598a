"""Attempts that run on the Ray cluster: on one stage worker, on several that come and go, or on a Ray Train group."""

import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

import ray

from raydistill.errors import StoreError
from raydistill.execution.deadline import DeadlineWatch, hung, read_stacks
from raydistill.execution.ray_backend.failures import describe_loss, record_failure
from raydistill.execution.ray_backend.launch import run_group
from raydistill.execution.ray_backend.placement import OUTSIDE, all_but
from raydistill.execution.ray_backend.pool import PooledWorker, WorkerPool
from raydistill.execution.ray_backend.private import has_process
from raydistill.execution.ray_backend.reservations import free_abandoned
from raydistill.execution.ray_backend.resources import Resources
from raydistill.execution.ray_backend.worker import STOP
from raydistill.execution.request import Outcome, StageRequest
from raydistill.runs.files import make_folder
from raydistill.runs.metrics_tail import MetricsTail
from raydistill.runs.mirror import open_storage, remove, send
from raydistill.runs.record import summary_of

SCRATCH = ".ray-train"
CANCEL_SECONDS = 5.0
LEAVE_SECONDS = 5.0  # others look ten times a second whether all is done
MAX_DEATHS = 8  # a node may take several with it; what kills each that tries would kill for ever
QUEUED_SECONDS = 5.0  # a process is there within one or two of being given room

log = logging.getLogger(__name__)


class Attempt(Protocol):
    """A running attempt. `held` is what it holds outside the pool."""

    request: StageRequest
    deadline: DeadlineWatch
    metrics: MetricsTail
    held: Resources
    is_asked_to_stop: bool

    @property
    def refs(self) -> Sequence[Any]:
        """Calls that tell of a change when they are ready."""
        ...

    def has_ended(self, ready: Collection[Any]) -> bool:
        """Whether the attempt is over, now that these calls are ready."""
        ...

    def is_queued(self) -> bool:
        """Whether Ray has no room for it, though we counted some: others use the Ray cluster, too."""
        ...

    def ask_to_stop(self) -> None:
        """Let it write a checkpoint and end."""
        ...

    def make_way(self) -> None:
        """The same, to go on elsewhere."""
        ...

    def end(self) -> None:
        """End its processes now."""
        ...

    def outcome(self) -> Outcome:
        """How it ended, once it has; frees what it used."""
        ...


class OneCall:
    """What attempts have that are over when their one call is."""

    ref: Any

    @property
    def refs(self) -> Sequence[Any]:
        """The call."""
        return (self.ref,)

    def has_ended(self, ready: Collection[Any]) -> bool:
        """Whether it is ready."""
        return self.ref in ready


class WorkerAttempt(OneCall):
    """A stage on a stage worker, which goes back to the pool unless the stage failed in it."""

    held = Resources()
    is_asked_to_stop = False

    def __init__(self, request: StageRequest, worker: PooledWorker, pool: WorkerPool) -> None:
        self.request, self.deadline = request, DeadlineWatch(request)
        self.metrics = MetricsTail(request.place)
        self._worker, self._pool = worker, pool
        # The call is queued in the actor until its process is up: nothing here waits for torch's import.
        self.ref = worker.actor.run.remote(request.to_dict())
        self._started = time.monotonic()

    def is_queued(self) -> bool:
        """No process has been given to the worker, for longer than it takes to start one."""
        return time.monotonic() - self._started > QUEUED_SECONDS and not has_process(self._worker.actor)

    def ask_to_stop(self) -> None:
        """The worker's second thread hears it."""
        self.is_asked_to_stop = True
        self.make_way()

    def make_way(self) -> None:
        """The same; the worker is not used again."""
        self._worker.actor.stop.remote(self.request.attempt)

    def end(self) -> None:
        """Kill the worker."""
        self._pool.end(self._worker)

    def outcome(self) -> Outcome:
        """How it ended."""
        outcome = unless_asked(self, read_outcome(self.ref, self.request.name))
        if outcome.status in ("done", "stopped"):
            self._pool.give_back(self._worker)
        else:
            # A stage that failed may have left threads, a CUDA context in error, or half of a module in its process.
            self._pool.end(self._worker)
        return outcome


class StackedAttempt(OneCall):
    """One of several stages that train on one stage worker as one batched model. The call tells how all of them ended;
    the worker is free once each has asked."""

    held = Resources()
    is_asked_to_stop = False

    def __init__(self, request: StageRequest, number: int, worker: "SharedWorker") -> None:
        self.request, self.deadline = request, DeadlineWatch(request)
        self.metrics = MetricsTail(request.place)
        self._number, self._worker = number, worker
        self.ref = worker.ref

    def is_queued(self) -> bool:
        """As the worker."""
        return self._worker.is_queued()

    def ask_to_stop(self) -> None:
        """The worker's second thread hears it."""
        self.is_asked_to_stop = True
        self.make_way()

    def make_way(self) -> None:
        """The same; the worker is not used again."""
        self._worker.pooled.actor.stop.remote(self.request.attempt)

    def end(self) -> None:
        """Kill the worker, and with it the others of the stack."""
        self._worker.end()

    def outcome(self) -> Outcome:
        """How it ended."""
        return unless_asked(self, self._worker.outcomes()[self._number])


class SharedWorker:
    """A stage worker that runs a stack: its call, and what it returned."""

    def __init__(self, requests: Sequence[StageRequest], pooled: PooledWorker, pool: WorkerPool) -> None:
        self.pooled, self._pool = pooled, pool
        self._names = [request.name for request in requests]
        self.ref = pooled.actor.run_stack.remote([request.to_dict() for request in requests])
        self._started = time.monotonic()
        self._outcomes: list[Outcome] | None = None
        self._is_held = True

    def is_queued(self) -> bool:
        """No process has been given to the worker, for longer than it takes to start one."""
        return time.monotonic() - self._started > QUEUED_SECONDS and not has_process(self.pooled.actor)

    def end(self) -> None:
        """Kill it, once."""
        if self._is_held:
            self._is_held = False
            self._pool.end(self.pooled)

    def outcomes(self) -> list[Outcome]:
        """How each stage ended. The worker goes back to the pool, unless one failed or stopped in it."""
        if self._outcomes is None:
            self._outcomes = read_outcomes(self.ref, self._names)
            if all(outcome.status in ("done", "apart") for outcome in self._outcomes):
                self._is_held = False
                self._pool.give_back(self.pooled)
            else:  # one that stopped may have been told to by the machine that it is on
                self.end()
        return self._outcomes


def stacked_attempts(
    requests: Sequence[StageRequest], worker: PooledWorker, pool: WorkerPool
) -> list[StackedAttempt]:
    """The attempts at stages that train together on one worker."""
    shared = SharedWorker(requests, worker, pool)
    return [StackedAttempt(request, number, shared) for number, request in enumerate(requests)]


class ClaimingAttempt:
    """A stage on stage workers that divide it by claims, up to as many as it asks for: begun with those for which there
    is room, joined by others when there is more. One that dies is replaced; what it had not finished is made again."""

    held = Resources()
    is_asked_to_stop = False

    def __init__(self, request: StageRequest, shape: Resources, pool: WorkerPool) -> None:
        self.request, self.deadline = request, DeadlineWatch(request)
        self.metrics = MetricsTail(request.place)
        self._shape, self._pool = shape, pool
        self._running: dict[Any, tuple[int, PooledWorker]] = {}
        self._missing = deque(range(request.shape.workers))
        self._deaths = 0
        self._outcome: Outcome | None = None
        self._started = self._over = time.monotonic()

    @property
    def is_short(self) -> bool:
        """Whether more workers could help."""
        return self._outcome is None and bool(self._missing)

    def grow(self, free: Callable[[], Resources], avoided: frozenset[str]) -> bool:
        """Take workers as long as there is room; returns whether there are any."""
        while self._missing:
            worker = self._pool.reuse(self._shape)
            if worker is None and self._pool.make_room(self._shape, free()):
                worker = self._pool.start(self._shape, avoided)
            if worker is None:
                break
            rank = self._missing.popleft()
            self._running[worker.actor.run.remote(self.request.to_dict(), rank)] = (rank, worker)
        return bool(self._running)

    @property
    def refs(self) -> Sequence[Any]:
        """The calls of its workers."""
        return tuple(self._running)

    def has_ended(self, ready: Collection[Any]) -> bool:
        """Whether its main worker is done and the others have left, or one has failed."""
        for ref in [ref for ref in self._running if ref in ready]:
            self._note(*self._running.pop(ref), unless_asked(self, read_outcome(ref, self.request.name)))
        if self._outcome is None:
            return False
        is_late = time.monotonic() - self._over > LEAVE_SECONDS
        return not self._running or is_late or self._outcome.status in ("failed", "lost")

    def _note(self, rank: int, worker: PooledWorker, outcome: Outcome) -> None:
        if outcome.status in ("done", "stopped"):
            self._pool.give_back(worker)
        else:
            self._pool.end(worker)
        if outcome.status == "lost" and self._deaths < MAX_DEATHS:
            self._deaths += not outcome.preempted
            # The main one first: only it can finish the stage.
            self._missing.insert(0 if rank == 0 else len(self._missing), rank)
        elif self._outcome is None and (rank == 0 or outcome.status in ("failed", "lost")):
            self._outcome, self._over = outcome, time.monotonic()

    def is_queued(self) -> bool:
        """No process has been given to any of them, for longer than it takes to start one."""
        is_late = time.monotonic() - self._started > QUEUED_SECONDS
        return is_late and not any(has_process(worker.actor) for _, worker in self._running.values())

    def ask_to_stop(self) -> None:
        """All of them hear it; none is replaced."""
        self.is_asked_to_stop = True
        self._missing.clear()
        for _, worker in self._running.values():
            worker.actor.stop.remote(self.request.attempt)

    def make_way(self) -> None:
        """Nothing: whoever works on a node that goes is replaced, and loses a piece."""

    def end(self) -> None:
        """Kill them."""
        for _, worker in self._running.values():
            self._pool.end(worker)
        self._running.clear()

    def outcome(self) -> Outcome:
        """How it ended; who has not left by now is killed."""
        assert self._outcome is not None
        self.end()
        return self._outcome


class GroupAttempt(OneCall):
    """A stage on several workers. The call that runs Ray Train holds nothing; the group's workers hold `held`."""

    is_asked_to_stop = False

    def __init__(
        self, request: StageRequest, shape: Resources, working_folder: str, avoided: frozenset[str]
    ) -> None:
        self.request, self.deadline = request, DeadlineWatch(request)
        self.metrics = MetricsTail(request.place)
        self._scratch = make_folder(open_storage(request.root).resolve() / SCRATCH / request.attempt)
        self.held = shape * request.shape.workers
        # A remote function, and without CPUs: Ray Train cannot be cancelled but by killing the process that it runs in,
        # and an actor that held a CPU while its workers wait for theirs would wait for ever on a full machine.
        launch = ray.remote(
            num_cpus=0,
            max_retries=0,  # a second run beside a first one that is only slow would write the same files
            runtime_env=_naming_this_cluster(),
            scheduling_strategy=OUTSIDE,
            label_selector=all_but(avoided),
        )
        self.ref = launch(run_group).remote(
            {
                "request": request.to_dict(),
                "workers": request.shape.workers,
                "resources": shape.to_ray(),
                "uses_gpus": shape.gpus > 0,
                "label_selector": all_but(avoided, shape.labels),
                "scratch": str(self._scratch),
                "stop_file": f"{SCRATCH}/{request.attempt}/{STOP}",
                "working_folder": working_folder,
            }
        )

    def is_queued(self) -> bool:
        """Ray Train keeps that to itself."""
        return False

    def ask_to_stop(self) -> None:
        """Rank 0 looks for this file, and the loop tells the other ranks."""
        self.is_asked_to_stop = True
        self.make_way()

    def make_way(self) -> None:
        """The same."""
        (self._scratch / STOP).touch()
        send(self._scratch / STOP)

    def end(self) -> None:
        """Kill the call; Ray Train's processes follow it, and their resources come back within about a second."""
        # Workers are dead 0.2 s later; whoever asks for their room sooner than after this wait finds it taken.
        ray.cancel(self.ref, force=True)
        ray.wait([self.ref], timeout=CANCEL_SECONDS)
        self._clean_up()

    def outcome(self) -> Outcome:
        """How it ended."""
        outcome = unless_asked(self, read_outcome(self.ref, self.request.name))
        self._clean_up()
        if outcome.status == "lost":
            free_abandoned()
        return outcome

    def _clean_up(self) -> None:
        remove(self._scratch)
        shutil.rmtree(self._scratch, ignore_errors=True)
        with suppress(OSError):  # other groups still use it
            self._scratch.parent.rmdir()


def _naming_this_cluster() -> dict[str, Any]:
    """The environment of a group's processes: which Ray cluster is theirs.

    Ray Train has a process that frees the resources of a group whose controller was killed. It looks for the
    controller in whatever Ray cluster it finds on the machine unless this names one; where two drivers run, or one
    beside a `ray start`, it finds none or the other, and keeps the resources for ever or takes them at once.
    """
    return {"env_vars": {"RAY_API_SERVER_ADDRESS": ray.get_runtime_context().gcs_address}}


def end_overdue(attempt: Attempt) -> Outcome:
    """End an attempt that hangs. Its record says where."""
    attempt.end()
    free_abandoned()
    error = hung(attempt.request)
    try:
        record_failure(attempt.request.to_dict(), error, read_stacks(attempt.request))
    except StoreError as second:  # a full disk must not hide the first error
        log.error("%s", second.message)
    return Outcome("failed", error=error)


def unless_asked(attempt: Attempt, outcome: Outcome) -> Outcome:
    """An attempt that stopped, and nobody here asked it to: its process was told to end."""
    if outcome.status != "stopped" or attempt.is_asked_to_stop:
        return outcome
    return replace(outcome, status="lost", error="its process was told to end", preempted=True)


def read_outcome(ref: Any, stage: str) -> Outcome:
    """The outcome that a call returned, or what its end by Ray means for the stage."""
    try:
        return Outcome(**ray.get(ref))
    except ray.exceptions.RayError as error:
        return outcome_of(error, stage)


def read_outcomes(ref: Any, stages: Sequence[str]) -> list[Outcome]:
    """The same of a call for several stages."""
    try:
        return [Outcome(**values) for values in ray.get(ref)]
    except ray.exceptions.RayError as error:
        return [outcome_of(error, stage) for stage in stages]


def outcome_of(error: ray.exceptions.RayError, stage: str) -> Outcome:
    """What an error of a call means for the stage that it was for."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return Outcome("failed", error=summary_of(error.cause or error))
    # A worker whose `__init__` raises would do so again: a missing library, not a machine that died.
    if isinstance(error, ray.exceptions.RayActorError) and error.actor_init_failed:
        return Outcome("failed", error=f"a stage worker does not start: {str(error).splitlines()[-1]}")
    return Outcome("lost", error=describe_loss(stage, error))
