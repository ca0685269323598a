"""Arithmetic of resources: what a stage asks for, what machines have, how often one fits into the other."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from raydistill.plan.resources import ResourcesConfig

UNLIMITED = sys.maxsize  # more than any cluster has, and still a whole number
ACCELERATOR = "accelerator_type:"  # what Ray calls a type of GPU, of which each machine with such GPUs has 1
OWN_LABELS = "ray.io/"  # that Ray gives to every node
LABEL = (
    "label:"  # before `key=value` of a node's label: like a resource of which there is more than can be taken
)
TYPE_SHARE = 10  # as Ray's own `accelerator_type` takes of it: a thousandth, so that it never runs out
WHOLE = 10_000  # Ray counts CPUs and GPUs in ten-thousandths; in integers, 10 x 0.1 is 1
GIB = 2**30


@dataclass(frozen=True)
class Resources:
    """CPUs, GPUs and custom resources in ten-thousandths, memory in bytes. Custom ones in the order of their names; a
    type of accelerator is one of them, as it is for Ray, and so is here a label of a node."""

    cpus: int = 0
    gpus: int = 0
    memory: int = 0
    custom: tuple[tuple[str, int], ...] = ()

    def __add__(self, other: "Resources") -> "Resources":
        names = {name for name, _ in (*self.custom, *other.custom)}
        return Resources(
            self.cpus + other.cpus,
            self.gpus + other.gpus,
            self.memory + other.memory,
            tuple((name, self.amount(name) + other.amount(name)) for name in sorted(names)),
        )

    def __sub__(self, other: "Resources") -> "Resources":
        return self + other * -1

    def __mul__(self, count: int) -> "Resources":
        custom = tuple((name, amount * count) for name, amount in self.custom)
        return Resources(self.cpus * count, self.gpus * count, self.memory * count, custom)

    def amount(self, name: str) -> int:
        """How much there is of a custom resource."""
        return dict(self.custom).get(name, 0)

    def is_within(self, other: "Resources") -> bool:
        """Whether this much can be taken out of `other`."""
        is_enough = all(amount <= other.amount(name) for name, amount in self.custom)
        return (
            is_enough and self.cpus <= other.cpus and self.gpus <= other.gpus and self.memory <= other.memory
        )

    def __str__(self) -> str:
        parts = [_counted(self.cpus, "CPU"), _counted(self.gpus, "GPU")]
        if self.memory:
            parts.append(f"{self.memory / GIB:.1f} GiB of memory")
        parts += [
            _named(name, amount) for name, amount in self.custom if not name.startswith(LABEL + OWN_LABELS)
        ]
        return f"{', '.join(parts[:-1])} and {parts[-1]}"

    def to_ray(self) -> dict[str, float]:
        """As Ray names them; what is not asked for is left out."""
        named = {"CPU": self.cpus / WHOLE, "GPU": self.gpus / WHOLE, "memory": float(self.memory)}
        return {name: value for name, value in (named | self.custom_to_ray()).items() if value}

    def custom_to_ray(self) -> dict[str, float]:
        """The custom ones alone."""
        return {name: amount / WHOLE for name, amount in self.custom if not name.startswith(LABEL)}

    @property
    def labels(self) -> dict[str, str]:
        """The labels among them, with their values."""
        named = (name.removeprefix(LABEL) for name, _ in self.custom if name.startswith(LABEL))
        return {key: value for key, _, value in (text.partition("=") for text in named)}


@dataclass(frozen=True)
class Limit:
    """What a plan may hold of a Ray cluster at once, in CPUs and GPUs; None: as much as there is."""

    cpus: float | None = None
    gpus: float | None = None

    @property
    def _most(self) -> Resources:
        """The most CPUs and GPUs that it allows."""
        cpus, gpus = (UNLIMITED if most is None else _whole(most) for most in (self.cpus, self.gpus))
        return Resources(cpus, gpus)

    def of(self, resources: Resources) -> Resources:
        """As much of it as the plan may hold."""
        most = self._most
        return replace(resources, cpus=min(resources.cpus, most.cpus), gpus=min(resources.gpus, most.gpus))

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
    names = sorted({name for one in listed for name, _ in one.custom})
    return Resources(
        max(one.cpus for one in listed),
        max(one.gpus for one in listed),
        max(one.memory for one in listed),
        tuple((name, max(one.amount(name) for one in listed)) for name in names),
    )


def resources_of_machine(
    resources: Mapping[str, float], labels: Mapping[str, str] | None = None
) -> Resources:
    """What a node of the Ray cluster says it has."""
    custom = {name: _whole(resources[name]) for name in resources if not _is_rays_own(name)}
    custom |= {f"{LABEL}{key}={value}": UNLIMITED for key, value in (labels or {}).items()}
    return Resources(
        _whole(resources.get("CPU", 0)),
        _whole(resources.get("GPU", 0)),
        int(resources.get("memory", 0)),
        tuple(sorted(custom.items())),
    )


def resources_of_worker(resources: ResourcesConfig, machines: Iterable[Resources]) -> Resources:
    """What one worker of a stage asks for; `gpus` left out, or not yet measured, means one where the Ray
    cluster has any."""
    gpus = resources.given_gpus
    if gpus is None:
        gpus = float(any(machine.gpus for machine in machines))
    custom = {name: _whole(amount) for name, amount in resources.custom.items()}
    if resources.accelerator is not None:
        custom[ACCELERATOR + resources.accelerator] = TYPE_SHARE
    custom |= {f"{LABEL}{key}={value}": 1 for key, value in resources.labels.items()}
    return Resources(
        _whole(resources.cpus), _whole(gpus), resources.memory_bytes, tuple(sorted(custom.items()))
    )


def capacity(machine: Resources, worker: Resources) -> int:
    """How many such workers an empty machine holds. A worker's fraction of a GPU lies on one GPU."""
    counts = [machine.cpus // worker.cpus]
    if worker.gpus:
        per_gpu = WHOLE // worker.gpus
        counts.append(machine.gpus // WHOLE * per_gpu if per_gpu else machine.gpus // worker.gpus)
    counts += [machine.amount(name) // amount for name, amount in worker.custom if amount]
    if worker.memory:
        counts.append(machine.memory // worker.memory)
    return min(counts)


def _is_rays_own(name: str) -> bool:
    """What Ray counts beside what users ask for."""
    return name in ("CPU", "GPU", "memory", "object_store_memory") or name.startswith("node:")


def _named(name: str, amount: int) -> str:
    """A custom resource in words; of a type of accelerator only that it is there."""
    if name.startswith(ACCELERATOR):
        return f"accelerator `{name.removeprefix(ACCELERATOR)}`"
    if name.startswith(LABEL):
        return f"label `{name.removeprefix(LABEL)}`"
    return f"{amount / WHOLE:g} of `{name}`"


def _whole(value: Any) -> int:
    return round(float(value) * WHOLE)


def _counted(value: int, noun: str) -> str:
    return f"{value / WHOLE:g} {noun}{'' if value == WHOLE else 's'}"
