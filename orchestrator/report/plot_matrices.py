"""Plots of cells: confused classes, similar classes, and which teacher layers a student's layers listen to."""

import math
from collections.abc import Sequence
from itertools import accumulate, chain

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from raydistill.report.attention import AttentionMap
from raydistill.report.clusters import Clustering
from raydistill.report.figures import Look, box_in, one_panel, show_steps
from raydistill.report.formatting import shorten, whole
from raydistill.report.plot_lines import distinct_colours, draw_line
from raydistill.report.theme import light

NUMBERED_CLASSES, CONFUSION_CELLS = 30, 100
NAMED_CLASSES, FRAMED_CLUSTERS = 40, 150
CELL, LINES = 0.78, 2.4  # inches


def draw_confusion(matrix: NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Errors by true and predicted class. Up to 30 classes have names and numbers, above 100 classes share cells."""
    classes = len(matrix)
    cells = merge_classes(matrix, math.ceil(classes / CONFUSION_CELLS))
    figure, axes = one_panel(*((5.1, 4.85) if classes > 12 else (4.5, 4.25)))
    # The root makes rare errors visible beside a frequent one; right answers, of which there are many, stay grey.
    errors = cells * (1 - np.eye(len(cells), dtype=np.int64))
    strength = np.sqrt(errors / max(int(errors.max()), 1))
    if classes <= NUMBERED_CLASSES:
        most_right = max(int(np.diag(cells).max()), 1)
        for (row, column), number in np.ndenumerate(cells):
            if number and row == column:
                fill_cell(axes, row, column, str(number), "muted", 0.30 * number / most_right)
            elif number:
                fill_cell(
                    axes, row, column, str(number), "student", 0.08 + 0.72 * float(strength[row, column])
                )
        for text in axes.texts:
            text.set_fontsize(8.5 if classes <= 12 else max(4.0, 100 / classes))
        _name_sides(axes, [shorten(name, 12) for name in names], 8.5 if classes <= 12 else 6.5)
    else:
        _paint(axes, _tint(strength, np.eye(len(cells), dtype=bool), 0.35), classes)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set(xlabel="predicted class", ylabel="true class", aspect="equal")
    box_in(axes)
    return figure


def merge_classes(matrix: NDArray[np.int64], step: int) -> NDArray[np.int64]:
    """Counts with `step` neighbouring classes in one cell, (ceil(C / step),) * 2."""
    starts = np.arange(0, len(matrix), step)
    merged: NDArray[np.int64] = np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)
    return merged


def draw_similarity(clustering: Clustering, uncovered: Sequence[str]) -> Figure:
    """The similarity of classes in the order of their clusters, which are framed; then come `uncovered` ones."""
    assert clustering.cells is not None
    classes, sizes = len(clustering.order), clustering.sizes
    figure, axes = one_panel(5.1, 4.9)
    _paint(axes, shades(clustering.cells), classes)
    if len(sizes) <= FRAMED_CLUSTERS:
        for end, size in zip(accumulate(sizes), sizes, strict=True):
            corner, width = (end - size - 0.5,) * 2, 1.3 if len(sizes) <= 30 else 0.6
            look: Look = {"fill": False, "ec": light("ink"), "lw": width, "clip_on": False}
            axes.add_patch(Rectangle(corner, size, size, **look))
    if classes <= NAMED_CLASSES:
        names = [shorten(name, 12) for name in (*chain.from_iterable(clustering.names), *uncovered)]
        _name_sides(axes, names, 8.5 if classes <= 15 else 6.0)
    else:
        axes.xaxis.set_major_locator(NullLocator())
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter(lambda value, _: whole(value))
        axes.set_ylabel("classes, by cluster")
    box_in(axes)
    return figure


def shades(cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """RGBA: the root of a similarity's way from the median to the largest; in grey a class beside itself."""
    known = cells[np.isfinite(cells)]
    low, high = (float(np.median(known)), float(known.max())) if known.size else (0.0, 0.0)
    strength = np.sqrt(np.clip((cells - low) / max(high - low, 1e-12), 0, 1))
    return _tint(strength, np.isnan(cells), 0.3)


def _tint(strength: NDArray[np.float64], grey: NDArray[np.bool_], alpha: float) -> NDArray[np.float64]:
    """RGBA cells: the student's colour, transparent where there is nothing, and some cells grey."""
    painted = np.empty((*strength.shape, 4))
    painted[..., :3] = matplotlib.colors.to_rgb(light("student"))
    painted[..., 3] = strength
    painted[grey] = (*matplotlib.colors.to_rgb(light("muted")), alpha)
    return painted


def _paint(axes: Axes, colours: NDArray[np.float64], classes: int) -> None:
    """Cells as a picture, on axes that count classes."""
    ends = (-0.5, classes - 0.5, classes - 0.5, -0.5)
    axes.imshow(colours, interpolation="nearest", extent=ends)


def fill_cell(axes: Axes, row: int, column: int, text: str, colour: str, alpha: float) -> None:
    """A cell as a shape, whose colour follows the page, with its number."""
    corner = (column - 0.5, row - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, color=light(colour), alpha=alpha, linewidth=0))
    axes.text(column, row, text, ha="center", va="center", color=light("ink"))


