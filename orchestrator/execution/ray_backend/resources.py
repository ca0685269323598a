"""Arithmetic of resources: what a stage asks for, what machines have, how often one fits into the other."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from raydistill.plan.resources import ResourcesConfig

UNLIMITED = sys.maxsize  # more than any cluster has, and still a whole number
WHOLE = 10_000  # Ray counts CPUs and GPUs in ten-thousandths; in integers, 10 x 0.1 is 1
GIB = 2**30


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs in ten-thousandths, memory in bytes."""

    cpus: int = 0
    gpus: int = 0
    memory: int = 0

    def __add__(self, other: "Resources") -> "Resources":
        return Resources(self.cpus + other.cpus, self.gpus + other.gpus, self.memory + other.memory)

    def __sub__(self, other: "Resources") -> "Resources":
        return self + other * -1

    def __mul__(self, count: int) -> "Resources":
        return Resources(self.cpus * count, self.gpus * count, self.memory * count)

    def is_within(self, other: "Resources") -> bool:
        """Whether this much can be taken out of `other`."""
        return self.cpus <= other.cpus and self.gpus <= other.gpus and self.memory <= other.memory

    def __str__(self) -> str:
        parts = [_counted(self.cpus, "CPU"), _counted(self.gpus, "GPU")]
        if self.memory:
            parts.append(f"{self.memory / GIB:.1f} GiB of memory")
        return f"{', '.join(parts[:-1])} and {parts[-1]}"

    def to_ray(self) -> dict[str, float]:
        """As Ray names them; what is not asked for is left out."""
        named = {"CPU": self.cpus / WHOLE, "GPU": self.gpus / WHOLE, "memory": float(self.memory)}
        return {name: value for name, value in named.items() if value}


@dataclass(frozen=True)
class Limit:
    """What a plan may hold of a Ray cluster at once, in CPUs and GPUs; None: as much as there is."""

    cpus: float | None = None
    gpus: float | None = None

    @property
    def resources(self) -> Resources:
        """The most that it allows."""
        cpus, gpus = (UNLIMITED if most is None else _whole(most) for most in (self.cpus, self.gpus))
        return Resources(cpus, gpus, UNLIMITED)

    def of(self, resources: Resources) -> Resources:
        """As much of it as the plan may hold."""
        most = self.resources
        return Resources(
            min(resources.cpus, most.cpus), min(resources.gpus, most.gpus), min(resources.memory, most.memory)
        )

    def times(self, resources: Resources) -> int | None:
        """How often it allows this much; None: as often as there is room."""
        limited = ((self.cpus, resources.cpus), (self.gpus, resources.gpus))
        counts = [_whole(most) // used for most, used in limited if most is not None and used]
        return min(counts) if counts else None

    def __str__(self) -> str:
        given = {"--max-cpus": self.cpus, "--max-gpus": self.gpus}
        return " ".join(f"{option} {most:g}" for option, most in given.items() if most is not None)


NO_LIMIT = Limit()


def total(several: Iterable[Resources]) -> Resources:
    """The sum."""
    return sum(several, Resources())


def largest(several: Iterable[Resources]) -> Resources:
    """The least that holds any one of them."""
    listed = list(several)
    return Resources(*(max(getattr(one, part.name) for one in listed) for part in fields(Resources)))


def resources_of_machine(resources: Mapping[str, float]) -> Resources:
    """What a node of the Ray cluster says it has."""
    return Resources(
        _whole(resources.get("CPU", 0)), _whole(resources.get("GPU", 0)), int(resources.get("memory", 0))
    )


def resources_of_worker(resources: ResourcesConfig, machines: Iterable[Resources]) -> Resources:
    """What one worker of a stage asks for; `gpus` left out means one where the Ray cluster has any."""
    gpus = resources.gpus
    if gpus is None:
        gpus = float(any(machine.gpus for machine in machines))
    return Resources(_whole(resources.cpus), _whole(gpus), resources.memory_bytes)


def capacity(machine: Resources, worker: Resources) -> int:
    """How many such workers an empty machine holds. A worker's fraction of a GPU lies on one GPU."""
    counts = [machine.cpus // worker.cpus]
    if worker.gpus:
        per_gpu = WHOLE // worker.gpus
        counts.append(machine.gpus // WHOLE * per_gpu if per_gpu else machine.gpus // worker.gpus)
    if worker.memory:
        counts.append(machine.memory // worker.memory)
    return min(counts)


def _whole(value: Any) -> int:
    return round(float(value) * WHOLE)


def _counted(value: int, noun: str) -> str:
    return f"{value / WHOLE:g} {noun}{'' if value == WHOLE else 's'}"
