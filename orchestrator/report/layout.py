"""Where the boxes of the graph lie, and labels that would touch: layers from left to right, replicas as one box, few
crossings.

After Sugiyama et al. 1981: a layer is the longest way from a source; an edge that passes a layer takes a place in
it; places are ordered by the mean of their neighbours, then moved towards them as far as the gaps allow.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from raydistill.runs.view import RunView, StageView

HEIGHT, GAP, LANE, BETWEEN = 31.5, 10.5, 9.0, 34.5  # points, as all that follows
NARROWEST, WIDEST, PER_LETTER, PADDING = 84.0, 165.0, 5.6, 22.5
SWEEPS = 8  # after which no plan of ours still changed


@dataclass
class Box:
    """One box of the picture, or with no `members` the place where an edge passes a layer."""

    name: str
    label: str
    role: str
    members: tuple[StageView, ...] = ()
    reads: list[str] = field(default_factory=list)
    layer: int = 0
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0

    @property
    def height(self) -> float:
        """Height of a box, or of the lane that an edge takes."""
        return HEIGHT if self.members else LANE

    @property
    def is_single(self) -> bool:
        """Whether it stands for one stage that is no replica."""
        return len(self.members) == 1 and self.members[0].name == self.label

    @property
    def is_uniform(self) -> bool:
        """Whether a line says enough of all its stages: the graph inserted them, and they went well."""
        return all(member.inserted and member.has_result for member in self.members)

    @property
    def middle(self) -> float:
        """Vertical middle."""
        return self.y + self.height / 2


@dataclass(frozen=True)
class Edge:
    """A line through points (x, y), from the right of one box to the left of another."""

    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class PlacedGraph:
    """The placed graph."""

    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    width: float
    height: float


def place_graph(run: RunView) -> PlacedGraph:
    """Group, layer and place the stages of a run."""
    boxes = group_stages(run)
    for box in boxes.values():
        box.layer = max((boxes[read].layer + 1 for read in box.reads), default=0)
    _place_late(boxes)
    chains = [_chain(boxes, read, box) for box in list(boxes.values()) for read in box.reads]
    layers = _layers(boxes)
    neighbours = _neighbours(chains)
    _order(layers, boxes, neighbours)
    width = _place_columns(layers, boxes)
    height = _place_rows(layers, boxes, neighbours)
    edges = tuple(_edge([boxes[name] for name in chain]) for chain in chains)
    return PlacedGraph(tuple(box for box in boxes.values() if box.members), edges, width, height)


def group_stages(run: RunView) -> dict[str, Box]:
    """Boxes by name, in the order of the graph: replicas together, and the stages inserted for each of them."""
    group_of = {stage.name: stage.group for stage in run.stages.values()}
    keys: dict[tuple[object, ...], str] = {}
    for stage in run.stages.values():
        if stage.inserted:
            reads = frozenset(group_of[read] for read in stage.reads)
            readers = frozenset(group_of[reader.name] for reader in run.readers(stage.name))
            group_of[stage.name] = keys.setdefault((stage.kind, stage.role, reads, readers), stage.name)
    boxes: dict[str, Box] = {}
    for stage in run.stages.values():
        name = group_of[stage.name]
        box = boxes.setdefault(name, Box(name, name, stage.role))
        box.members = (*box.members, stage)
        box.reads = list(dict.fromkeys([*box.reads, *(group_of[read] for read in stage.reads)]))
    for box in boxes.values():
        if len(box.members) > 1:
            box.label = re.sub(r"\.\d+(?=\.)", "", box.label)
    return boxes


def _place_late(boxes: Mapping[str, Box]) -> None:
    """Move what waits for its reader next to it, so that edges are short."""
    for name, box in reversed(list(boxes.items())):
        readers = [reader.layer for reader in boxes.values() if name in reader.reads]
        if readers and box.reads:
            box.layer = max(box.layer, min(readers) - 1)


def _chain(boxes: dict[str, Box], source: str, target: Box) -> list[str]:
    """Names from source to target with one place in every layer between, which are added to `boxes`."""
    names = [source]
    for layer in range(boxes[source].layer + 1, target.layer):
        name = f"{source} > {target.name} > {layer}"
        boxes[name] = Box(name, "", target.role, layer=layer)
        names.append(name)
    return [*names, target.name]


def _layers(boxes: Mapping[str, Box]) -> list[list[str]]:
    count = max((box.layer for box in boxes.values()), default=-1) + 1
    return [[name for name, box in boxes.items() if box.layer == layer] for layer in range(count)]


def _neighbours(chains: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    neighbours: dict[str, list[str]] = {}
    for chain in chains:
        for left, right in pairwise(chain):
            neighbours.setdefault(left, []).append(right)
            neighbours.setdefault(right, []).append(left)
    return neighbours


def _order(
    layers: list[list[str]], boxes: Mapping[str, Box], neighbours: Mapping[str, Sequence[str]]
) -> None:
    """Sort each layer by the mean rank of what it is joined to, forwards and backwards."""
    rank = {name: float(index) for layer in layers for index, name in enumerate(layer)}
    for sweep in range(SWEEPS):
        side = -1 if sweep % 2 == 0 else 1
        for layer in layers if side < 0 else reversed(layers):
            wish = {name: _mean_rank(name, side, boxes, neighbours, rank) for name in layer}
            layer.sort(key=lambda name: wish[name])
            rank.update({name: float(index) for index, name in enumerate(layer)})


def _mean_rank(
    name: str,
    side: int,
    boxes: Mapping[str, Box],
    neighbours: Mapping[str, Sequence[str]],
    rank: Mapping[str, float],
) -> float:
    ranks = [
        rank[other] for other in neighbours.get(name, ()) if boxes[other].layer == boxes[name].layer + side
    ]
    return sum(ranks) / len(ranks) if ranks else rank[name]


def _place_columns(layers: Sequence[Sequence[str]], boxes: Mapping[str, Box]) -> float:
    """Give each layer the width of its longest label; returns the whole width."""
    x = 0.0
    for layer in layers:
        width = max(box_width(boxes[name]) for name in layer)
        for name in layer:
            boxes[name].x, boxes[name].width = x, width
        x += width + BETWEEN
    return max(x - BETWEEN, 0.0)


def box_width(box: Box) -> float:
    """Width that a box's label needs."""
    letters = len(box.label) + (4 if len(box.members) > 1 else 0)
    return min(WIDEST, max(NARROWEST, PADDING + PER_LETTER * letters))


