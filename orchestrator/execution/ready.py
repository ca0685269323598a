"""Which stage starts next: of those whose inputs are finished, the one that begins the longest chain of work.

Kept up to date at every change instead of looking through the graph, so that a stage costs the same in a large one.
"""

import heapq
import time
from collections import Counter

from raydistill.plan.order import Graph, Node
from raydistill.plan.resources import ResourcesConfig


class ReadyStages:
    """A queue per shape of resources: when one stage finds no room, no other of its shape does.

    Asking for room costs files (a lease, an attempt). So a shape that was refused is not asked for again while the
    same shapes run as then, at least for some seconds.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.unfinished = set(graph.nodes)
        self._missing = {name: len(node.reads) for name, node in graph.nodes.items()}
        self._readers: dict[str, list[str]] = {name: [] for name in graph.nodes}
        for name, node in graph.nodes.items():
            for read in node.reads:
                self._readers[read].append(name)
        self._rank = ranks(graph)
        self._names = {rank: name for name, rank in self._rank.items()}
        self._queues: dict[ResourcesConfig, list[tuple[float, int]]] = {}
        self._queued: set[str] = set()
        self._running: Counter[ResourcesConfig] = Counter()
        self._full: dict[ResourcesConfig, tuple[Counter[ResourcesConfig], float]] = {}
        self._unnamed: dict[ResourcesConfig, list[str]] = {}
        self._later: list[tuple[float, str]] = []
        for name in graph.nodes:
            self.put_back(name)

    def next(self) -> str | None:
        """Take the stage that should start now; None when all that is ready waits for room or for its time."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self.put_back(heapq.heappop(self._later)[1])
        open_queues = [queue for shape, queue in self._queues.items() if queue and self._may_fit(shape, now)]
        while open_queues:
            queue = min(open_queues)
            name = self._names[heapq.heappop(queue)]
            if name in self._queued:  # not taken meanwhile
                self._queued.discard(name)
                if name in self.unfinished and not self._missing[name]:
                    return name
            open_queues = [queue for queue in open_queues if queue]
        return None

    def is_waiting(self, name: str) -> bool:
        """Whether it is ready, and waits for nothing but room."""
        return name in self._queued and name in self.unfinished and not self._missing[name]

    def take(self, name: str) -> None:
        """It starts beside another one."""
        self._queued.discard(name)

    def put_back(self, name: str, *, seconds: float = 0.0) -> None:
        """Queue a stage that did not start, or that has to start again; at the earliest after `seconds`."""
        if seconds:
            heapq.heappush(self._later, (time.monotonic() + seconds, name))
        elif not self._missing[name] and name not in self._queued:
            self._queued.add(name)
            heapq.heappush(self._queues.setdefault(self._shape(name), []), self._rank[name])
            self._unnamed.setdefault(self._shape(name), []).append(name)

    def reshape(self, node: Node) -> None:
        """A node that does not run takes other resources from now on."""
        was_queued = node.name in self._queued
        self._queued.discard(node.name)
        self.graph.nodes[node.name] = node
        if was_queued:
            self.put_back(node.name)

    def found_no_room(self, name: str, *, seconds: float) -> list[str]:
        """Do not try this shape again before the set of running stages changes, or `seconds` have passed.

        Returns the stages of this shape that wait with it and were not named before.
        """
        shape = self._shape(name)
        self._full[shape] = (self._running.copy(), time.monotonic() + seconds)
        self.put_back(name)
        # Each is named once: to go through the whole queue at every refusal would be quadratic in the stages.
        return [other for other in self._unnamed.pop(shape, []) if other in self._queued]

    def has_waiting(self) -> bool:
        """Whether anything could start if there were room."""
        return any(map(self.is_waiting, self._queued))

    def waiting_for_room(self) -> list[str]:
        """What could start if there were room, those that would start first in front."""
        return sorted(filter(self.is_waiting, self._queued), key=self._rank.__getitem__)

    def begin(self, name: str) -> None:
        """It runs."""
        self._running[self._shape(name)] += 1

    def end(self, name: str) -> None:
        """It runs no longer."""
        self._running[self._shape(name)] -= 1

    def finish(self, name: str) -> None:
        """Nothing is left to do for it: its readers wait for one less."""
        self.unfinished.discard(name)
        self._queued.discard(name)
        for reader in self._readers[name]:
            self._missing[reader] -= 1
            if reader in self.unfinished:
                self.put_back(reader)

    def reopen(self, name: str) -> None:
        """Its result turned out to be none: its readers wait for it again."""
        self.unfinished.add(name)
        for reader in self._readers[name]:
            self._missing[reader] += 1
        self.put_back(name)

    def _may_fit(self, shape: ResourcesConfig, now: float) -> bool:
        running, until = self._full.get(shape, (None, 0.0))
        return now >= until or running != self._running

    def _shape(self, name: str) -> ResourcesConfig:
        shape: ResourcesConfig = self.graph.nodes[name].config.resources
        return shape


def ranks(graph: Graph) -> dict[str, tuple[float, int]]:
    """Ranks by the epochs of the longest chain that begins with a stage, the most first; then by the graph's order."""
    below = dict.fromkeys(graph.nodes, 0.0)
    for name in reversed(list(graph.nodes)):
        node = graph.nodes[name]
        below[name] += float(getattr(node.config, "epochs", 1))
        for read in node.reads:
            below[read] = max(below[read], below[name])
    return {name: (-below[name], index) for index, name in enumerate(graph.nodes)}
