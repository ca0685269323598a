"""What runs on a Ray cluster, and whether there is room for more. One thread uses this."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import ray

from raydistill.execution.makespan import Room
from raydistill.execution.ray_backend.attempts import (
    Attempt,
    ClaimingAttempt,
    GroupAttempt,
    WorkerAttempt,
    end_overdue,
    stacked_attempts,
)
from raydistill.execution.ray_backend.autoscaler import Growth, is_there, request
from raydistill.execution.ray_backend.cluster_health import ClusterHealth
from raydistill.execution.ray_backend.feasible import check_feasible
from raydistill.execution.ray_backend.pool import WorkerPool
from raydistill.execution.ray_backend.private import draining_nodes
from raydistill.execution.ray_backend.resources import (
    NO_LIMIT,
    Limit,
    Resources,
    resources_of_machine,
    resources_of_worker,
    total,
)
from raydistill.execution.request import Outcome, StageRequest
from raydistill.plan.order import Node
from raydistill.plan.resources import ResourcesConfig
from raydistill.runs.mirror import open_storage, storage_name
from raydistill.runs.placement import STARTING, Placement, nodes_of, read_places

STOP_SECONDS = 10.0
DRAIN_SECONDS = 1.0  # between looks at which nodes will go: most say so half a minute before

log = logging.getLogger(__name__)


class RunningStages:
    """Attempts by the name of their stage. Where Ray has an autoscaler and they `can_grow`, it is asked for room.

    Room is counted here, as the machines' total, or our `share` of it, within the `limit`, less what our own live
    workers hold: Ray queues whatever does not fit, without a word, and an idle worker that is kept warm looks as busy
    to Ray as any other.
    """

    def __init__(
        self,
        working_folder: str,
        health: ClusterHealth,
        *,
        on_report: Callable[[str, Mapping[str, float]], None] | None = None,
        share: Resources | None = None,
        limit: Limit = NO_LIMIT,
        can_grow: bool = True,
    ) -> None:
        self._working_folder = working_folder
        self._on_report = on_report
        self._share, self._limit = share, limit
        self._health = health
        self._pool = WorkerPool(working_folder)
        # What several back ends share, as the trials of a search do, is divided once: nobody waits for more.
        self._growth = Growth(request) if can_grow and share is None and is_there() else None
        self._running: dict[str, Attempt] = {}
        self._looked = 0.0
        self._draining: set[str] = set()
        self._leaving: dict[str, tuple[str, ...]] = {}

    def check_feasible(self, nodes: Sequence[Node]) -> None:
        """`PlanError` when the machines, or the limit, have no room for a node; where an autoscaler can be asked for
        machines, a word of what it will be asked for."""
        lacking = check_feasible(nodes, machines_alive(), self._limit, can_grow=self._growth is not None)
        if lacking:
            names = ", ".join(f"`{name}`" for name in dict.fromkeys(node.stage for node in lacking))
            log.warning(
                "no machine of the Ray cluster has room for %s now: its autoscaler is asked for some", names
            )

    def want(self, waiting: Iterable[Node]) -> None:
        """Ask the autoscaler, if there is one, for room for these beside what runs."""
        if self._growth is None or not self.has_ray():
            return
        machines = machines_alive()
        by_call = {
            tuple(attempt.refs): attempt for attempt in self._running.values()
        }  # a stack is one worker
        running = [
            resources_of_worker(attempt.request.shape, map(self._limit.of, machines))
            for attempt in by_call.values()
            for _ in range(attempt.request.shape.workers)
        ]
        wanted = [
            (node.name, resources_of_worker(node.config.resources, map(self._limit.of, machines)))
            for node in waiting
            for _ in range(node.config.resources.workers)
        ]
        self._growth.want(running, wanted, self._limit)

    def room(self) -> Room:
        """What a plan has to run in."""
        return Room(tuple(machines_alive()), self._limit)

    def has_ray(self) -> bool:
        """Whether Ray can be asked for anything now; `ClusterLost` when it never will again."""
        return self._health.hold()

    def try_start(
        self, request: StageRequest, *others: StageRequest, avoided: frozenset[str] = frozenset()
    ) -> bool:
        """Start a stage, and others in the same process, if there is room on other nodes than those with these ids."""
        machines = machines_alive(avoided)
        shape = self._shape(request.shape, machines)
        requests = [
            replace(each, root=storage_name(open_storage(each.root).resolve())) for each in (request, *others)
        ]
        attempts = self._start(requests, shape, machines, avoided)
        self._running |= {attempt.request.name: attempt for attempt in attempts}
        return bool(attempts)

    def has_gpu_for(self, resources: ResourcesConfig) -> bool:
        """Whether a worker of this shape gets one; not when Ray cannot be asked."""
        return self.has_ray() and self._shape(resources, machines_alive()).gpus > 0

    def places(self, resources: ResourcesConfig) -> int:
        """How many stages of one worker of this shape could start now; 0 when Ray cannot be asked."""
        if not self.has_ray():
            return 0
        machines = machines_alive()
        return self._pool.room(self._shape(resources, machines), self._free(machines))

    def _shape(self, resources: ResourcesConfig, machines: list[Resources]) -> Resources:
        """What one worker holds."""
        return resources_of_worker(resources, map(self._limit.of, machines))

    def short_of_workers(self) -> str | None:
        """The storage root of attempts that more workers could join, if there are any."""
        return next((attempt.request.root for attempt in self._short()), None)

    def grow(self, avoided: frozenset[str]) -> None:
        """Let workers join where there is room, on other nodes than those with these ids."""
        machines = machines_alive(avoided)
        for attempt in self._short():
            attempt.grow(lambda: self._free(machines), avoided)

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        """Attempts that ended, as soon as there are some, at the latest after `seconds`.

        `ClusterLost` when the Ray cluster is gone: then none of them is to blame.
        """
        if self.has_ray():
            self._pool.end_long_idle()
            self._make_way()
        refs = list(
            {ref: None for attempt in self._running.values() for ref in attempt.refs}
        )  # a stack has one
        if not refs:
            time.sleep(seconds)
            return []
        ready, _ = ray.wait(refs, num_returns=1, timeout=seconds)
        if ready:
            # `ray.wait` gives no more than it was asked for: others that have ended must not wait for the next poll.
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
            # With the head all its nodes seem to die. Those outcomes would be four attempts used up in a second.
            if not self.has_ray():
                time.sleep(seconds)
                return []
        self._pass_on_reports()
        names = [name for name, attempt in self._running.items() if attempt.has_ended(ready)]
        ended = [(name, self._outcome_of(self._running.pop(name))) for name in names]
        return ended + self._end_overdue()

    def placements(self) -> dict[str, Placement]:
        """Whether the attempts have begun, and where; of those on a node that is gone, that."""
        if not self._running or not self.has_ray():
            return {}
        alive = living_nodes()
        return {name: placement_of(attempt, alive) for name, attempt in self._running.items()}

    def stop(self) -> list[tuple[str, Outcome]]:
        """End everything: by asking, and after `STOP_SECONDS` by force."""
        # All are asked before the first is waited for: they write their checkpoints side by side.
        for attempt in self._running.values():
            attempt.ask_to_stop()
        deadline = time.monotonic() + STOP_SECONDS
        ended: list[tuple[str, Outcome]] = []
        while self._running and (left := deadline - time.monotonic()) > 0:
            ended += self.wait(left)
        return ended + self._end_all()

    def close(self) -> None:
        """End every process, and need no more machines."""
        self._end_all()
        if self._growth is not None:
            self._growth.give_back()
        self._pool.close()

    def _start(
        self,
        requests: Sequence[StageRequest],
        shape: Resources,
        machines: Sequence[Resources],
        avoided: frozenset[str],
    ) -> Sequence[Attempt]:
        """The attempts at one stage, or at all of a stack; none where there is no room."""
        request, *others = requests
        workers = request.shape.workers
        if workers > 1 and request.workers_come_and_go:
            claiming = ClaimingAttempt(request, shape, self._pool)
            return [claiming] if claiming.grow(lambda: self._free(machines), avoided) else []
        free = self._free(machines)
        # Ray Train starts its own processes: a group has no use for warm ones, but for the room that they hold.
        if workers > 1:
            if not self._pool.make_room(shape * workers, free):
                return []
            return [GroupAttempt(request, shape, self._working_folder, avoided)]
        worker = self._pool.reuse(shape)
        if worker is None and self._pool.make_room(shape, free):
            worker = self._pool.start(shape, avoided)
        if worker is None:
            return []
        return (
            stacked_attempts(requests, worker, self._pool)
            if others
            else [WorkerAttempt(request, worker, self._pool)]
        )

    def _outcome_of(self, attempt: Attempt) -> Outcome:
        """How an attempt ended: of one whose node is gone, Ray's own words say no more than that a process died."""
        outcome, leaving = attempt.outcome(), self._leaving.pop(attempt.request.name, ())
        if outcome.preempted and leaving:
            return replace(outcome, error=f"its node `{', '.join(leaving)}` is about to go")
        if outcome.status == "lost":
            placement = placement_of(attempt, living_nodes())
            if placement.phase == "node lost":
                return replace(outcome, error=f"its node `{', '.join(placement.nodes)}` is gone")
        return outcome

    def _pass_on_reports(self) -> None:
        """What the stages have written down since the last look; without an `on_report` nothing is read."""
        if self._on_report is None:
            return
        for name, attempt in self._running.items():
            for line in attempt.metrics.added():
                self._on_report(name, line)

    def _short(self) -> list[ClaimingAttempt]:
        running = self._running.values()
        return [attempt for attempt in running if isinstance(attempt, ClaimingAttempt) and attempt.is_short]

    def _free(self, machines: Sequence[Resources]) -> Resources:
        return self._limit.of(self._share or total(machines)) - self._held()

    def _held(self) -> Resources:
        return self._pool.held + total(attempt.held for attempt in self._running.values())

    def _end_overdue(self) -> list[tuple[str, Outcome]]:
        names = [name for name, attempt in self._running.items() if attempt.deadline.is_over()]
        return [(name, end_overdue(self._running.pop(name))) for name in names]

    def _make_way(self) -> None:
        """Let stages write a checkpoint and go on elsewhere whose nodes have said that they will be gone."""
        if time.monotonic() - self._looked < DRAIN_SECONDS:
            return
        self._looked = time.monotonic()
        if not (draining := draining_nodes()):
            return
        if draining - self._draining:
            self._pool.end_idle()
        self._draining = draining
        for name, attempt in self._running.items():
            request = attempt.request
            places = read_places(request.place, request.attempt, request.shape.workers)
            going = [place for place in places if place["node_id"] in draining]
            if going and name not in self._leaving:
                self._leaving[name] = nodes_of(going)
                attempt.make_way()

    def _end_all(self) -> list[tuple[str, Outcome]]:
        ended = []
        for name, attempt in self._running.items():
            attempt.end()
            ended.append(
                (name, Outcome("lost", error=f"did not stop within {STOP_SECONDS:.0f} s and was ended"))
            )
        self._running.clear()
        return ended


def placement_of(attempt: Attempt, alive: Collection[str]) -> Placement:
    """Where an attempt is, given the ids of the nodes that live.

    Ray tells of a node's death by failing the calls that ran there; a group it restarts without a word to us.
    """
    request = attempt.request
    places = read_places(request.place, request.attempt, request.shape.workers)
    nodes = nodes_of(places)
    is_gone = [place["node_id"] not in alive for place in places]
    if any(is_gone) and (all(is_gone) or not request.workers_come_and_go):
        return Placement("node lost", nodes)
    if places:
        return Placement("running", nodes)
    return Placement("waiting for room") if attempt.is_queued() else STARTING


def living_nodes() -> set[str]:
    """The ids of nodes that the head still hears of: it gives a silent one up after half a minute."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def machines_alive(avoided: frozenset[str] = frozenset()) -> list[Resources]:
    """What each living machine of the Ray cluster has in all, but for nodes with these ids and those that will go."""
    avoided |= draining_nodes()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in avoided]
    return [resources_of_machine(node["Resources"], node["Labels"]) for node in nodes]
