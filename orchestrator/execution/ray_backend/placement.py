"""Where Ray may put what we start, in its own words."""

OUTSIDE = "DEFAULT"  # of the reservation in which the back end itself may run, as in a trial of a search
NODE = "ray.io/node-id"


def all_but(nodes: frozenset[str]) -> dict[str, str] | None:
    """A label selector for any node but those with these ids."""
    return {NODE: f"!in({','.join(sorted(nodes))})"} if nodes else None
