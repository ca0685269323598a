"""The points of a search space that are known in advance: a grid, or random ones from a counter-based generator."""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from raydistill.lookup import load_object
from raydistill.plan.fingerprint import digest
from raydistill.plan.search import Domain, SearchConfig

Space = Mapping[str, Domain]
Values = dict[str, Any]

LISTED = 20_000  # finite spaces up to this size are drawn without repetition


def grid_point(space: Space, index: int) -> Values:
    """Point number `index` of all combinations; the first path changes slowest."""
    values: Values = {}
    for path, domain in reversed(list(space.items())):
        assert domain.size is not None
        index, digit = divmod(index, domain.size)
        values[path] = domain.nth(digit)
    return {path: values[path] for path in space}


def random_point(space: Space, seed: int, index: int) -> Values:
    """Random point number `index`: whoever asks gets the same, whatever was asked before."""
    return {path: domain.at(fraction(seed, index, path)) for path, domain in space.items()}


def known_points(config: SearchConfig) -> Iterator[Values]:
    """The points of a searcher that knows them; of one that does not, random ones for when it runs out of its own."""
    points = load_object(config.searcher.implementation) if config.searcher.knows_points else random_points
    return iter(points(config))


def grid_points(config: SearchConfig) -> Iterator[Values]:
    """All points of a finite space."""
    assert config.size is not None
    yield from (grid_point(config.space, index) for index in range(config.size))


def random_points(config: SearchConfig) -> Iterator[Values]:
    """Random points without an end. Those of a small finite space come in random order, each once; of other spaces some
    may come twice."""
    space, size = config.space, config.size
    seed: int = getattr(config.searcher, "seed", 0)
    if size is not None and size <= LISTED:
        order = sorted(range(size), key=lambda index: fraction(seed, index, ""))
        yield from (grid_point(space, index) for index in order)
        return
    yield from (random_point(space, seed, index) for index in count())


def fraction(seed: int, index: int, path: str) -> float:
    """A number in [0, 1) with 53 random bits, a function of what is given."""
    return int(digest({"seed": seed, "index": index, "path": path})[:16], 16) / 2**64 * (1 - 2**-53)
