"""Which stages need not run although their results are gone: nothing that must run reads them."""

from collections.abc import Collection
from pathlib import Path

from raydistill.plan.order import Graph

WHY_NOT = "gone, and nothing that must run reads it"


def not_needed(graph: Graph, root: Path, finished: Collection[str], forced: Collection[str]) -> set[str]:
    """The nodes without a folder whose readers all have a result, or need none either.

    What nobody reads, or was asked for by name, is what a plan is run for, and of peers that train side by side none is
    left out. Unfinished work is finished: only a folder that somebody deleted is left alone. `finished` are the nodes
    with a result that stands, `forced` run in any case.
    """
    readers: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for name, node in graph.nodes.items():
        for read in node.reads:
            readers[read].append(name)
    found: set[str] = set()
    for name in reversed(graph.nodes):
        node = graph.nodes[name]
        is_wanted = name in finished or name in forced or name in graph.asked or not readers[name]
        if is_wanted or node.siblings or (root / node.folder).exists():
            continue
        if all(reader in finished or reader in found for reader in readers[name]):
            found.add(name)
    return found
