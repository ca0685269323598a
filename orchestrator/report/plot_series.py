"""Plots of clusters and of series: the similarity matrix, errors against temperature, train beside validation."""

from collections.abc import Sequence
from itertools import accumulate

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from raydistill.report.clusters import Cells, Clustering
from raydistill.report.plot_models import (
    LINE_STYLES,
    Line,
    learning_curves,
    lower_limit,
    name_ends,
    one_panel,
)
from raydistill.report.sweep import Sweep
from raydistill.report.theme import light, role_colour
from raydistill.report.transfers import TransferGroup
from raydistill.report.words import count, shorten

NAMED_CLASSES = 40
FRAMED_CLUSTERS = 150
PALETTE = (
    "teacher",
    "assistant",
    "committee",
    "targets",
    "ensemble",
    "specialist",
    "clusters",
    "baseline",
    "student",
)


def draw_similarity(clustering: Clustering) -> Figure:
    """The similarity of classes in the order of their clusters, which are framed."""
    assert clustering.cells is not None
    classes = len(clustering.order)
    figure, axes = one_panel(5.1, 4.9)
    axes.imshow(
        shades(clustering.cells), interpolation="nearest", extent=(-0.5, classes - 0.5, classes - 0.5, -0.5)
    )
    if len(clustering.clusters) <= FRAMED_CLUSTERS:
        _frame(axes, clustering.sizes)
    names = [shorten(name, 12) for cluster in clustering.names for name in cluster]
    if classes <= NAMED_CLASSES and len(names) == classes:
        is_long = max(map(len, names)) > 2
        size = 8.5 if classes <= 15 else 6.0
        axes.set_xticks(range(classes), names, rotation=90 if is_long else 0, fontsize=size)
        axes.set_yticks(range(classes), names, fontsize=size)
    else:
        axes.xaxis.set_major_locator(NullLocator())
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter(lambda value, _: count(value))
        axes.set_ylabel("classes, by cluster")
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(light("rule"))
    return figure


def _frame(axes: Axes, sizes: Sequence[int]) -> None:
    for end, size in zip(accumulate(sizes), sizes, strict=True):
        start = end - size - 0.5
        width = 1.3 if len(sizes) <= 30 else 0.6
        axes.add_patch(
            Rectangle((start, start), size, size, fill=False, ec=light("ink"), lw=width, clip_on=False)
        )


def shades(cells: Cells) -> NDArray[np.float64]:
    """RGBA: the root of a similarity's way from the median to the largest; in grey a class beside itself."""
    known = cells[np.isfinite(cells)]
    low, high = (float(np.median(known)), float(known.max())) if known.size else (0.0, 0.0)
    painted = np.empty((*cells.shape, 4))
    painted[..., :3] = matplotlib.colors.to_rgb(light("student"))
    painted[..., 3] = np.sqrt(np.clip((cells - low) / max(high - low, 1e-12), 0, 1))
    painted[np.isnan(cells)] = (*matplotlib.colors.to_rgb(light("muted")), 0.3)
    return painted


def draw_temperatures(sweep: Sweep) -> Figure:
    """Mean test errors with their deviation against T, a line per student."""
    figure, axes = one_panel(5.4, 3.6)
    lines, colours = [], distinct_colours(["student"] * len(sweep.lines))
    for place, (line, colour) in enumerate(zip(sweep.lines, colours, strict=True)):
        measured = [(heat, row.errors) for heat, row in line.points if row.errors is not None]
        heats = np.array([heat for heat, _ in measured])
        errors = np.array([spread.mean for _, spread in measured])
        deviations = np.array([spread.deviation or 0.0 for _, spread in measured])
        # Lines stand a little apart, so that their deviations can be told from each other.
        apart = heats * 1.012 ** (place - (len(sweep.lines) - 1) / 2)
        axes.errorbar(
            apart,
            errors,
            yerr=deviations if deviations.any() else None,
            color=colour,
            marker="o",
            ms=4,
            elinewidth=1,
            capsize=2,
            linestyle=LINE_STYLES[place // len(PALETTE) % len(LINE_STYLES)],
        )
        lines.append(Line(line.label, "", apart, errors, errors - deviations, errors + deviations))
    _scale_temperatures(axes, sweep.temperatures, lines)
    name_ends(axes, lines, colours)
    return figure


def _scale_temperatures(axes: Axes, temperatures: Sequence[float], lines: Sequence[Line]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(temperatures)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("temperature T")
    means = np.concatenate([line.mean for line in lines])
    if means.min() > 0 and means.max() / means.min() > 3:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator(round_numbers(float(means.min()), float(means.max()))))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: count(value))
    axes.set_ylabel("test errors")
    axes.grid(axis="y")


def distinct_colours(roles: Sequence[str]) -> list[str]:
    """A colour for each: the first of a role has the role's, others what is left; of many, some come twice."""
    own = [role_colour(role) for role in roles]
    spare = [name for name in PALETTE if name not in own] or list(PALETTE)
    chosen = []
    for place, name in enumerate(own):
        earlier = own[:place]
        chosen.append(light(spare[(place - len(set(earlier))) % len(spare)] if name in earlier else name))
    return chosen


def round_numbers(low: float, high: float) -> list[float]:
    """1, 2 or 5 times a power of ten, from below `low` to above `high`."""
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    steps = sorted(float(factor * power) for power in powers for factor in (1, 2, 5))
    below = max(step for step in steps if step <= low)
    above = min(step for step in steps if step >= high)
    return [step for step in steps if below <= step <= above]


def draw_transfers(group: TransferGroup) -> Figure | None:
    """Accuracy over epochs on what was learned from and on validation, on one scale; None without curves."""
    panels = [
        (title, learning_curves(group.competitors, metric))
        for title, metric in (("Train", "train/accuracy"), ("Validation", "validation/accuracy"))
    ]
    lines = [line for _, found in panels for line in found]
    if not lines:
        return None
    roles = {line.label: line.role for line in lines}
    colours = dict(zip(roles, distinct_colours(list(roles.values())), strict=True))
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    both = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (title, found) in zip(both, panels, strict=True):
        for line in found:
            axes.fill_between(
                line.epochs, line.low, line.high, color=colours[line.label], alpha=0.16, linewidth=0
            )
            marker = "o" if len(line.epochs) == 1 else None
            axes.plot(line.epochs, line.mean, color=colours[line.label], marker=marker, ms=4, lw=1.3)
        axes.set_title(f"{title} accuracy")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
        axes.grid(axis="y")
        axes.margins(x=0.01)
    bottom, top = lower_limit(lines), max(float(line.high.max()) for line in lines)
    if top > bottom:
        both[0].set_ylim(bottom, min(1.003, top + 0.04 * (top - bottom)))
    named = panels[1][1] or panels[0][1]
    name_ends(both[1 if panels[1][1] else 0], named, [colours[line.label] for line in named])
    return figure
