"""What a back end is given and what it gives back: plain values that cross processes and machines."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from raydistill.execution.makespan import Room
from raydistill.plan.order import Graph, Node
from raydistill.plan.resources import ResourcesConfig
from raydistill.runs.mirror import open_storage, storage_name
from raydistill.runs.placement import Placement
from raydistill.tasks.task import Task


@dataclass(frozen=True)
class StageRequest:
    """One attempt at one stage. All fields are JSON values.

    `root` is the storage root as every machine opens it; `reads` and `peers` map node names to folders below it,
    `metrics` the addresses of the user's own to the digests of their code. `afterwards`, if not empty, is the address
    of a function and what it is called with: by the stage's process, once the record is written. `number` counts the
    attempts of this run at the stage; `workers_come_and_go` is the kind's. `alone` says why a replica is not trained
    with the others as one batched model, where somebody could wonder.
    """

    name: str
    kind: str
    fingerprint: str
    folder: str
    root: str
    config: dict[str, Any]
    identity: dict[str, Any]
    task: dict[str, Any]
    reads: dict[str, str]
    attempt: str
    resources: dict[str, Any] = field(default_factory=dict)
    peers: dict[str, str] = field(default_factory=dict)
    task_identity: dict[str, Any] = field(default_factory=dict)
    test: str = ""
    sees_test: bool = True
    metrics: dict[str, str] = field(default_factory=dict)
    afterwards: tuple[str, ...] = ()
    number: int = 1
    workers_come_and_go: bool = False
    alone: str = ""

    @property
    def place(self) -> Path:
        """The stage's folder on this machine."""
        return open_storage(self.root) / self.folder

    @property
    def shape(self) -> ResourcesConfig:
        """What each worker of the stage needs."""
        return ResourcesConfig.model_validate(self.resources)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `StageRequest(**values)` is the way back."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. `stopped`: it was asked to, and left a checkpoint; `lost`: its process died; `apart`: it is
    better trained by itself than with the others that it was started with, for the reason that is its `error`.

    `warnings` are those of the record. `preempted`: a lost one whose process or machine was told to end, and left a
    checkpoint; no fault of anybody's.
    """

    status: Literal["done", "failed", "stopped", "lost", "apart"]
    seconds: float = 0.0
    error: str | None = None
    warnings: tuple[str, ...] = ()
    preempted: bool = False


class Backend(Protocol):
    """Where stages run. One driver thread calls these methods."""

    def check_feasible(self, nodes: Sequence[Node]) -> None:
        """`PlanError` when a node asks for more than the machines will ever have."""
        ...

    def room(self) -> Room:
        """The machines on which stages run, all of them idle, and how much of them may be held."""
        ...

    def want(self, waiting: Iterable[Node]) -> None:
        """These could start, and wait for room alone: machines that can be had may be asked for.

        They are looked up when somebody goes through them.
        """
        ...

    def try_start(self, request: StageRequest, *others: StageRequest) -> bool:
        """Start a stage if there is room for it now; False leaves it waiting. In the same room, `others` that train
        with it as one batched model."""
        ...

    def has_gpu_for(self, resources: ResourcesConfig) -> bool:
        """Whether a stage of this shape runs on a GPU."""
        ...

    def places(self, resources: ResourcesConfig) -> int:
        """How many stages of this shape could start now, as far as it is known."""
        ...

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        """Names and outcomes of attempts that ended; returns at once when there are some, else after `seconds`."""
        ...

    def placements(self) -> Mapping[str, Placement]:
        """Of the attempts that run, by the names of their stages: whether they have begun, and where."""
        ...

    def stop(self) -> list[tuple[str, Outcome]]:
        """Ask running stages to write a checkpoint and stop; end those that do not. Nothing runs afterwards."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


def build_request(
    node: Node,
    graph: Graph,
    task: Task,
    root: Path,
    attempt: str,
    *,
    sees_test: bool = True,
    number: int = 1,
    alone: str = "",
) -> StageRequest:
    """The request for one node of a graph."""
    return StageRequest(
        name=node.name,
        kind=node.kind,
        fingerprint=node.fingerprint,
        folder=node.folder,
        root=storage_name(root),
        config=node.config.model_dump(mode="json"),
        identity=dict(node.identity),
        task=task.model_dump(mode="json"),
        reads={name: graph.nodes[name].folder for name in node.reads},
        attempt=attempt,
        resources=node.config.resources.model_dump(mode="json"),
        peers={name: graph.nodes[name].folder for name in node.peers},
        task_identity=dict(graph.task),
        test=graph.test,
        sees_test=sees_test,
        metrics=dict(graph.metrics),
        number=number,
        workers_come_and_go=node.config.workers_come_and_go,
        alone=alone,
    )
