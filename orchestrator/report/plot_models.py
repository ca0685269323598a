"""Plots of the models side by side: their errors, and how they learned."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from raydistill.report.comparison import Competitor
from raydistill.report.theme import light, role_colour
from raydistill.report.words import count, mean, percent, shorten
from raydistill.runs.view import Curve, StageView

LINE_STYLES = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))
WIDTH = 4.9  # inches
LEADER = {
    "arrowstyle": "-",
    "lw": 0.6,
    "alpha": 0.6,
    "shrinkA": 3,
    "shrinkB": 0,
    "relpos": (0.0, 0.5),
    "patchA": None,  # to cut the line off at its label took a third of all drawing; it begins beside it
}
LETTER = 5.1  # mean width of a letter in points


def draw_errors(rows: Sequence[Competitor]) -> Figure:
    """A bar per model with its mean number of test errors; a dot per replica."""
    figure, axes = one_panel(WIDTH, 0.55 + 0.31 * len(rows))
    limit = _room_for_labels(rows)
    for place, row in enumerate(rows):
        assert row.errors is not None
        colour = light(role_colour(row.role))
        alpha = 0.45 if row.adjusted else 0.85
        axes.barh(place, row.errors.mean, height=0.62, color=colour, alpha=alpha, linewidth=0)
        if len(row.errors.values) > 1:
            values = row.errors.values
            axes.plot(
                values, [place] * len(values), "o", ms=3.2, mfc=light("paper"), mec=light("ink"), mew=0.8
            )
        reach = max(row.errors.values)
        axes.text(reach + 0.022 * limit, place, _errors_text(row), va="center", color=light("ink"))
    axes.set_yticks(range(len(rows)), [_replicated(row) for row in rows], color=light("ink"))
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_xlim(0, limit)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: count(value))
    samples = {row.samples for row in rows if row.samples}
    axes.set_xlabel("test errors" + (f" of {count(max(samples))}" if len(samples) == 1 else ""))
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    return figure


def _room_for_labels(rows: Sequence[Competitor]) -> float:
    """Where the axis of errors must end so that the numbers beside the bars fit."""
    width = 72 * WIDTH - LETTER * max(len(_replicated(row)) for row in rows) - 20
    ends = [1.0]
    for row in rows:
        if row.errors is not None:
            taken = (LETTER * len(_errors_text(row)) + 14) / width
            ends.append(max(row.errors.values) / max(0.2, 1 - taken))
    return max(ends)


def _replicated(row: Competitor) -> str:
    name = shorten(row.name, 26)
    return f"{name} ×{len(row.members)}" if len(row.members) > 1 and not row.computed else name


def _errors_text(row: Competitor) -> str:
    assert row.errors is not None
    rate = f" ({percent(row.error_rate)})" if row.error_rate is not None else ""
    oracle = " oracle" if row.adjusted and row.adjusted.is_oracle else ""
    return f"{mean(row.errors)}{rate}{oracle}"


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


def _was_trained(stage: StageView, competitor: Competitor) -> bool:
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
    figure, axes = one_panel(5.2, max(2.9, 0.95 + 0.178 * len(lines)))
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
    if max(line.epochs[-1] for line in lines) == min(line.epochs[0] for line in lines):
        axes.set_xlim(lines[0].epochs[0] - 1, lines[0].epochs[0] + 1)
    name_ends(axes, lines, [light(role_colour(line.role)) for line in lines])
    return figure


def _scale(axes: Axes, lines: Sequence[Line], *, is_fraction: bool) -> None:
    """Show where the curves end; the steep beginning may leave the picture."""
    if is_fraction:
        bottom = lower_limit(lines)
        top = max(float(line.high.max()) for line in lines)
        axes.set_ylim(bottom, min(1.0, top + 0.04 * (top - bottom)) if top > bottom else None)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
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


def name_ends(axes: Axes, lines: Sequence[Line], colours: Sequence[str]) -> None:
    """Write each label beside the end of its line, moved apart where they would touch."""
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    to_unit = axes.transAxes.inverted()
    ends = [to_unit.transform(axes.transData.transform((line.epochs[-1], line.mean[-1]))) for line in lines]
    order = sorted(range(len(lines)), key=lambda index: ends[index][1])
    height = axes.bbox.height * 0.72  # the label's line in points, before the axes are laid out
    places = spread_apart([min(1.0, max(0.0, float(ends[index][1]))) for index in order], 12.5 / height)
    for index, place in zip(order, places, strict=True):
        line, colour, (x, y) = lines[index], colours[index], ends[index]
        axes.annotate(
            shorten(line.label, 24),
            xy=(x, min(1.0, max(0.0, y))),
            xytext=(1.035, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            color=colour,
            annotation_clip=False,
            arrowprops={**LEADER, "color": colour},
        )


def spread_apart(wishes: Sequence[float], gap: float) -> list[float]:
    """Places from 0 to 1 in the same (rising) order, at least `gap` apart, as near to the wishes as that allows.

    Without the gaps, places that only have to rise are the solution of isotonic regression: what would overlap moves
    as one block, to the mean of its wishes.
    """
    gap = min(gap, 1 / max(len(wishes) - 1, 1))
    blocks: list[tuple[float, int]] = []
    for index, wish in enumerate(wishes):
        blocks.append((wish - index * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (below, left), (above, right) = blocks[-2:]
            blocks[-2:] = [((below * left + above * right) / (left + right), left + right)]
    highest = 1 - gap * (len(wishes) - 1)
    starts = [min(max(start, 0.0), highest) for start, length in blocks for _ in range(length)]
    return [start + index * gap for index, start in enumerate(starts)]


def one_panel(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this size in inches with one panel."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()
