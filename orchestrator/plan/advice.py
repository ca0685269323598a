"""What a plan may say but hardly means: a line each, to be printed and not refused."""

from collections.abc import Iterator

from raydistill.plan.config import configs_in
from raydistill.plan.order import Graph, sites
from raydistill.plan.schema import Plan


def advice(plan: Plan) -> Iterator[str]:
    """Lines about a plan that can be run."""
    for config, site in sites(plan):
        for place, part in configs_in(config):
            for path, message in part.advice(site.at(place)):
                yield site.error(message, *place, *path).message


def shared_folders(graph: Graph) -> Iterator[str]:
    """A line for stages of the user's own that are equal to the last digit: one result stands for all of them."""
    equals: dict[str, list[str]] = {}
    for name, node in graph.nodes.items():
        if not node.inserted:
            equals.setdefault(node.folder, []).append(name)
    for names in equals.values():
        if len(names) > 1:
            listed = ", ".join(f"`{name}`" for name in names[:-1]) + f" and `{names[-1]}`"
            yield (
                f"stages {listed} have equal settings and share one result; give one another `seed` if they are to"
                " differ"
            )
