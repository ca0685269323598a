"""The plots, drawn once with matplotlib: as SVG that takes the page's colours, and as PNG on white.

Figures are a hand wide, so that their text stays readable on a phone. Only `Figure` objects are used, no pyplot.
"""

import io
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray

from orchestrator.report.comparison import Competitor
from orchestrator.report.data import Curve, StageResult
from orchestrator.report.examples import Example
from orchestrator.report.layout import Picture, place_graph
from orchestrator.report.story import Calibration, Story
from orchestrator.report.theme import light, role_colour, themed
from orchestrator.report.words import count, mean, outcome_of, percent, shorten

SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "raydistill",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "text.color": light("ink"),
    "axes.edgecolor": light("muted"),
    "axes.labelcolor": light("muted"),
    "axes.titlecolor": light("ink"),
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": light("rule"),
    "grid.linewidth": 0.7,
    "xtick.color": light("muted"),
    "ytick.color": light("muted"),
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}
LINE_STYLES = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))
PNG_DPI = 180
LABELLED_CLASSES = 30
MATRIX_CELLS = 100
FEW = 20  # samples in a bin below which its accuracy says little


@dataclass(frozen=True)
class Plot:
    """A finished plot: `section` says where the page shows it; `svg` is empty where the page draws its own."""

    name: str
    section: str
    title: str
    svg: str
    png: bytes


def draw_plots(story: Story) -> list[Plot]:
    """Everything there is to draw about a run."""
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        # A class name in a script that the font lacks is drawn as boxes in the PNG, and by the browser in the page.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        return [_finish(*drawing) for drawing in _drawings(story)]


Drawing = tuple[str, str, str, Figure]


def _drawings(story: Story) -> Iterable[Drawing]:
    if story.run.stages:
        yield "graph", "png-only", "The graph of stages", draw_graph(place_graph(story.run))
    rows = [competitor for competitor in story.comparison.competitors if competitor.errors]
    if rows:
        yield "comparison", "comparison", "Errors on the test split", draw_errors(rows)
    yield from _draw_curves(story)
    if story.confusion is not None and story.student is not None:
        names = [story.class_name(label) for label in range(len(story.confusion))]
        title = f"Confusion of {story.student.name} on the test split"
        yield "confusion", "confusion", title, draw_confusion(story.confusion, names)
    for calibration in story.calibrations:
        title = f"Reliability of {calibration.name}"
        yield (
            file_name(f"reliability-{calibration.name}"),
            "calibration",
            title,
            draw_reliability(calibration),
        )
    if story.examples:
        yield "soft-targets", "png-only", "Soft targets of a few test pictures", draw_examples(story)


def _draw_curves(story: Story) -> Iterable[Drawing]:
    for name, metric, title, is_fraction in (
        ("validation-accuracy", "validation/accuracy", "Validation accuracy", True),
        ("train-loss", "train/loss", "Training loss", False),
    ):
        lines = learning_curves(story.comparison.competitors, metric)
        if lines:
            yield name, "curves", title, draw_curves(lines, title, is_fraction=is_fraction)


def file_name(name: str) -> str:
    """A name that is safe as a file name everywhere."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def _finish(name: str, section: str, title: str, figure: Figure) -> Plot:
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")  # or it would be worked out again for each format
    svg = "" if section == "png-only" else as_svg(figure, title)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
    figure.clear()
    return Plot(name, section, title, svg, png.getvalue())


def as_svg(figure: Figure, title: str) -> str:
    """An SVG to put into the page: its text in the page's font, its colours the page's variables."""
    from html import escape

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", facecolor="none", dpi=PNG_DPI, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r' id="(?:[A-Za-z]+[A-Za-z0-9.]*_)+\d+"', "", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
    return themed(svg)


# Errors -----------------------------------------------------------------------------------------------------------


def draw_errors(rows: Sequence[Competitor]) -> Figure:
    """A bar per model with its mean number of test errors; a dot per replica."""
    figure, axes = _figure(5.6, 0.55 + 0.31 * len(rows))
    largest = max(max(row.errors.values) for row in rows if row.errors) or 1.0
    for place, row in enumerate(rows):
        assert row.errors is not None
        colour = light(role_colour(row.role))
        axes.barh(place, row.errors.mean, height=0.62, color=colour, alpha=0.85, linewidth=0)
        if len(row.errors.values) > 1:
            values = row.errors.values
            axes.plot(
                values, [place] * len(values), "o", ms=3.2, mfc=light("paper"), mec=light("ink"), mew=0.8
            )
        reach = max(row.errors.values)
        axes.text(reach + 0.018 * largest, place, _errors_text(row), va="center", color=light("ink"))
    axes.set_yticks(range(len(rows)), [_replicated(row) for row in rows], color=light("ink"))
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_xlim(0, largest * 1.42)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    samples = {row.samples for row in rows if row.samples}
    axes.set_xlabel("test errors" + (f" of {count(max(samples))}" if len(samples) == 1 else ""))
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    return figure


def _replicated(row: Competitor) -> str:
    name = shorten(row.name, 26)
    return f"{name} ×{len(row.members)}" if len(row.members) > 1 and not row.computed else name


def _errors_text(row: Competitor) -> str:
    assert row.errors is not None
    rate = f" ({percent(row.error_rate)})" if row.error_rate is not None else ""
    return f"{mean(row.errors)}{rate}"


# Learning curves --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A learning curve over replicas: mean, lowest and highest value by epoch."""

    label: str
    role: str
    epochs: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def learning_curves(competitors: Sequence[Competitor], metric: str) -> list[Line]:
    """One line for every trained model that reported `metric`."""
    lines = []
    for competitor in competitors:
        curves = [stage.curve(metric) for stage in competitor.members if _was_trained(stage, competitor)]
        curves = [curve for curve in curves if curve.epochs]
        if curves:
            lines.append(_average(competitor, curves))
    return lines


