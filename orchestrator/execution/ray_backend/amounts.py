"""Arithmetic of resources: what a stage asks for, what machines have, how often one fits into the other."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from raydistill.plan.resources import ResourcesConfig

WHOLE = 10_000  # Ray counts CPUs and GPUs in ten-thousandths; in integers, 10 x 0.1 is 1
GIB = 2**30


@dataclass(frozen=True)
class Amount:
    """CPUs and GPUs in ten-thousandths, memory in bytes."""

    cpus: int = 0
    gpus: int = 0
    memory: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.cpus + other.cpus, self.gpus + other.gpus, self.memory + other.memory)

    def __sub__(self, other: "Amount") -> "Amount":
        return self + other * -1

    def __mul__(self, count: int) -> "Amount":
        return Amount(self.cpus * count, self.gpus * count, self.memory * count)

    def is_within(self, other: "Amount") -> bool:
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


def total(amounts: Iterable[Amount]) -> Amount:
    """The sum."""
    return sum(amounts, Amount())


def largest(amounts: Iterable[Amount]) -> Amount:
    """The least that holds any one of them."""
    several = list(amounts)
    return Amount(*(max(getattr(amount, part.name) for amount in several) for part in fields(Amount)))


def amount_of_machine(resources: Mapping[str, float]) -> Amount:
    """What a node of the Ray cluster says it has."""
    return Amount(
        _whole(resources.get("CPU", 0)), _whole(resources.get("GPU", 0)), int(resources.get("memory", 0))
    )


def amount_of_worker(resources: ResourcesConfig, machines: Iterable[Amount]) -> Amount:
    """What one worker of a stage asks for; `gpus` left out means one where the Ray cluster has any."""
    gpus = resources.gpus
    if gpus is None:
        gpus = float(any(machine.gpus for machine in machines))
    return Amount(_whole(resources.cpus), _whole(gpus), resources.memory_bytes)


def capacity(machine: Amount, worker: Amount) -> int:
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
