"""Plots of a search: trials across all its options, each option alone, learning curves, how it went over time, and what
the members of a population went through.

Optuna draws some of these too, but always in its own light colours, without the best trial, the plan's own values and
the trials that were stopped early, and labels of logarithmic options lie over each other.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from raydistill.report.figures import Drawing, Look, axis_text, bar_places, one_panel, show_steps, show_values
from raydistill.report.formatting import shorten
from raydistill.report.importance import Importance
from raydistill.report.search_summary import Axis, SearchSummary, Step, metric_limits
from raydistill.report.theme import light
from raydistill.runs.search_formatting import short
from raydistill.runs.search_run import TrialRecord

COLOUR, BEST = "model", "student"
WEAKEST = 0.13  # alpha of the worst trial's line
NAMED_VALUES = 12  # choices that are named on an axis
DOTS = (0, (1, 1.5))


def search_drawings(summary: SearchSummary, importance: Importance) -> Iterator[Drawing]:
    """Everything there is to draw about a search."""
    if not summary.measured:
        return
    yield Drawing("parallel-coordinates", "parallel", "All trials across all options", draw_parallel(summary))
    for axis in summary.axes:
        title = f"{summary.metric} against {axis.name}"
        yield Drawing(f"value-{axis.name}", "values", title, draw_values(summary, axis))
    if importance.means:
        title = "Which options mattered"
        yield Drawing("importance", "importance", title, draw_importance(summary, importance))
    if summary.view.is_population:
        title = f"{summary.metric} of the members"
        yield Drawing("population-metric", "population", title, draw_members(summary))
        for axis in summary.axes:
            title = f"{axis.name} of the members"
            yield Drawing(f"population-{axis.name}", "population", title, draw_option(axis, summary.steps))
        return
    if max(len(trial.epochs) for trial in summary.measured) > 1:
        title = "Learning curves of all trials"
        yield Drawing("learning-curves", "curves", title, draw_trial_curves(summary))
    yield Drawing("over-time", "time", "The best trial so far", draw_over_time(summary))


def _alpha(summary: SearchSummary, trial: TrialRecord) -> float:
    return 1.0 if trial is summary.best else WEAKEST + (0.85 - WEAKEST) * summary.strength(trial) ** 2


def _colour(summary: SearchSummary, trial: TrialRecord) -> str:
    return light(BEST if trial is summary.best else COLOUR)


def draw_parallel(summary: SearchSummary) -> Figure:
    """A line per trial through its values to its metric. Dashed: stopped early."""
    last = len(summary.axes)
    figure, axes = one_panel(max(4.9, min(2.6 + 1.2 * last, 12)), 4.0)
    low, high = summary.limits
    for trial in summary.best_last:
        metric = (min(max(summary.value(trial), low), high) - low) / (high - low)
        places = [*(axis.place(trial.values[axis.path]) for axis in summary.axes), metric]
        look: Look = {"lw": 2.4, "marker": "o", "ms": 4.5} if trial is summary.best else {"lw": 1.3}
        style = (0, (4, 2)) if trial.status == "stopped_early" else "-"
        look |= {"color": _colour(summary, trial), "alpha": _alpha(summary, trial), "linestyle": style}
        axes.plot(range(last + 1), places, clip_on=False, **look)
    for place, axis in enumerate(summary.axes):
        named = axis.ticks if len(axis.ticks) <= NAMED_VALUES else [axis.ticks[0], axis.ticks[-1]]
        _draw_axis(axes, place, axis.name, {axis.place(tick): short(tick) for tick in named})
    ticks = [tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    texts = [axis_text(tick, is_fraction=summary.is_fraction) for tick in ticks]
    heights = [(tick - low) / (high - low) for tick in ticks]
    _draw_axis(axes, last, summary.metric, dict(zip(heights, texts, strict=True)), is_last=True)
    axes.set_axis_off()
    axes.set(xlim=(-0.45, last + 0.4), ylim=(-0.03, 1.1))
    return figure


def _draw_axis(
    axes: Axes, place: int, name: str, ticks: Mapping[float, str], *, is_last: bool = False
) -> None:
    """An axis with its labels to the left, where lines arrive; those of the last one stand outside."""
    side, align = (1, "left") if is_last else (-1, "right")
    look: Look = {"color": light("muted"), "lw": 0.9, "zorder": 3}
    axes.plot([place, place], [0, 1], **look)
    axes.text(place, 1.06, shorten(name, 22), ha="center", va="bottom", weight="bold")
    for height, text in ticks.items():
        axes.plot([place + side * 0.025, place], [height, height], **look)
        shown = shorten(text, 16)
        axes.text(place + side * 0.045, height, shown, ha=align, va="center", fontsize=8, zorder=4)


def draw_values(summary: SearchSummary, axis: Axis) -> Figure:
    """The metric against one option. Hollow: stopped early; a triangle at the edge: beyond it."""
    figure, axes = one_panel(3.9, 2.9)
    choice, own = axis.domain.choice, summary.view.about.own.get(axis.path)
    # Equal choices stand a little to the side of each other, so that they do not hide each other.
    aside = {
        trial.id: ((trial.number * 0.618) % 1 - 0.5) * 0.36 if choice else 0.0 for trial in summary.measured
    }
    places = {
        trial.id: _coordinate(axis, trial.values[axis.path]) + aside[trial.id] for trial in summary.measured
    }
    _draw_points(axes, summary, places)
    if own is not None and axis.holds(own):
        axes.axvline(_coordinate(axis, own), color=light("baseline"), lw=1, linestyle=(0, (3, 2)), zorder=0)
    if choice is not None:
        texts = [shorten(short(value), 14) for value in choice]
        turn, align = (30, "right") if max(map(len, texts)) * len(texts) > 40 else (0, "center")
        axes.set_xticks(range(len(texts)), texts, rotation=turn, ha=align)
        axes.set_xlim(-0.6, len(texts) - 0.4)
    elif axis.domain.is_logarithmic:
        axes.set_xscale("log")
        _name_values(axes.xaxis, axis)
    axes.set_xlabel(axis.name)
    return figure


def _coordinate(axis: Axis, value: Any) -> float:
    """The place of a choice, or the number itself."""
    return float(axis.domain.choice.index(value) if axis.domain.choice is not None else value)


def _name_values(side: Any, axis: Axis) -> None:
    """The ticks of a logarithmic option on one side of a plot."""
    side.set_major_locator(FixedLocator(axis.ticks))
    side.set_minor_locator(NullLocator())
    side.set_major_formatter(lambda value, _: short(float(value)))


def _draw_points(axes: Axes, summary: SearchSummary, places: Mapping[str, float]) -> None:
    low, high = summary.limits
    for trial in summary.measured:
        value, is_best = summary.value(trial), trial is summary.best
        marker = "o" if low <= value <= high else "v" if value < low else "^"
        colour = _colour(summary, trial)
        axes.plot(
            places[trial.id],
            min(max(value, low), high),
            marker,
            color=colour,
            mfc="none" if trial.status != "done" else colour,
            mew=1.0,
            alpha=1.0 if is_best else 0.3 + 0.6 * summary.strength(trial),
            ms=7 if is_best else 5,
            zorder=3 if is_best else 2,
            clip_on=False,
        )
    axes.set(ylim=(low, high), ylabel=summary.metric)
    show_values(axes, is_fraction=summary.is_fraction, bins=5)


def draw_importance(summary: SearchSummary, importance: Importance) -> Figure:
    """A bar per option, the most important first."""
    order = np.argsort(importance.means)[::-1]
    figure, axes = one_panel(4.9, 0.75 + 0.33 * len(order))
    lengths = [max(importance.means[index], 0.0) for index in order]
    spreads = [importance.deviations[index] for index in order]
    whiskers: Look = {"ecolor": light("ink"), "elinewidth": 0.9, "capsize": 2}
    colour = (light(COLOUR), 0.8)
    axes.barh(range(len(order)), lengths, height=0.6, color=colour, xerr=spreads, error_kw=whiskers)
    bar_places(axes, [shorten(summary.axes[index].name, 26) for index in order])
    axes.set(xlim=(0, None), xlabel="R² lost when its values are shuffled")
    return figure


def draw_trial_curves(summary: SearchSummary) -> Figure:
    """The metric over epochs, a line per trial; those stopped early end in a ring."""
    figure, axes = one_panel(5.4, 3.6)
    ends: list[float] = []
    for trial in summary.best_last:
        if not trial.epochs:
            continue
        epochs = sorted(trial.epochs)
        values = [trial.epochs[epoch] for epoch in epochs]
        look: Look = {"color": _colour(summary, trial), "alpha": _alpha(summary, trial)}
        axes.plot(epochs, values, lw=2 if trial is summary.best else 1, **look)
        if trial.status == "stopped_early":
            axes.plot(epochs[-1], values[-1], "o", ms=3.5, mfc=light("paper"), mew=0.9, **look)
        ends += values[len(values) // 2 :]
    # The second half of the curves is what is looked at; their steep beginning may leave the picture.
    low, high = summary.limits
    late = float(np.quantile(ends, 0.05 if summary.sign > 0 else 0.95))
    axes.set_ylim((min(low, late), high) if summary.sign > 0 else (low, max(high, late)))
    show_values(axes, is_fraction=summary.is_fraction)
    show_steps(axes, "epoch")
    axes.set_ylabel(summary.metric)
    axes.margins(x=0.02)
    return figure


def draw_over_time(summary: SearchSummary) -> Figure:
    """Every trial by its number, and the best finished one so far."""
    figure, axes = one_panel(5.4, 3.2)
    _draw_points(axes, summary, {trial.id: float(trial.number) for trial in summary.measured})
    numbers, bests = best_so_far(summary)
    if numbers:
        last = max(trial.number for trial in summary.trials)
        axes.step([*numbers, last], [*bests, bests[-1]], where="post", color=light(BEST), lw=1.4, zorder=1)
    failed = [trial.number for trial in summary.failed]
    bottom = [summary.limits[0]] * len(failed)
    axes.plot(failed, bottom, "x", color=light("bad"), ms=5, mew=1.4, clip_on=False)
    show_steps(axes, "trial", bins=8)
    return figure


def best_so_far(summary: SearchSummary) -> tuple[list[int], list[float]]:
    """The numbers of the trials that were better than all before them, and their values."""
    numbers: list[int] = []
    values: list[float] = []
    for trial in sorted(summary.done, key=lambda trial: trial.number):
        if not values or summary.sign * (summary.value(trial) - values[-1]) > 0:
            numbers.append(trial.number)
            values.append(summary.value(trial))
    return numbers, values


def draw_members(summary: SearchSummary) -> Figure:
    """The metric over epochs, each segment tied to the one that it goes on from."""
    figure, axes = one_panel(3.9, 2.9)
    for step in summary.steps:
        curve = dict(sorted(step.trial.epochs.items()))
        if step.before is not None and step.before.epochs:
            last = max(step.before.epochs)
            curve = {last: step.before.epochs[last], **curve}
        _draw_step(axes, step, list(curve), list(curve.values()))
    show_values(axes, is_fraction=summary.is_fraction, bins=5)
    values = [value for step in summary.steps for value in step.trial.epochs.values()]
    if values:  # the steep beginning, and who never got on, may leave the picture
        axes.set_ylim(metric_limits(values, summary.sign))
    return _over_epochs(figure, axes, summary.metric)


def draw_option(axis: Axis, steps: Sequence[Step]) -> Figure:
    """The values of one option over epochs."""
    figure, axes = one_panel(3.9, 2.9)
    if axis.domain.is_logarithmic:
        axes.set_yscale("log")
        _name_values(axes.yaxis, axis)
    for step in steps:
        value, start = step.trial.values[axis.path], step.segment.start
        _draw_step(axes, step, [start, max(step.trial.epochs, default=start)], [value, value])
        if step.segment.donor is not None and step.before is not None:
            _draw_step(axes, step, [start, start], [step.before.values[axis.path], value], is_jump=True)
    return _over_epochs(figure, axes, axis.name)


def _draw_step(
    axes: Axes, step: Step, epochs: list[int], values: list[float], *, is_jump: bool = False
) -> None:
    colour, alpha, width = (light(BEST), 1.0, 2.2) if step.is_of_best else (light(COLOUR), 0.45, 1.0)
    look: Look = {"lw": 1.0, "linestyle": DOTS} if is_jump else {"lw": width, "linestyle": "-"}
    axes.plot(epochs, values, color=colour, alpha=alpha, solid_capstyle="butt", **look)


def _over_epochs(figure: Figure, axes: Axes, name: str) -> Figure:
    show_steps(axes, "epoch")
    axes.set_ylabel(name)
    axes.grid(axis="y")
    axes.margins(x=0.02)
    return figure
