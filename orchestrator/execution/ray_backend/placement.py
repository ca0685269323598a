"""Where Ray may put what we start, in its own words."""

from collections.abc import Mapping

OUTSIDE = "DEFAULT"  # of the reservation in which the back end itself may run, as in a trial of a search
NODE = "ray.io/node-id"


def all_but(nodes: frozenset[str], labels: Mapping[str, str] | None = None) -> dict[str, str] | None:
    """A label selector for any node but those with these ids, of those with these labels."""
    avoided = {NODE: f"!in({','.join(sorted(nodes))})"} if nodes else {}
    return avoided | dict(labels or {}) or None