def _was_trained(stage: StageResult, competitor: Competitor) -> bool:
    return stage.makes_model and not competitor.computed


def _average(competitor: Competitor, curves: Sequence[Curve]) -> Line:
    by_epoch: dict[float, list[float]] = {}
    for curve in curves:
        # An epoch that a resumed run repeated counts once, with its last value.
        for epoch, value in dict(zip(curve.epochs, curve.values, strict=True)).items():
            by_epoch.setdefault(epoch, []).append(value)
    epochs = sorted(by_epoch)
    label = competitor.name + (f" ×{len(curves)}" if len(curves) > 1 else "")
    return Line(
        label,
        competitor.role,
        np.array(epochs),
        np.array([np.mean(by_epoch[epoch]) for epoch in epochs]),
        np.array([min(by_epoch[epoch]) for epoch in epochs]),
        np.array([max(by_epoch[epoch]) for epoch in epochs]),
    )


def draw_curves(lines: Sequence[Line], title: str, *, is_fraction: bool) -> Figure:
    """Lines with a band from the lowest to the highest replica, named at their ends."""
    figure, axes = _figure(5.2, max(2.9, 0.5 + 0.19 * len(lines)))
    styles: dict[str, int] = {}
    for line in lines:
        style = styles[line.role] = styles.get(line.role, -1) + 1
        colour = light(role_colour(line.role))
        marker = "o" if len(line.epochs) == 1 else None
        axes.fill_between(line.epochs, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(
            line.epochs,
            line.mean,
            color=colour,
            linestyle=LINE_STYLES[style % len(LINE_STYLES)],
            marker=marker,
            ms=4,
        )
    _scale(axes, lines, is_fraction=is_fraction)
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(axis="y")
    axes.margins(x=0.01)
    _name_ends(axes, lines)
    return figure


def _scale(axes: Axes, lines: Sequence[Line], *, is_fraction: bool) -> None:
    """Show where the curves end; the steep beginning may leave the picture."""
    if is_fraction:
        bottom = lower_limit(lines)
        top = max(float(line.high.max()) for line in lines)
        axes.set_ylim(bottom, min(1.0, top + 0.04 * (top - bottom)) if top > bottom else None)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None, symbol=" %"))
        return
    values = np.concatenate([line.mean for line in lines])
    if values.min() > 0 and values.max() / values.min() > 30:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(min(0.0, float(values.min())), None)


