"""Plots of what a model predicts: confusion, reliability, and soft targets beside their pictures."""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray

from raydistill.report.examples import Example
from raydistill.report.story import Calibration, Story
from raydistill.report.theme import light, role_colour
from raydistill.report.words import percent, shorten

LABELLED_CLASSES = 30
MATRIX_CELLS = 100
CARD_WIDTH, CARD_HEIGHT, LEGEND_HEIGHT = 330.0, 104.0, 24.0  # points
FEW = 20  # samples in a bin below which its accuracy says little


def draw_confusion(matrix: NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Errors by true and predicted class. Up to 30 classes have names and numbers, above 100 classes share cells."""
    classes = len(matrix)
    step = math.ceil(classes / MATRIX_CELLS)
    cells = merge_classes(matrix, step)
    size = 4.6 if classes > 12 else 4.0
    figure = Figure(figsize=(size + 0.5, size + 0.25), layout="constrained")
    axes = figure.add_subplot()
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
    figure = Figure(figsize=(3.3, 3.75))
    edges = {"left": 0.23, "right": 0.925, "top": 0.93, "bottom": 0.115, "hspace": 0.12}
    axes, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True, gridspec_kw=edges)
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


def draw_examples(story: Story) -> Figure:
    """Each picture beside the probabilities of teacher and student, at T = 1 and at the student's temperature.

    One panel in points for everything: two dozen panels with axes of their own take half of a report's time.
    """
    across, down = min(2, len(story.examples)), math.ceil(len(story.examples) / 2)
    width, height = across * CARD_WIDTH, down * CARD_HEIGHT + LEGEND_HEIGHT
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_autoscale_on(False)
    _draw_legend(axes, story)
    for index, example in enumerate(story.examples):
        row, column = divmod(index, 2)
        _draw_card(axes, story, example, column * CARD_WIDTH, LEGEND_HEIGHT + row * CARD_HEIGHT)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("auto")
    return figure


def _draw_legend(axes: Axes, story: Story) -> None:
    names = [story.teaching.name if story.teaching else "", story.student.name if story.student else ""]
    for place, (name, colour) in enumerate(zip(names, _colours(story), strict=True)):
        x = 10 + 140 * place
        axes.add_patch(Rectangle((x, 7), 8, 8, color=colour, linewidth=0))
        axes.text(x + 13, 11.5, shorten(name, 22), va="center", fontsize=8)


def _draw_card(axes: Axes, story: Story, example: Example, left: float, top: float) -> None:
    """A picture with its label, and to its right a column of bars for each temperature."""
    side = 70.0
    axes.imshow(
        example.picture,
        cmap="gray" if example.picture.ndim == 2 else None,
        vmin=0,
        vmax=255,
        extent=(left + 10, left + 10 + side, top + 14 + side, top + 14),
    )
    label = shorten(story.class_name(example.label), 16)
    axes.text(left + 10, top + 7, f"label {label}", va="center", fontsize=8, fontweight="bold")
    temperatures = [1.0] if story.temperature == 1 else [1.0, story.temperature]
    for place, temperature in enumerate(temperatures):
        start = left + 130 + 100 * place
        axes.text(start, top + 7, f"T = {temperature:g}", va="center", fontsize=8, color=light("muted"))
        largest = max(max(bar.teacher[place], bar.student[place]) for bar in example.bars)
        for row, bar in enumerate(example.bars):
            y = top + 14 + row * 15
            if place == 0:
                name = shorten(story.class_name(bar.label), 8)
                axes.text(start - 5, y + 6, name, ha="right", va="center", fontsize=7.5)
            for line, share in enumerate((bar.teacher[place], bar.student[place])):
                size = (60 * share / largest, 5)
                colour = _colours(story)[line]
                axes.add_patch(Rectangle((start, y + 6 * line), *size, color=colour, linewidth=0))
                place_of_text = (start + size[0] + 3, y + 6 * line + 3)
                axes.text(*place_of_text, percent(share), va="center", fontsize=5.5, color=light("muted"))


def _colours(story: Story) -> tuple[str, str]:
    """Of the teacher and of the student."""
    return light(role_colour(story.teaching.role if story.teaching else "teacher")), light("student")
