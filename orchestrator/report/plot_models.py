"""Plots of models side by side: how alike their layers are, and where in a picture each of them looks."""

import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from raydistill.report.figures import Look, box_in, free_panel
from raydistill.report.formatting import shorten
from raydistill.report.model_comparisons import Agreement, ModelComparison, SeenPicture
from raydistill.report.plot_matrices import fill_cell
from raydistill.report.plot_results import SHOWN_PIXELS
from raydistill.report.theme import light, role_colour

CELL = 0.5  # inches
NUMBERED = 12  # layers on a side, above which cells have no numbers
SIDE, GAP, LINE = 78.0, 12.0, 13.0  # points
MOST_DIFFERENT = math.sqrt(2)


def draw_layers(comparison: ModelComparison, pair: Agreement, measure: str) -> Figure:
    """A measure (`cka` or `mismatch`) of two models' layers; the stronger the colour, the more alike."""
    values = comparison.block(measure, pair)
    likeness = values if measure == "cka" else 1 - values / MOST_DIFFERENT
    first, second = (comparison.models[place] for place in (pair.first, pair.second))
    own, other = (comparison.written.models[place].layers for place in (pair.first, pair.second))
    rows, columns = values.shape
    cell = CELL if max(values.shape) <= NUMBERED else 6 / max(values.shape)
    figure = Figure(figsize=(max(2.6, 1.2 + cell * columns), 1.2 + cell * rows), layout="constrained")
    axes = figure.add_subplot()
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            alpha = 0.8 * float(np.clip(likeness[row, column], 0, 1))
            text = f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−") if cell == CELL else ""
            fill_cell(axes, row, column, text, "student", alpha)
    small: Look = {"fontsize": 8 if cell == CELL else 6}
    axes.set_yticks(range(rows), [shorten(name, 14) for name in own], **small)
    turned: Look = {"rotation": 90 if columns > 3 else 0}
    axes.set_xticks(range(columns), [shorten(name, 14) for name in other], **small, **turned)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.set_ylabel(shorten(first.name, 22), color=light(role_colour(first.role)))
    axes.set_xlabel(shorten(second.name, 22), color=light(role_colour(second.role)))
    axes.set_title("CKA" if measure == "cka" else "semantic mismatch")
    box_in(axes)
    return figure


def draw_looks(comparison: ModelComparison) -> Figure:
    """A row per picture: as it is, and with the colour where each model looks, or pale where it has no maps; below it
    what it says."""
    height = SIDE + 2.6 * LINE
    figure, axes = free_panel(
        (SIDE + GAP) * (1 + len(comparison.models)), LINE + height * len(comparison.pictures)
    )
    for place, stage in enumerate(comparison.models):
        left = (1 + place) * (SIDE + GAP)
        look: Look = {"weight": "bold", "fontsize": 8, "color": light(role_colour(stage.role))}
        axes.text(left, LINE / 2, shorten(stage.name, 14), va="center", **look)
        for row, seen in enumerate(comparison.pictures):
            top = LINE + row * height
            _show(axes, seen, left, top, pale=seen.maps[place] is None)
            if (found := seen.maps[place]) is not None:
                axes.imshow(
                    _tinted(found), extent=_extent(seen, left, top), interpolation="bilinear", aspect="auto"
                )
            colour = light("muted" if seen.answers[place] == seen.label else "bad")
            _caption(axes, left, top, comparison.name(seen.answers[place]), color=colour)
    for row, seen in enumerate(comparison.pictures):
        top = LINE + row * height
        _show(axes, seen, 0, top)
        _caption(axes, 0, top, comparison.name(seen.label), weight="bold")
        axes.text(
            0, top + SIDE + 1.5 * LINE, f"id {seen.sample}", va="center", fontsize=7, color=light("muted")
        )
    return figure


def _caption(axes: Axes, left: float, top: float, text: str, **look: Any) -> None:
    axes.text(left, top + SIDE + LINE / 2 + 2, shorten(text, 14), va="center", fontsize=8, **look)


def _show(axes: Axes, seen: SeenPicture, left: float, top: float, *, pale: bool = False) -> None:
    step = math.ceil(max(seen.picture.shape[:2]) / SHOWN_PIXELS)
    grey: Look = {"cmap": "gray", "vmin": 0, "vmax": 255} if seen.picture.ndim == 2 else {}
    look: Look = {"interpolation": "none", "aspect": "auto", "alpha": 0.25 if pale else 1, **grey}
    axes.imshow(seen.picture[::step, ::step], extent=_extent(seen, left, top), **look)


def _extent(seen: SeenPicture, left: float, top: float) -> tuple[float, float, float, float]:
    """The place of a picture in its own proportions."""
    height, width = seen.picture.shape[:2]
    longest = max(height, width)
    return left, left + SIDE * width / longest, top + SIDE * height / longest, top


def _tinted(found: NDArray[np.floating]) -> NDArray[np.float64]:
    """RGBA (h, w, 4): the student's colour, the stronger the more a place counts."""
    painted = np.empty((*found.shape, 4))
    painted[..., :3] = matplotlib.colors.to_rgb(light("student"))
    painted[..., 3] = 0.75 * found
    return painted
