"""The drawing of the graph of stages, with what every box says when it is pointed at."""

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path

from raydistill.metrics import Accuracy
from raydistill.report.comparison import measured
from raydistill.report.figures import Drawing, free_panel
from raydistill.report.formatting import compact, elapsed, mean_percent, outcome_of, shorten
from raydistill.report.layout import Box, PlacedGraph
from raydistill.report.theme import light, role_colour
from raydistill.runs.view import StageView

MARGIN = 4.0
NAMED_MEMBERS = 12


def graph_drawing(picture: PlacedGraph) -> Drawing:
    """The placed graph; a unit is a point."""
    titles = {f"box-{place}": title_of(box) for place, box in enumerate(picture.boxes)}
    return Drawing("graph", "graph", "The graph of stages", _draw(picture), titles)


def _draw(picture: PlacedGraph) -> Figure:
    figure, axes = free_panel(picture.width + 2 * MARGIN, picture.height + 2 * MARGIN)
    axes.set(xlim=(-MARGIN, picture.width + MARGIN), ylim=(picture.height + MARGIN, -MARGIN))
    for edge in picture.edges:
        path = _curved(edge)
        axes.add_patch(PathPatch(path, fill=False, ec=light("muted"), lw=0.9, alpha=0.65))
    for place, box in enumerate(picture.boxes):
        is_bad = any(member.status == "failed" for member in box.members)
        has_result = any(member.has_result for member in box.members)
        colour, muted = light(role_colour(box.role)), light("bad" if is_bad else "muted")
        shape = FancyBboxPatch(
            (box.x, box.y),
            box.width,
            box.height,
            boxstyle="round,pad=0,rounding_size=4",
            fc=(colour, 0.13),
            ec=muted if is_bad else colour,
            lw=1.5 if is_bad else 0.9,
            ls="-" if has_result or is_bad else (0, (4, 3)),
            gid=f"box-{place}",
        )
        axes.add_patch(shape)
        times = f" ×{len(box.members)}" if len(box.members) > 1 else ""
        x, y, name = box.x + 8, box.y, shorten(box.label, 27) + times
        axes.text(x, y + 11, name, va="center", weight="bold", fontsize=9, clip_on=False)
        axes.text(x, y + 22.5, outcome_of(box.members), va="center", fontsize=7.8, color=muted)
    return figure


def _curved(points: Sequence[tuple[float, float]]) -> Path:
    """Horizontal at every point: across a layer straight, between layers an S."""
    vertices, codes = [points[0]], [Path.MOVETO]
    for (x, y), (next_x, next_y) in pairwise(points):
        half = (x + next_x) / 2
        vertices += [(half, y), (half, next_y), (next_x, next_y)]
        codes += [Path.CURVE4] * 3
    return Path(vertices, codes)


def title_of(box: Box) -> str:
    """The stages of a box with their numbers and fingerprints, a line each, and their errors."""
    lines = [f"{box.label} · {box.members[0].kind} · {box.role or 'stage'}"]
    lines += [_line(member) for member in box.members[:NAMED_MEMBERS]]
    if len(box.members) > NAMED_MEMBERS:
        lines.append(f"… and {len(box.members) - NAMED_MEMBERS} more")
    errors = [f"{member.name}: {shorten(member.error, 200)}" for member in box.members if member.error]
    return "\n".join([*lines, *errors])


def _line(member: StageView) -> str:
    facts = [f"{member.name}: {member.status}", elapsed(member.seconds)]
    if member.parameters is not None:
        facts.append(f"{compact(member.parameters)} parameters")
    if accuracy := measured([member], Accuracy.on("test")):
        facts.append(f"test {mean_percent(accuracy)}")
    return ", ".join([*facts, member.fingerprint])
