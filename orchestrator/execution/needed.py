"""Which stages need not run although their results are gone: nothing that must run reads them."""

from collections.abc import Collection
from pathlib import Path

from raydistill.plan.order import Graph

WHY_NOT = "gone, and nothing that must run reads it"


def not_needed(graph: Graph, root: Path, finished: Collection[str], forced: Collection[str]) -> set[str]:
    """The nodes without a folder whose readers all have a result, or are not needed either. Always needed are nodes
    that no other reads, that were asked for by name, or that train side by side with peers. A node with a folder is
    finished: only results that somebody deleted are left out. `finished` are the nodes with a result that stands,
    `forced` run in any case.
    """
    readers: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for name, node in graph.nodes.items():
        for read in node.reads:
            readers[read].append(name)
    found: set[str] = set()
    for name in reversed(graph.nodes):
        node = graph.nodes[name]
        is_wanted = name in finished or name in forced or name in graph.asked or not readers[name]
        if is_wanted or node.peers or (root / node.folder).exists():
            continue
        if all(reader in finished or reader in found for reader in readers[name]):
            found.add(name)
    return found