def _place_rows(
    layers: Sequence[Sequence[str]], boxes: Mapping[str, Box], neighbours: Mapping[str, Sequence[str]]
) -> float:
    """Stack each layer, then pull boxes towards what they are joined to; returns the whole height."""
    for layer in layers:
        y = 0.0
        for name in layer:
            boxes[name].y = y
            y += boxes[name].height + GAP
    for sweep in range(SWEEPS):
        for layer in layers if sweep % 2 else reversed(layers):
            _pull(layer, boxes, neighbours)
    top = min((box.y for box in boxes.values()), default=0.0)
    for box in boxes.values():
        box.y -= top
    return max((box.y + box.height for box in boxes.values()), default=0.0)


def _pull(layer: Sequence[str], boxes: Mapping[str, Box], neighbours: Mapping[str, Sequence[str]]) -> None:
    """Move the boxes of a layer to the mean height of their neighbours, keeping order and gaps."""
    wishes, offsets = [], [0.0]
    for name in layer:
        box = boxes[name]
        middles = [boxes[other].middle for other in neighbours.get(name, ())]
        wishes.append((sum(middles) / len(middles) - box.height / 2 if middles else box.y) - offsets[-1])
        offsets.append(offsets[-1] + box.height + GAP)
    for name, start, offset in zip(layer, rising(wishes), offsets, strict=False):
        boxes[name].y = start + offset


def rising(wishes: Sequence[float]) -> list[float]:
    """The rising numbers that come nearest to the wishes in the sum of squares: isotonic regression.

    Neighbours that would have to fall move as one block, to the mean of their wishes.
    """
    blocks: list[tuple[float, int]] = []  # mean, length
    for wish in wishes:
        blocks.append((wish, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (lower, before), (upper, after) = blocks[-2:]
            blocks[-2:] = [((lower * before + upper * after) / (before + after), before + after)]
    return [mean for mean, length in blocks for _ in range(length)]


def spread_apart(wishes: Sequence[float], gap: float) -> list[float]:
    """Places from 0 to 1 in the same (rising) order, at least `gap` apart, as near to the wishes as that allows."""
    gap = min(gap, 1 / max(len(wishes) - 1, 1))
    highest = 1 - gap * (len(wishes) - 1)
    starts = rising([wish - index * gap for index, wish in enumerate(wishes)])
    return [min(max(start, 0.0), highest) + index * gap for index, start in enumerate(starts)]


def _edge(chain: Sequence[Box]) -> Edge:
    points = [(chain[0].x + chain[0].width, chain[0].middle)]
    for place in chain[1:-1]:
        points += [(place.x, place.middle), (place.x + place.width, place.middle)]
    return Edge((*points, (chain[-1].x, chain[-1].middle)))
