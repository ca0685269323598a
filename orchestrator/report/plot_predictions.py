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

from orchestrator.report.examples import Example
from orchestrator.report.story import Calibration, Story
from orchestrator.report.theme import light, role_colour
from orchestrator.report.words import percent, shorten

LABELLED_CLASSES = 30
MATRIX_CELLS = 100
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


def draw_examples(story: Story) -> Figure:
    """Each picture beside the probabilities of teacher and student, at T = 1 and at the student's temperature."""
    temperatures = [1.0] if story.temperature == 1 else [1.0, story.temperature]
    panels = 1 + len(temperatures)
    rows = math.ceil(len(story.examples) / 2)
    figure = Figure(figsize=(4.4 * min(2, len(story.examples)), 1.5 * rows + 0.2))
    across = min(2, len(story.examples))
    grid = figure.add_gridspec(
        rows,
        across * panels,
        width_ratios=[1, *[1.25] * (panels - 1)] * across,
        left=0.015,
        right=0.985,
        top=1 - 0.42 / rows,
        bottom=0.16 / rows,
        hspace=0.55,
        wspace=0.35,
    )
    names = [story.teaching.name if story.teaching else "", story.student.name if story.student else ""]
    colours = [_teacher_colour(story), light("student")]
    patches = [Rectangle((0, 0), 1, 1, color=colour) for colour in colours]
    figure.legend(patches, names, loc="upper left", ncols=2, frameon=False, fontsize=8, borderaxespad=0.2)
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
    axes.barh(rows - 0.19, teacher, 0.36, color=_teacher_colour(story))
    axes.barh(rows + 0.19, student, 0.36, color=light("student"))
    names = [shorten(story.class_name(bar.label), 10) for bar in example.bars]
    axes.set_yticks(rows, names if place == 0 else [""] * len(names), fontsize=7.5, color=light("ink"))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(2))
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    axes.tick_params(axis="x", labelsize=7)
    axes.set_title(f"T = {temperature:g}", fontsize=8, fontweight="normal")
    axes.spines["bottom"].set_visible(False)


def _teacher_colour(story: Story) -> str:
    return light(role_colour(story.teaching.role if story.teaching else "teacher"))
