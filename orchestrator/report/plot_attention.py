"""The plot of attention: how much each student layer listened to each teacher layer, and how that came about."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from raydistill.report.attention import AttentionMap
from raydistill.report.plot_series import distinct_colours
from raydistill.report.theme import light
from raydistill.report.words import shorten

CELL, LINES = 0.78, 2.4  # inches


def draw_attention(attention: AttentionMap) -> Figure:
    """The last epoch as a heat map with its numbers; beside each row, where there are several epochs, how it came
    about, in the colours of the teacher's layers."""
    rows, columns = attention.last.shape
    has_lines = max(len(line.epochs) for line in attention.lines.values()) > 1
    width = 1.2 + CELL * columns
    figure = Figure(figsize=(width + LINES * has_lines, 1.05 + CELL * rows), layout="constrained")
    colours = distinct_colours(["teacher"] * columns)
    grid = figure.add_gridspec(rows, 1 + has_lines, width_ratios=(width, LINES) if has_lines else None)
    _draw_cells(figure.add_subplot(grid[:, 0]), attention, colours)
    if has_lines:
        panels = [figure.add_subplot(grid[row, 1]) for row in range(rows)]
        _draw_lines(panels, attention, colours)
    return figure


def _draw_cells(axes: Axes, attention: AttentionMap, colours: Sequence[str]) -> None:
    cells = attention.last
    rows, columns = cells.shape
    for (row, column), value in np.ndenumerate(cells):
        if np.isfinite(value):
            corner = (column - 0.5, row - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, color=light("student"), alpha=0.75 * value, linewidth=0))
            axes.text(column, row, f"{value:.3f}", ha="center", va="center", color=light("ink"))
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xticks(range(columns), [shorten(name, 12) for name in attention.teacher_layers])
    for label, colour in zip(axes.get_xticklabels(), colours, strict=True):
        label.set_color(colour)
    axes.set_yticks(range(rows), [shorten(name, 12) for name in attention.student_layers])
    axes.set_xlabel("teacher")
    axes.set_ylabel("student")
    axes.set_title(shorten(attention.name, 10 + 6 * columns))
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(light("rule"))


def _draw_lines(panels: Sequence[Axes], attention: AttentionMap, colours: Sequence[str]) -> None:
    """A panel per student layer, on one scale, with a line where all teacher layers would count the same."""
    top = max(float(line.high.max()) for line in attention.lines.values())
    for axes, own in zip(panels, attention.student_layers, strict=True):
        axes.axhline(1 / len(attention.teacher_layers), color=light("muted"), lw=0.8, ls=(0, (4, 3)))
        for aim, colour in zip(attention.teacher_layers, colours, strict=True):
            if (line := attention.lines.get((own, aim))) is not None:
                axes.fill_between(line.epochs, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
                axes.plot(line.epochs, line.mean, color=colour)
        axes.set_ylim(0, 1.05 * top)
        axes.yaxis.set_major_locator(MaxNLocator(2))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.margins(x=0.01)
        axes.grid(axis="y")
        axes.tick_params(labelbottom=axes is panels[-1])
    panels[-1].set_xlabel("epoch")
