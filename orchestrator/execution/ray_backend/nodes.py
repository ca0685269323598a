"""Asking every node of the Ray cluster the same question."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydistill.execution.ray_backend import probes
from raydistill.execution.ray_backend.resources import Resources, resources_of_machine
from raydistill.runs.record import summary_of

ANSWER_SECONDS = 60.0  # a process may have to start there first, and a runtime environment be unpacked


@dataclass(frozen=True)
class ClusterNode:
    """A machine of the Ray cluster. `is_own`: this process runs on it."""

    id: str
    address: str
    host: str
    resources: Resources
    is_alive: bool
    is_own: bool

    def __str__(self) -> str:
        name = "" if self.host == self.address else f" ({self.host})"
        return f"`{self.address}`{name}"


@dataclass(frozen=True)
class Answer:
    """What a node said, or why it said nothing."""

    node: ClusterNode
    value: Any = None
    error: str | None = None


def list_nodes() -> list[ClusterNode]:
    """The machines of the Ray cluster that this process has joined, dead ones included, its own first."""
    own = ray.get_runtime_context().get_node_id()
    nodes = [
        ClusterNode(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            host=node["NodeManagerHostname"],
            resources=resources_of_machine(node["Resources"]),
            is_alive=node["Alive"],
            is_own=node["NodeID"] == own,
        )
        for node in ray.nodes()
    ]
    return sorted(nodes, key=lambda node: (not node.is_own, node.address, node.id))


def ask_nodes(
    nodes: Collection[ClusterNode],
    question: Callable[..., Any],
    arguments: Callable[[ClusterNode], tuple[Any, ...]],
    seconds: float = ANSWER_SECONDS,
) -> list[Answer]:
    """Call a function of `probes` on each of these nodes at the same time; it takes no CPU from anybody.

    A node that dies meanwhile is left out of the answers.
    """
    # By value, as a node may have another version of ours, or none: that is among what is asked.
    ray.cloudpickle.register_pickle_by_value(probes)
    asked = ray.remote(num_cpus=0, max_retries=0)(question)
    refs = {
        node.id: asked.options(
            # Not softly: an answer from another node would be taken for that of this one.
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
        ).remote(*arguments(node))
        for node in nodes
    }
    if refs:
        ray.wait(list(refs.values()), num_returns=len(refs), timeout=seconds)
    return without_gone([_answer(node, refs[node.id], seconds) for node in nodes])


def without_gone(answers: list[Answer]) -> list[Answer]:
    """The answers of nodes that are still there: one that died while it was asked has nothing to say about itself."""
    if all(answer.error is None for answer in answers):
        return answers
    alive = {node.id for node in list_nodes() if node.is_alive}
    return [answer for answer in answers if answer.error is None or answer.node.id in alive]


def _answer(node: ClusterNode, ref: Any, seconds: float) -> Answer:
    try:
        return Answer(node, value=ray.get(ref, timeout=0))
    except ray.exceptions.GetTimeoutError:
        ray.cancel(ref, force=True)
        return Answer(node, error=f"did not answer within {seconds:.0f} s")
    except ray.exceptions.RayTaskError as error:
        return Answer(node, error=f"could not answer: {summary_of(error.cause or error)}")
    except ray.exceptions.RayError as error:
        return Answer(node, error=f"could not answer: {summary_of(error)}")
