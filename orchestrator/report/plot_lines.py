"""Plots of lines that are named at their ends: learning curves, accuracies on parts of the data, temperatures."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from raydistill.metrics import Accuracy
from raydistill.report.curves import Line, learning_curves
from raydistill.report.figures import Look, one_panel, show_steps, show_values
from raydistill.report.formatting import shorten, whole
from raydistill.report.layout import spread_apart
from raydistill.report.sweep import Sweep
from raydistill.report.theme import ROLE_COLOURS, light, role_colour
from raydistill.report.transfers import TransferGroup

LINE_STYLES = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))
LEADER = {
    "arrowstyle": "-",
    "lw": 0.6,
    "alpha": 0.6,
    "shrinkA": 3,
    "shrinkB": 0,
    "relpos": (0.0, 0.5),
    "patchA": None,  # to cut the line off at its label took a third of all drawing; it begins beside it
}
PARTS = ("train", "validation")
SPARE = [name for name in ROLE_COLOURS if name != "model"]  # which looks like a teacher


def draw_line(axes: Axes, line: Line, colour: str, style: object = "-") -> None:
    """The mean with a band from the lowest to the highest replica; a dot where there is one epoch."""
    axes.fill_between(line.epochs, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
    marker = "o" if len(line.epochs) == 1 else None
    axes.plot(line.epochs, line.mean, color=colour, linestyle=style, marker=marker, ms=4)


def draw_curves(
    lines: Sequence[Line],
    title: str,
    *,
    is_fraction: bool,
    colours: Mapping[str, str] | None = None,
    beside: Sequence[Line] = (),
) -> Figure:
    """Lines in these colours by their labels, or in those of their roles, which have dashes to tell them apart; on one
    scale with those that are drawn `beside` them."""
    figure, axes = one_panel(5.2, max(2.9, 0.95 + 0.178 * len(lines)))
    shades = [colours[line.label] if colours else light(role_colour(line.role)) for line in lines]
    earlier: list[str] = []
    for line, colour in zip(lines, shades, strict=True):
        draw_line(axes, line, colour, LINE_STYLES[earlier.count(colour) % len(LINE_STYLES)])
        earlier.append(colour)
    _scale(axes, [*lines, *beside], is_fraction=is_fraction)
    axes.set_title(title)
    show_steps(axes, "epoch")
    axes.grid(axis="y")
    axes.margins(x=0.01)
    if max(line.epochs[-1] for line in lines) == min(line.epochs[0] for line in lines):
        axes.set_xlim(lines[0].epochs[0] - 1, lines[0].epochs[0] + 1)
    name_ends(axes, lines, shades)
    return figure


def _scale(axes: Axes, lines: Sequence[Line], *, is_fraction: bool) -> None:
    """Show where the curves end; the steep beginning may leave the picture."""
    values = np.concatenate([line.mean for line in lines])
    if is_fraction:
        bottom, top = lower_limit(lines), max(float(line.high.max()) for line in lines)
        axes.set_ylim(bottom, min(1.003, top + 0.04 * (top - bottom)) if top > bottom else None)
        show_values(axes, is_fraction=True)
    elif values.min() > 0 and values.max() / values.min() > 30:
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


def draw_transfers(group: TransferGroup) -> Iterator[tuple[str, Figure]]:
    """Accuracy over epochs on what was learned from and on validation, on one scale, as far as there are curves."""
    train, validation = (learning_curves(group.competitors, Accuracy.on(part)) for part in PARTS)
    roles = {line.label: line.role for line in (*train, *validation)}
    colours = dict(zip(roles, distinct_colours(list(roles.values())), strict=True))
    for part, lines, others in zip(PARTS, (train, validation), (validation, train), strict=True):
        if lines:
            title = f"{part.capitalize()} accuracy"
            yield part, draw_curves(lines, title, is_fraction=True, colours=colours, beside=others)


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
        bars = deviations if deviations.any() else None
        style = LINE_STYLES[place // len(SPARE) % len(LINE_STYLES)]
        look: Look = {
            "marker": "o",
            "ms": 4,
            "elinewidth": 1,
            "capsize": 2,
            "linestyle": style,
            "color": colour,
        }
        axes.errorbar(apart, errors, yerr=bars, **look)
        lines.append(Line(line.label, "", apart, errors, errors - deviations, errors + deviations))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sweep.temperatures))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    means = np.concatenate([line.mean for line in lines])
    if means.min() > 0 and means.max() / means.min() > 3:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator(round_numbers(float(means.min()), float(means.max()))))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: whole(value))
    axes.set(xlabel="temperature T", ylabel="test errors")
    axes.grid(axis="y")
    name_ends(axes, lines, colours)
    return figure


def distinct_colours(roles: Sequence[str]) -> list[str]:
    """A colour for each: the first of a role has the role's, others what is left; of many, some come twice."""
    own = [role_colour(role) for role in roles]
    spare = [name for name in SPARE if name not in own] or SPARE
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


def name_ends(axes: Axes, lines: Sequence[Line], colours: Sequence[str]) -> None:
    """Write each label beside the end of its line, moved apart where they would touch."""
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    to_unit = axes.transAxes.inverted()
    ends = [to_unit.transform(axes.transData.transform((line.epochs[-1], line.mean[-1]))) for line in lines]
    heights = [min(1.0, max(0.0, float(y))) for _, y in ends]
    order = sorted(range(len(lines)), key=lambda index: ends[index][1])
    label_height = 12.5 / (axes.bbox.height * 0.72)  # of a line in points, before the axes are laid out
    places = spread_apart([heights[index] for index in order], label_height)
    for index, place in zip(order, places, strict=True):
        axes.annotate(
            shorten(lines[index].label, 24),
            xy=(ends[index][0], heights[index]),
            xytext=(1.035, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            color=colours[index],
            annotation_clip=False,
            arrowprops={**LEADER, "color": colours[index]},
        )