def lower_limit(lines: Sequence[Line]) -> float:
    """Where the axis of accuracies begins: low enough for the second half of every curve, and some room below."""
    late = [float(line.low[len(line.low) // 2 :].min()) for line in lines]
    top = max(float(line.high.max()) for line in lines)
    lowest = min(float(line.low.min()) for line in lines)
    bottom = min(late) - 0.6 * (top - min(late)) - 0.01
    return max(0.0, bottom, lowest - 0.1 * (top - lowest) - 0.002)


def _name_ends(axes: Axes, lines: Sequence[Line]) -> None:
    """Write each label beside the end of its line, moved apart where they would touch."""
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    to_unit = axes.transAxes.inverted()
    ends = [to_unit.transform(axes.transData.transform((line.epochs[-1], line.mean[-1]))) for line in lines]
    order = sorted(range(len(lines)), key=lambda index: ends[index][1])
    height = axes.bbox.height * 0.72  # the label's line in points, before the axes are laid out
    places = spread_apart([min(1.0, max(0.0, float(ends[index][1]))) for index in order], 12.5 / height)
    for index, place in zip(order, places, strict=True):
        line, (x, y) = lines[index], ends[index]
        colour = light(role_colour(line.role))
        axes.annotate(
            shorten(line.label, 24),
            xy=(x, min(1.0, max(0.0, y))),
            xytext=(1.035, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            color=colour,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.6,
                "alpha": 0.6,
                "shrinkA": 1,
                "shrinkB": 0,
            },
        )


def spread_apart(wishes: Sequence[float], gap: float) -> list[float]:
    """Places in the same (rising) order at least `gap` apart, as near to the wishes as that allows."""
    blocks: list[tuple[float, int]] = []
    for index, wish in enumerate(wishes):
        blocks.append((wish - index * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (below, left), (above, right) = blocks[-2:]
            blocks[-2:] = [((below * left + above * right) / (left + right), left + right)]
    starts = [start for start, length in blocks for _ in range(length)]
    return [start + index * gap for index, start in enumerate(starts)]


# Confusion and calibration ----------------------------------------------------------------------------------------


def draw_confusion(matrix: NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Errors by true and predicted class. Up to 30 classes have names and numbers, above 100 classes share cells."""
    classes = len(matrix)
    step = math.ceil(classes / MATRIX_CELLS)
    cells = merge_classes(matrix, step)
    size = 4.6 if classes > 12 else 4.0
    figure, axes = _figure(size + 0.5, size + 0.25)
    if classes <= LABELLED_CLASSES:
        _draw_cells(axes, cells)
        _name_classes(axes, names)
    else:
        axes.imshow(
            _shades(cells), interpolation="nearest", extent=(-0.5, classes - 0.5, classes - 0.5, -0.5)
        )
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_aspect("equal")
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(light("rule"))
    return figure


def merge_classes(matrix: NDArray[np.int64], step: int) -> NDArray[np.int64]:
    """Counts with `step` neighbouring classes in one cell, (ceil(C / step),) * 2."""
    starts = np.arange(0, len(matrix), step)
    merged: NDArray[np.int64] = np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)
    return merged


def _strength(cells: NDArray[np.int64]) -> NDArray[np.float64]:
    """How dark a cell is, 0 to 1: errors by the root of their share of the largest; the diagonal lightly."""
    errors = cells * (1 - np.eye(len(cells), dtype=np.int64))
    strength: NDArray[np.float64] = np.sqrt(errors / max(int(errors.max()), 1))
    return strength


def _draw_cells(axes: Axes, cells: NDArray[np.int64]) -> None:
    strength, diagonal = _strength(cells), max(int(np.diag(cells).max()), 1)
    size = 8.5 if len(cells) <= 12 else max(4.0, 100 / len(cells))
    for (row, column), number in np.ndenumerate(cells):
        if not number:
            continue
        on_diagonal = row == column
        alpha = 0.30 * number / diagonal if on_diagonal else 0.08 + 0.72 * strength[row, column]
        colour = light("muted") if on_diagonal else light("student")
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=colour, alpha=alpha, linewidth=0))
        axes.text(column, row, str(number), ha="center", va="center", fontsize=size, color=light("ink"))
    axes.set_xlim(-0.5, len(cells) - 0.5)
    axes.set_ylim(len(cells) - 0.5, -0.5)


def _name_classes(axes: Axes, names: Sequence[str]) -> None:
    labels = [shorten(name, 12) for name in names]
    is_long = max(map(len, labels)) > 3
    size = 8.5 if len(names) <= 12 else 6.5
    axes.set_xticks(range(len(names)), labels, rotation=90 if is_long else 0, fontsize=size)
    axes.set_yticks(range(len(names)), labels, fontsize=size)


def _shades(cells: NDArray[np.int64]) -> NDArray[np.float64]:
    """RGBA cells: the colour of the student, transparent where nothing was confused; the diagonal in grey."""
    colour = matplotlib.colors.to_rgb(light("student"))
    shades = np.empty((*cells.shape, 4))
    shades[..., :3] = colour
    shades[..., 3] = _strength(cells)
    diagonal = np.arange(len(cells))
    shades[diagonal, diagonal] = (*matplotlib.colors.to_rgb(light("muted")), 0.35)
    return shades


def draw_reliability(calibration: Calibration) -> Figure:
    """Accuracy by confidence against the diagonal of a calibrated model; below, how many samples each bin holds."""
    bins = calibration.bins
    filled = bins.counts > 0
    left, width = bins.edges[:-1][filled], 1 / len(bins.counts)
    counts, accuracy, confidence = bins.counts[filled], bins.accuracy[filled], bins.confidence[filled]
    shades = [_shade(calibration.role, 0.8 if number >= FEW else 0.28) for number in counts]
    figure = Figure(figsize=(3.3, 3.75), layout="constrained")
    axes, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    axes.plot([0, 1], [0, 1], color=light("muted"), lw=0.9, ls=(0, (4, 3)))
    axes.bar(left, accuracy, width, align="edge", color=shades, ec=light("paper"), lw=0.6)
    _draw_gaps(axes, accuracy, confidence, counts)
    axes.set_title(f"{shorten(calibration.name, 30)}: ECE {percent(calibration.error)}")
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    below.bar(left, counts, width, align="edge", color=shades, ec=light("paper"), lw=0.6)
    below.set_yscale("log")
    below.set_ylim(0.7, None)
    below.yaxis.set_minor_locator(NullLocator())
    below.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    below.set_ylabel("samples")
    below.set_xlabel("confidence")
    for panel in (axes, below):
        panel.grid(axis="y")
        panel.set_xlim(0, 1)
        panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    return figure


def _draw_gaps(
    axes: Axes, accuracy: NDArray[np.float64], confidence: NDArray[np.float64], counts: NDArray[np.int64]
) -> None:
    """What the calibration error measures, where there are enough samples to measure it."""
    enough = counts >= FEW
    right, claimed = accuracy[enough], confidence[enough]
    axes.vlines(claimed, np.minimum(right, claimed), np.maximum(right, claimed), color=light("ink"), lw=1)
    axes.plot(claimed, claimed, "o", ms=2.4, color=light("ink"))


def _shade(role: str, alpha: float) -> tuple[str, float]:
    return light(role_colour(role)), alpha


# Soft targets -----------------------------------------------------------------------------------------------------


def draw_examples(story: Story) -> Figure:
    """Each picture beside the probabilities of teacher and student, at T = 1 and at the student's temperature."""
    temperatures = [1.0] if story.temperature == 1 else [1.0, story.temperature]
    panels = 1 + len(temperatures)
    rows = math.ceil(len(story.examples) / 2)
    figure = Figure(figsize=(4.4 * min(2, len(story.examples)), 1.5 * rows))
    across = min(2, len(story.examples))
    grid = figure.add_gridspec(
        rows,
        across * panels,
        width_ratios=[1, *[1.25] * (panels - 1)] * across,
        left=0.015,
        right=0.985,
        top=1 - 0.22 / rows,
        bottom=0.16 / rows,
        hspace=0.55,
        wspace=0.35,
    )
    for index, example in enumerate(story.examples):
        row, first = divmod(index, 2)
        picture = figure.add_subplot(grid[row, first * panels])
        _draw_picture(picture, example, story)
        for place, temperature in enumerate(temperatures):
            panel = figure.add_subplot(grid[row, first * panels + 1 + place])
            _draw_bars(panel, example, story, place, temperature)
    return figure


def _draw_picture(axes: Axes, example: Example, story: Story) -> None:
    is_grey = example.picture.ndim == 2
    axes.imshow(example.picture, cmap="gray" if is_grey else None, vmin=0, vmax=255)
    axes.set_axis_off()
    axes.set_title(f"true: {shorten(story.class_name(example.label), 14)}", fontsize=8)


def _draw_bars(axes: Axes, example: Example, story: Story, place: int, temperature: float) -> None:
    rows = np.arange(len(example.bars))
    teacher = [bar.teacher[place] for bar in example.bars]
    student = [bar.student[place] for bar in example.bars]
    axes.barh(rows - 0.19, teacher, 0.36, color=light("ensemble"))
    axes.barh(rows + 0.19, student, 0.36, color=light("student"))
    names = [shorten(story.class_name(bar.label), 10) for bar in example.bars]
    axes.set_yticks(rows, names if place == 0 else [""] * len(names), fontsize=7.5, color=light("ink"))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(2))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None, symbol=" %"))
    axes.tick_params(axis="x", labelsize=7)
    axes.set_title(f"T = {temperature:g}", fontsize=8, fontweight="normal")
    axes.spines["bottom"].set_visible(False)


# The graph --------------------------------------------------------------------------------------------------------


def draw_graph(picture: Picture) -> Figure:
    """The same picture of the graph as on the page."""
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


def _curved(points: Sequence[tuple[float, float]]) -> Path:
    """Horizontal at every point: across a layer straight, between layers an S."""
    vertices, codes = [points[0]], [Path.MOVETO]
    for (x, y), (next_x, next_y) in pairwise(points):
        half = (x + next_x) / 2
        vertices += [(half, y), (half, next_y), (next_x, next_y)]
        codes += [Path.CURVE4] * 3
    return Path(vertices, codes)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()