def _name_sides(axes: Axes, names: Sequence[str], font_size: float) -> None:
    """The same names below and at the left; upright below where they are long."""
    turn = 90 if max(map(len, names)) > 3 else 0
    axes.set_xticks(range(len(names)), names, rotation=turn, fontsize=font_size)
    axes.set_yticks(range(len(names)), names, fontsize=font_size)
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5))


def draw_attention(attention: AttentionMap) -> Figure:
    """The last epoch as a heat map with its numbers; beside each row, where there are several epochs, how it came
    about, in the colours of the teacher's layers."""
    rows, columns = attention.last.shape
    has_lines = max(len(line.epochs) for line in attention.lines.values()) > 1
    width = 1.2 + CELL * columns
    figure = Figure(figsize=(width + LINES * has_lines, 1.05 + CELL * rows), layout="constrained")
    colours = distinct_colours(["teacher"] * columns)
    grid = figure.add_gridspec(rows, 1 + has_lines, width_ratios=(width, LINES) if has_lines else None)
    _draw_map(figure.add_subplot(grid[:, 0]), attention, colours)
    if has_lines:
        _draw_history([figure.add_subplot(grid[row, 1]) for row in range(rows)], attention, colours)
    return figure


def _draw_map(axes: Axes, attention: AttentionMap, colours: Sequence[str]) -> None:
    rows, columns = attention.last.shape
    for (row, column), value in np.ndenumerate(attention.last):
        if np.isfinite(value):
            fill_cell(axes, row, column, f"{value:.3f}", "student", 0.75 * float(np.clip(value, 0, 1)))
    axes.set_xticks(range(columns), [shorten(name, 12) for name in attention.teacher_layers])
    axes.set_yticks(range(rows), [shorten(name, 12) for name in attention.student_layers])
    for label, colour in zip(axes.get_xticklabels(), colours, strict=True):
        label.set_color(colour)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xlabel="teacher", ylabel="student")
    axes.set_title(shorten(attention.name, 10 + 6 * columns))
    box_in(axes)


def _draw_history(panels: Sequence[Axes], attention: AttentionMap, colours: Sequence[str]) -> None:
    """A panel per student layer, on one scale, with a line where all teacher layers would count the same."""
    top = max(float(line.high.max()) for line in attention.lines.values())
    for axes, own in zip(panels, attention.student_layers, strict=True):
        axes.axhline(1 / len(attention.teacher_layers), color=light("muted"), lw=0.8, ls=(0, (4, 3)))
        for aim, colour in zip(attention.teacher_layers, colours, strict=True):
            if (line := attention.lines.get((own, aim))) is not None:
                draw_line(axes, line, colour)
        axes.set_ylim(0, 1.05 * top)
        axes.yaxis.set_major_locator(MaxNLocator(2))
        show_steps(axes, "", bins=5)
        axes.margins(x=0.01)
        axes.grid(axis="y")
        axes.tick_params(labelbottom=axes is panels[-1])
    panels[-1].set_xlabel("epoch")
