"""What part of a GPU each stage with `gpus: auto` takes: as much as a training like it was seen to need."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from raydistill.execution.ray_backend.resources import WHOLE
from raydistill.plan.order import Graph, Node
from raydistill.runs.durations import Durations
from raydistill.runs.record import Record

MOST = 8  # on one GPU: each is a process, which takes seconds to start and gigabytes of the machine's memory
MARGIN = 1.1  # of memory: how much a training takes varies with what was free


def share_of(record: Record) -> float | None:
    """The part of a GPU for a training like one that ended, one n-th, so that n of them fit; None where none was
    measured.

    n have as much memory as they need, and no more to compute than one GPU can. Who shared a GPU has measured the
    others' work with his own, and does not count.
    """
    costs = record.costs
    if not {"gpu_busy", "gpu_memory"} <= costs.keys() or record.reserved.get("gpus", 0.0) < 1:
        return None
    needed = max(costs["gpu_busy"], MARGIN * costs["gpu_memory"])
    several = max(1, min(MOST, math.floor(1 / needed))) if needed else MOST
    return WHOLE // several / WHOLE


def settled(nodes: Iterable[Node], graph: Graph, root: Path) -> dict[str, Node]:
    """Of a graph's nodes those with `gpus: auto` whose like was measured, by records below a storage root, with their
    share in its place; by name."""
    left_to_us = [node for node in nodes if node.config.resources.gpus == "auto"]
    if not left_to_us:
        return {}
    identities = {node.fingerprint: node.identity for node in graph.nodes.values()}
    durations = Durations(root, graph.test, identities.get)
    found = {}
    for node in left_to_us:
        shares = map(share_of, durations.records(node.kind, node.identity))
        if share := next(filter(None, shares), None):
            resources = node.config.resources.replace(gpus=share)
            found[node.name] = replace(node, config=node.config.replace(resources=resources))
    return found


def with_gpu_shares(graph: Graph, root: Path) -> Graph:
    """The graph with the shares that are known in the place of `auto`."""
    known = settled(graph.nodes.values(), graph, root)
    return replace(graph, nodes=graph.nodes | known) if known else graph
