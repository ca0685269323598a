"""The graph of stages: an inline SVG in the page's own colours, with a title on every box, and the same for a PNG."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

from raydistill.report.layout import Box, Edge, Picture
from raydistill.report.theme import light, role_colour
from raydistill.report.words import duration, outcome_of, percent, shorten, size
from raydistill.runs.view import StageView

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.path import Path

MARGIN = 4.0
NARROWEST = 0.72  # the part of its size to which the drawing shrinks before it scrolls
NAMED_MEMBERS = 12


def graph_svg(picture: Picture) -> str:
    """The whole drawing. Its natural size is one pixel per unit."""
    width, height = picture.width + 2 * MARGIN, picture.height + 2 * MARGIN
    edges = "".join(_edge(edge) for edge in picture.edges)
    boxes = "".join(_box(box) for box in picture.boxes)
    return (
        f'<svg role="img" aria-label="The graph of stages" viewBox="{-MARGIN} {-MARGIN} {width:.0f} {height:.0f}"'
        f' style="max-width:{width:.0f}px;min-width:{NARROWEST * width:.0f}px" font-size="12.5">{edges}{boxes}</svg>'
    )


def _edge(edge: Edge) -> str:
    (x, y), *rest = edge.points
    path = [f"M{x:.1f} {y:.1f}"]
    for next_x, next_y in rest:
        half = (x + next_x) / 2
        path.append(f"C{half:.1f} {y:.1f} {half:.1f} {next_y:.1f} {next_x:.1f} {next_y:.1f}")
        x, y = next_x, next_y
    return f'<path d="{"".join(path)}" fill="none" stroke="var(--muted)" stroke-opacity=".65" stroke-width="1.2"/>'


def _box(box: Box) -> str:
    colour = f"var(--{role_colour(box.role)})"
    is_bad = any(member.status == "failed" for member in box.members)
    is_empty = not is_bad and not any(member.has_result for member in box.members)
    border = "var(--bad)" if is_bad else colour
    dashes = ' stroke-dasharray="4 3"' if is_empty else ""
    times = f' <tspan fill="var(--muted)">×{len(box.members)}</tspan>' if len(box.members) > 1 else ""
    outcome = "var(--bad)" if is_bad else "var(--muted)"
    x, y = box.x, box.y
    shape = f'x="{x:.1f}" y="{y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="5"'
    return (
        f"<g><title>{escape(_title(box))}</title>"
        f'<rect {shape} fill="var(--paper)"/>'
        f'<rect {shape} fill="{colour}" fill-opacity=".13" stroke="{border}"'
        f' stroke-width="{2 if is_bad else 1.2}"{dashes}/>'
        f'<text x="{x + 11:.1f}" y="{y + 18:.1f}" font-weight="600" fill="var(--ink)">'
        f"{escape(shorten(box.label, 27))}{times}</text>"
        f'<text x="{x + 11:.1f}" y="{y + 33:.1f}" font-size="11" fill="{outcome}">'
        f"{escape(outcome_of(box.members))}</text></g>"
    )


def _title(box: Box) -> str:
    lines = [f"{box.label} · {box.members[0].kind} · {box.role or 'stage'}"]
    lines += [_line(member) for member in box.members[:NAMED_MEMBERS]]
    if len(box.members) > NAMED_MEMBERS:
        lines.append(f"… and {len(box.members) - NAMED_MEMBERS} more")
    return "\n".join([*lines, *_errors(box.members)])


def _line(member: StageView) -> str:
    facts = [f"{member.name}: {member.status}", duration(member.seconds)]
    if member.parameters is not None:
        facts.append(f"{size(member.parameters)} parameters")
    if (accuracy := member.metric("test/accuracy")) is not None:
        facts.append(f"test {percent(accuracy)}")
    return ", ".join([*facts, member.fingerprint])


def _errors(members: Sequence[StageView]) -> list[str]:
    return [f"{member.name}: {shorten(member.error, 200)}" for member in members if member.error]


def draw_graph(picture: Picture) -> "Figure":
    """The same picture for a PNG; one unit is a point."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch, PathPatch

    margin = 8
    size = (picture.width + 2 * margin, picture.height + 2 * margin)
    figure = Figure(figsize=(size[0] / 72, size[1] / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-margin, picture.width + margin)
    axes.set_ylim(picture.height + margin, -margin)
    axes.set_axis_off()
    for edge in picture.edges:
        axes.add_patch(PathPatch(_curved(edge.points), fill=False, ec=light("muted"), lw=0.9, alpha=0.7))
    for box in picture.boxes:
        colour = light(role_colour(box.role))
        is_bad = any(member.status == "failed" for member in box.members)
        shape = FancyBboxPatch(
            (box.x, box.y),
            box.width,
            box.height,
            boxstyle="round,pad=0,rounding_size=5",
            fc=colour + "22",
            ec=light("bad") if is_bad else colour,
            lw=1.6 if is_bad else 0.9,
            ls="-" if any(member.has_result for member in box.members) or is_bad else (0, (4, 3)),
        )
        axes.add_patch(shape)
        times = f" ×{len(box.members)}" if len(box.members) > 1 else ""
        axes.text(
            box.x + 10, box.y + 15, shorten(box.label, 26) + times, va="center", fontweight="bold", fontsize=9
        )
        axes.text(
            box.x + 10,
            box.y + 30,
            outcome_of(box.members),
            va="center",
            fontsize=7.8,
            color=light("bad") if is_bad else light("muted"),
        )
    return figure


def _curved(points: Sequence[tuple[float, float]]) -> "Path":
    """Horizontal at every point: across a layer straight, between layers an S."""
    from matplotlib.path import Path

    vertices, codes = [points[0]], [Path.MOVETO]
    for (x, y), (next_x, next_y) in pairwise(points):
        half = (x + next_x) / 2
        vertices += [(half, y), (half, next_y), (next_x, next_y)]
        codes += [Path.CURVE4] * 3
    return Path(vertices, codes)
