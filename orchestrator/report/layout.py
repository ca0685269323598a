"""Where the boxes of the graph lie, and labels that would touch: layers from left to right, replicas as one box, few
crossings.

After Sugiyama et al. 1981: a layer is the longest way from a source; an edge that passes a layer takes a place in
it; places are ordered by the mean of their neighbours, then moved towards them as far as the gaps allow.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise

from raydistill.report.formatting import outcome_of
from raydistill.runs.view import RunView, StageView

HEIGHT, GAP, LANE, BETWEEN = 31.5, 10.5, 9.0, 34.5  # points, as all that follows
NARROWEST, WIDEST, PER_LETTER, PER_SMALL_LETTER, PADDING = 84.0, 165.0, 5.6, 4.5, 22.5
SWEEPS = 8  # after which no plan of ours still changed


@dataclass(eq=False)
class Box:
    """One box of the picture, or with no `members` the place where an edge passes a layer."""

    name: str
    label: str
    role: str
    members: tuple[StageView, ...] = ()
    reads: list[str] = field(default_factory=list)
    joined: list["Box"] = field(default_factory=list)
    layer: int = 0
    rank: float = 0.0
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

    @property
    def wanted_width(self) -> float:
        """What the label needs, and the line below it."""
        letters = len(self.label) + (4 if len(self.members) > 1 else 0)
        texts = PER_LETTER * letters, PER_SMALL_LETTER * len(outcome_of(self.members))
        return min(WIDEST, max(NARROWEST, PADDING + max(texts)))


@dataclass(frozen=True)
class PlacedGraph:
    """The placed graph. An edge leads through points (x, y) from the right of one box to the left of another."""

    boxes: tuple[Box, ...]
    edges: tuple[tuple[tuple[float, float], ...], ...]
    width: float
    height: float


def place_graph(run: RunView) -> PlacedGraph:
    """Group, layer and place the stages of a run."""
    boxes = group_stages(run)
    for box in boxes.values():
        box.layer = max((boxes[read].layer + 1 for read in box.reads), default=0)
    for name, box in reversed(boxes.items()):
        readers = [reader.layer for reader in boxes.values() if name in reader.reads]
        if readers and box.reads:  # what waits for its reader moves next to it: edges are short
            box.layer = max(box.layer, min(readers) - 1)
    chains = [_chain(boxes[read], box) for box in boxes.values() for read in box.reads]
    layers: list[list[Box]] = [[] for _ in range(max((box.layer for box in boxes.values()), default=-1) + 1)]
    for box in (*boxes.values(), *chain.from_iterable(passed[1:-1] for passed in chains)):
        layers[box.layer].append(box)
    for left, right in chain.from_iterable(map(pairwise, chains)):
        left.joined.append(right)
        right.joined.append(left)
    _order(layers)
    width, height = _place_columns(layers), _place_rows(layers)
    ends = [[(place.x, place.middle, place.x + place.width) for place in passed] for passed in chains]
    edges = (
        tuple(point for x, y, right in places for point in ((x, y), (right, y)))[1:-1] for places in ends
    )
    return PlacedGraph(tuple(boxes.values()), tuple(edges), width, height)


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


def _chain(source: Box, target: Box) -> list[Box]:
    """From source to target with one place in every layer between."""
    between = range(source.layer + 1, target.layer)
    return [source, *(Box("", "", target.role, layer=layer) for layer in between), target]


def _order(layers: Sequence[list[Box]]) -> None:
    """Sort each layer by the mean rank of what it is joined to, forwards and backwards."""
    for sweep in range(SWEEPS + 1):
        side = -1 if sweep % 2 else 1
        for layer in layers if side < 0 else reversed(layers):
            for box in layer:
                ranks = [other.rank for other in box.joined if other.layer == box.layer + side and sweep]
                box.rank = sum(ranks) / len(ranks) if ranks else box.rank
            layer.sort(key=lambda box: box.rank)
            for rank, box in enumerate(layer):
                box.rank = rank


def _place_columns(layers: Sequence[Sequence[Box]]) -> float:
    """Give each layer the width of its longest label; returns the whole width."""
    x = 0.0
    for layer in layers:
        width = max(box.wanted_width for box in layer)
        for box in layer:
            box.x, box.width = x, width
        x += width + BETWEEN
    return max(x - BETWEEN, 0.0)


def _place_rows(layers: Sequence[Sequence[Box]]) -> float:
    """Stack each layer, then pull boxes towards what they are joined to; returns the whole height."""
    for layer in layers:
        y = 0.0
        for box in layer:
            box.y = y
            y += box.height + GAP
    for sweep in range(SWEEPS):
        for layer in layers if sweep % 2 else reversed(layers):
            _pull(layer)
    placed = [*chain.from_iterable(layers)]
    top = min((box.y for box in placed), default=0.0)
    for box in placed:
        box.y -= top
    return max((box.y + box.height for box in placed), default=0.0)


def _pull(layer: Sequence[Box]) -> None:
    """Move the boxes of a layer to the mean height of their neighbours, keeping order and gaps."""
    wishes, offsets = [], [0.0]
    for box in layer:
        middles = [other.middle for other in box.joined]
        wishes.append((sum(middles) / len(middles) - box.height / 2 if middles else box.y) - offsets[-1])
        offsets.append(offsets[-1] + box.height + GAP)
    for box, start, offset in zip(layer, rising(wishes), offsets, strict=False):
        box.y = start + offset


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
