"""Whether machines have room for a plan's stages, each by itself: said before anything starts, as Ray never says it."""

from collections.abc import Sequence

from raydistill.errors import PlanError
from raydistill.execution.ray_backend.placement import NODE
from raydistill.execution.ray_backend.resources import (
    ACCELERATOR,
    LABEL,
    NO_LIMIT,
    Limit,
    Resources,
    capacity,
    resources_of_worker,
)
from raydistill.plan.order import Node


def check_feasible(
    nodes: Sequence[Node], machines: list[Resources], limit: Limit = NO_LIMIT, *, can_grow: bool = False
) -> list[Node]:
    """`PlanError` when these machines, all of them idle, have no room for a node: Ray would wait for ever. Nor may a
    node need more than the `limit`.

    Nor may nodes that learn from one another have to wait for one another. Of a Ray cluster that `can_grow` nobody
    knows what it may have one day: the nodes for which it has no room now are returned.
    """
    names, lacking = {node.name for node in nodes}, []
    for node in nodes:
        worker = resources_of_worker(node.config.resources, map(limit.of, machines))
        count = 1 + len(names.intersection(node.peers))
        _check_limit(node, count, worker, limit)
        try:
            _check_node(node, worker, machines)
            _check_side_by_side(node, count, worker, machines)
        except PlanError:
            if not can_grow:
                raise
            lacking.append(node)
    return lacking


def _check_limit(node: Node, count: int, worker: Resources, limit: Limit) -> None:
    """Whether `count` nodes like this one may run at the same time."""
    needed = worker * (_fewest(node) * count)
    if limit.of(needed) == needed:
        return
    several = f", and {count} of its models train side by side" if count > 1 else ""
    raise PlanError(
        f"stage `{node.name}` asks for {_each(_fewest(node), worker)}{several}: more than `{limit}` lets the plan hold"
        f" at once; raise it, or lower `stages.{node.stage}.resources`"
    )


def _check_node(node: Node, worker: Resources, machines: list[Resources]) -> None:
    if sum(capacity(machine, worker) for machine in machines) >= _fewest(node):
        return
    _check_named(node, worker, machines)
    largest = max(machines, key=lambda machine: (capacity(machine, worker), machine.gpus, machine.cpus))
    each = _each(_fewest(node), worker)
    raise PlanError(
        f"stage `{node.name}` asks for {each}, which the Ray cluster never has: its largest machine, of"
        f" {len(machines)}, has {largest}; lower `stages.{node.stage}.resources`, or name a larger Ray cluster with"
        " `--address`"
    )


def _check_named(node: Node, worker: Resources, machines: list[Resources]) -> None:
    """Whether there are such accelerators, labels and custom resources at all."""
    there = sorted({name for machine in machines for name, amount in machine.custom if amount})
    for name, _ in worker.custom:
        if name not in there:
            what, words = _what(name)
            alike = [_what(other)[1] for other in there if _what(other)[0] == what]
            known = ", ".join(f"`{other}`" for other in alike if not other.startswith(NODE)) or "none"
            raise PlanError(
                f"stage `{node.name}` asks for the {what} `{words}`, which no machine of the Ray cluster has; {what}s"
                f" there: {known}; change `stages.{node.stage}.resources`, or name another Ray cluster with `--address`"
            )


def _what(name: str) -> tuple[str, str]:
    """What a resource that somebody named is, and how users write it."""
    if name.startswith(ACCELERATOR):
        return "accelerator", name.removeprefix(ACCELERATOR)
    if name.startswith(LABEL):
        return "label", name.removeprefix(LABEL).replace("=", ": ", 1)
    return "custom resource", name


def _check_side_by_side(node: Node, count: int, worker: Resources, machines: list[Resources]) -> None:
    """Whether `count` nodes like this one fit at the same time."""
    fitting = sum(capacity(machine, worker) for machine in machines) // _fewest(node)
    if fitting < count:
        raise PlanError(
            f"`{node.stage}` trains {count} models side by side, each on"
            f" {_each(node.config.resources.workers, worker)}, but the Ray cluster has room for {fitting} at"
            f" once; lower `stages.{node.stage}.resources`, or name a larger Ray cluster with `--address`"
        )


def _fewest(node: Node) -> int:
    """With how many workers the stage runs."""
    return 1 if node.config.workers_come_and_go else node.config.resources.workers


def _each(workers: int, worker: Resources) -> str:
    return f"{workers} workers of {worker} each" if workers > 1 else str(worker)
