"""How long a graph takes on given machines when each stage's seconds are known: what the scheduler would do, in virtual
time."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, replace

from raydistill.execution.ray_backend.resources import NO_LIMIT, WHOLE, Limit, Resources, capacity

Shape = tuple[Resources, int, bool]


@dataclass(frozen=True)
class Job:
    """A stage that is to run: what it waits for of the other jobs, what each of its workers holds, and its seconds.

    Of jobs that could start the lowest `rank` does. Those that have `begun` hold their room already. Workers that
    `come_and_go` are as many as there is room for, at least one, and share what there is to do.
    """

    reads: tuple[str, ...]
    worker: Resources
    seconds: float
    rank: tuple[float, int]
    workers: int = 1
    come_and_go: bool = False
    begun: bool = False


@dataclass(frozen=True)
class Room:
    """Where jobs run: machines, all of them idle, of which at most `limit` may be held; or one job after another."""

    machines: tuple[Resources, ...]
    limit: Limit = NO_LIMIT
    one_by_one: bool = False


@dataclass(frozen=True)
class Schedule:
    """When the last job ends, in seconds from now, and how many ran at the same time at most."""

    seconds: float
    side_by_side: int


def schedule(jobs: Mapping[str, Job], room: Room) -> Schedule:
    """Run the jobs in virtual time."""
    return _Simulation(jobs, room).run()


class _Simulation:
    """Ready jobs wait in a queue per shape, as in `ReadyStages`: when one finds no room, no other of its shape does."""

    def __init__(self, jobs: Mapping[str, Job], room: Room) -> None:
        self.jobs, self.room = jobs, room
        self.free = list(room.machines)
        self.all_held = Resources()
        self.held: dict[str, list[int]] = {}
        self.missing = {name: sum(read in jobs for read in job.reads) for name, job in jobs.items()}
        self.readers: dict[str, list[str]] = {name: [] for name in jobs}
        for name, job in jobs.items():
            for read in job.reads:
                if read in jobs:
                    self.readers[read].append(name)
        self.queues: dict[Shape, list[tuple[tuple[float, int], str]]] = {}
        self.fits: dict[Shape, bool] = {}
        self.ends: list[tuple[float, str]] = []

    def run(self) -> Schedule:
        now, most, left = 0.0, 0, len(self.jobs)
        for name, job in self.jobs.items():
            if job.begun:
                self._start(name, self._placed(job) or [], now)
            elif not self.missing[name]:
                self._queue(name)
        while left:
            self._start_what_fits(now)
            most = max(most, len(self.ends))
            now, name = heapq.heappop(self.ends)
            left -= 1
            self._end(name)
        return Schedule(now, most)

    def _queue(self, name: str) -> None:
        job = self.jobs[name]
        shape = (job.worker, job.workers, job.come_and_go)
        heapq.heappush(self.queues.setdefault(shape, []), (job.rank, name))
        if shape not in self.fits:
            self.fits[shape] = self._ever_fits(job)

    def _start_what_fits(self, now: float) -> None:
        waiting = {shape: queue for shape, queue in self.queues.items() if queue}
        while waiting:
            shape = min(waiting, key=lambda shape: waiting[shape][0])
            name = waiting[shape][0][1]
            # What no machine has room for, even an idle one, runs elsewhere: on one that has yet to come.
            machines = self._placed(self.jobs[name]) if self.fits[shape] else []
            if machines is None:
                del waiting[shape]
                continue
            heapq.heappop(waiting[shape])
            self._start(name, machines, now)
            if not waiting[shape]:
                del waiting[shape]

    def _start(self, name: str, machines: list[int], now: float) -> None:
        job = self.jobs[name]
        self._hold(name, machines)
        takes = job.seconds * job.workers / len(machines) if job.come_and_go and machines else job.seconds
        heapq.heappush(self.ends, (now + takes, name))

    def _end(self, name: str) -> None:
        self._give_back(name)
        for reader in self.readers[name]:
            self.missing[reader] -= 1
            if not self.missing[reader] and not self.jobs[reader].begun:
                self._queue(reader)

    def _hold(self, name: str, machines: list[int]) -> None:
        worker = self.jobs[name].worker
        for machine in machines:
            self.free[machine] -= _on_one_gpu(worker)
        self.all_held += worker * len(machines)
        self.held[name] = machines

    def _give_back(self, name: str) -> None:
        worker, machines = self.jobs[name].worker, self.held.pop(name)
        for machine in machines:
            self.free[machine] += _on_one_gpu(worker)
        self.all_held -= worker * len(machines)

    def _placed(self, job: Job) -> list[int] | None:
        """The machines of the job's workers, if there is room for them now."""
        if self.room.one_by_one:
            return None if self.ends else []
        fewest = 1 if job.come_and_go else job.workers
        found: list[int] = []
        for machine, free in enumerate(self.free):
            if free.cpus < job.worker.cpus:  # most machines, most of the time
                continue
            found += [machine] * min(_capacity_left(free, job.worker), job.workers - len(found))
            if len(found) == job.workers:
                break
        while found and not self._is_allowed(self.all_held + job.worker * len(found)):
            found.pop()
        return found if len(found) >= fewest else None

    def _is_allowed(self, held: Resources) -> bool:
        return self.room.limit.of(held) == held

    def _ever_fits(self, job: Job) -> bool:
        if self.room.one_by_one:
            return True
        fewest = 1 if job.come_and_go else job.workers
        fits = sum(capacity(machine, job.worker) for machine in self.room.machines) >= fewest
        return fits and self._is_allowed(job.worker * fewest)


def _on_one_gpu(worker: Resources) -> Resources:
    """A worker's part of a GPU as the part that nobody else gets: three of 0.3 fill one."""
    return replace(worker, gpus=WHOLE // (WHOLE // worker.gpus)) if 0 < worker.gpus < WHOLE else worker


def _capacity_left(free: Resources, worker: Resources) -> int:
    """How many more workers a machine holds that has this much left."""
    part = _on_one_gpu(worker).gpus
    others = capacity(free, replace(worker, gpus=0))
    return min(others, free.gpus // part) if part else others
