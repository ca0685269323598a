"""Which replicas start in one process, to be trained as one batched model there if that turns out to be faster."""

from collections.abc import Iterator

from raydistill.execution.ready import ReadyStages
from raydistill.execution.request import Backend
from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.plan.order import Graph, Node
from raydistill.plan.stage import StageConfig

MOST = 32  # in one process: each has its weights, moments and checkpoints in memory


def alike(graph: Graph, node: Node, ready: ReadyStages) -> Iterator[Node]:
    """The other replicas of a node's stage that are ready, and differ from it by nothing but their seeds; looked at one
    by one, since where nothing is stacked the first is enough."""
    if not isinstance(node.config, TrainingConfig):
        return
    own = node.config.replace(seed=0)
    for name in graph.replicas.get(node.stage, ()):
        if name == node.name or not ready.is_waiting(name):
            continue
        other = graph.nodes[name]
        if not other.peers and other.config.replace(seed=0) == own:
            yield other


def why_alone(config: StageConfig, backend: Backend) -> str:
    """Why replicas of a stage are not stacked, as far as that is known before one begins; empty where nothing is."""
    if not isinstance(config, TrainingConfig):
        return "nothing is trained"
    reason = config.why_alone()
    if reason is None and config.stack == "auto" and not backend.has_gpu_for(config.resources):
        # Whether a stack is faster is measured, and may turn out otherwise the next time: a plan that is run again on a
        # CPU would not give the same bytes, for a gain that is large on a GPU alone, where launches take the time.
        return "on a CPU they keep the numbers that each has by itself, to the last bit, unless `stack` is on"
    return reason or ""


def size_of_stack(config: TrainingConfig, count: int, room: int) -> int:
    """Of `count` replicas that are alike and ready, how many to start in one process.

    Who can have a process of his own gets one, and what is left over is divided evenly: to do side by side what there
    is room for is faster than any stack. With `stack: on` all are one model.
    """
    processes = 1 if config.stack == "on" else max(room, 1)
    return min(-(-count // processes), MOST)
