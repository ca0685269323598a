"""Plots of a search: trials across all its options, each option alone, learning curves, and how it went over time."""

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from raydistill.report.importance import Importance
from raydistill.report.plot_models import one_panel
from raydistill.report.plot_population import population_drawings
from raydistill.report.plots import Drawing, file_name
from raydistill.report.search_story import Axis, SearchStory
from raydistill.report.theme import light
from raydistill.report.words import shorten
from raydistill.runs.search_run import TrialRecord
from raydistill.runs.search_words import short

COLOUR, BEST = "model", "student"
WEAKEST = 0.13
NAMED_VALUES = 12  # choices that are named on an axis


def search_drawings(story: SearchStory, importance: Importance) -> Iterable[Drawing]:
    """Everything there is to draw about a search."""
    if not story.measured:
        return
    yield "parallel-coordinates", "parallel", "All trials across all options", draw_parallel(story)
    for axis in story.axes:
        title = f"{story.metric} against {axis.name}"
        yield file_name(f"value-{axis.name}"), "values", title, draw_values(story, axis)
    if importance.means:
        title = "Which options mattered"
        yield "importance", "importance", title, draw_importance(story, importance)
    if story.view.is_population:
        yield from population_drawings(story)
        return
    if max(len(trial.epochs) for trial in story.measured) > 1:
        yield "learning-curves", "curves", "Learning curves of all trials", draw_trial_curves(story)
    yield "over-time", "time", "The best trial so far", draw_over_time(story)


def _alpha(story: SearchStory, trial: TrialRecord) -> float:
    return WEAKEST + (0.85 - WEAKEST) * story.strength(trial) ** 2


def draw_parallel(story: SearchStory) -> Figure:
    """A line per trial through its values to its metric. Dashed: stopped early."""
    figure, axes = one_panel(max(4.9, min(1.4 + 1.2 * (len(story.axes) + 1), 12)), 4.0)
    low, high = story.limits
    is_best_last = sorted(story.measured, key=lambda trial: (trial is story.best, story.strength(trial)))
    for trial in is_best_last:
        metric = (min(max(story.value(trial), low), high) - low) / (high - low)
        places = [*(axis.place(trial.values[axis.path]) for axis in story.axes), metric]
        is_best = trial is story.best
        axes.plot(
            range(len(places)),
            places,
            color=light(BEST if is_best else COLOUR),
            alpha=1.0 if is_best else _alpha(story, trial),
            lw=2.4 if is_best else 1.3,
            linestyle=(0, (4, 2)) if trial.status == "stopped_early" else "-",
            marker="o" if is_best else None,
            ms=4.5,
            clip_on=False,
        )
    for place, axis in enumerate(story.axes):
        named = axis.ticks if len(axis.ticks) <= NAMED_VALUES else [axis.ticks[0], axis.ticks[-1]]
        _draw_axis(axes, place, axis.name, [(axis.place(tick), short(tick)) for tick in named])
    ticks = [tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    last = [((tick - low) / (high - low), _metric_text(story, tick)) for tick in ticks]
    _draw_axis(axes, len(story.axes), story.metric, last, is_last=True)
    axes.set_axis_off()
    axes.set_xlim(-0.45, len(story.axes) + 0.4)
    axes.set_ylim(-0.03, 1.1)
    return figure


def _draw_axis(
    axes: Axes, place: int, name: str, ticks: Iterable[tuple[float, str]], *, is_last: bool = False
) -> None:
    """An axis with its labels to the left, where lines arrive; those of the last one stand outside."""
    side = 1 if is_last else -1
    axes.plot([place, place], [0, 1], color=light("muted"), lw=0.9, zorder=3)
    axes.text(place, 1.06, shorten(name, 22), ha="center", va="bottom", weight="bold", color=light("ink"))
    for height, text in ticks:
        axes.plot([place + side * 0.025, place], [height, height], color=light("muted"), lw=0.9, zorder=3)
        axes.text(
            place + side * 0.045,
            height,
            shorten(text, 16),
            ha="left" if is_last else "right",
            va="center",
            fontsize=8,
            color=light("ink"),
            zorder=4,
        )


def draw_values(story: SearchStory, axis: Axis) -> Figure:
    """The metric against one option. Hollow: stopped early; a triangle at the edge: beyond it."""
    figure, axes = one_panel(3.9, 2.9)
    _draw_points(axes, story, {trial.id: _position(axis, trial) for trial in story.measured})
    own = story.view.about.own.get(axis.path)
    if own is not None and _is_within(axis, own):
        axes.axvline(_coordinate(axis, own), color=light("baseline"), lw=1, linestyle=(0, (3, 2)), zorder=0)
    if axis.domain.choice is not None:
        texts = [shorten(short(value), 14) for value in axis.domain.choice]
        is_long = max(map(len, texts)) * len(texts) > 40
        axes.set_xticks(
            range(len(texts)), texts, rotation=30 if is_long else 0, ha="right" if is_long else "center"
        )
        axes.set_xlim(-0.6, len(texts) - 0.4)
    elif axis.domain.is_logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(axis.ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: short(float(value)))
    axes.set_xlabel(axis.name)
    return figure


def _is_within(axis: Axis, value: object) -> bool:
    if axis.domain.choice is not None:
        return value in axis.domain.choice
    return isinstance(value, int | float) and axis.domain.low <= value <= axis.domain.high


def _coordinate(axis: Axis, value: object) -> float:
    if axis.domain.choice is not None:
        return float(axis.domain.choice.index(value))
    assert isinstance(value, int | float)
    return float(value)


def _position(axis: Axis, trial: TrialRecord) -> float:
    """The value; of choices the place, a little to the side so that equal trials do not hide each other."""
    jitter = 0.0 if axis.domain.choice is None else ((trial.number * 0.618) % 1 - 0.5) * 0.36
    return _coordinate(axis, trial.values[axis.path]) + jitter


def _draw_points(axes: Axes, story: SearchStory, places: dict[str, float]) -> None:
    low, high = story.limits
    for trial in story.measured:
        value, is_best = story.value(trial), trial is story.best
        is_shown = low <= value <= high
        colour = light(BEST if is_best else COLOUR)
        axes.plot(
            places[trial.id],
            value if is_shown else min(max(value, low), high),
            "o" if is_shown else "v" if value < low else "^",
            color=colour,
            mfc="none" if trial.status != "done" else colour,
            mec=colour,
            mew=1.0,
            alpha=1.0 if is_best else 0.3 + 0.6 * story.strength(trial),
            ms=7 if is_best else 5,
            zorder=3 if is_best else 2,
            clip_on=False,
        )
    _scale_metric(axes, story)
    axes.set_ylabel(story.metric)


def _scale_metric(axes: Axes, story: SearchStory) -> None:
    axes.set_ylim(*story.limits)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: _metric_text(story, value))
    axes.grid(axis="y")


def _metric_text(story: SearchStory, value: float) -> str:
    return f"{100 * value:.4g} %" if story.is_fraction else f"{value:.4g}"


def draw_importance(story: SearchStory, importance: Importance) -> Figure:
    """A bar per option, the most important first."""
    order = np.argsort(importance.means)[::-1]
    figure, axes = one_panel(4.9, 0.75 + 0.33 * len(order))
    for place, index in enumerate(order):
        axes.barh(
            place,
            max(importance.means[index], 0.0),
            height=0.6,
            color=light(COLOUR),
            alpha=0.8,
            xerr=importance.deviations[index],
            error_kw={"ecolor": light("ink"), "elinewidth": 0.9, "capsize": 2},
        )
    axes.set_yticks(
        range(len(order)), [shorten(story.axes[index].name, 26) for index in order], color=light("ink")
    )
    axes.set_ylim(len(order) - 0.45, -0.55)
    axes.set_xlim(0, None)
    axes.set_xlabel("R² lost when its values are shuffled")
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    return figure


def draw_trial_curves(story: SearchStory) -> Figure:
    """The metric over epochs, a line per trial; those stopped early end in a ring."""
    figure, axes = one_panel(5.4, 3.6)
    ends = []
    for trial in [*story.measured, *filter(None, [story.best])]:
        is_best = trial is story.best
        epochs = sorted(trial.epochs)
        if not epochs:
            continue
        values = [trial.epochs[epoch] for epoch in epochs]
        colour, alpha = light(BEST if is_best else COLOUR), 1.0 if is_best else _alpha(story, trial)
        axes.plot(epochs, values, color=colour, alpha=alpha, lw=2 if is_best else 1)
        if trial.status == "stopped_early":
            axes.plot(epochs[-1], values[-1], "o", ms=3.5, mfc=light("paper"), mec=colour, mew=0.9)
        ends += values[len(values) // 2 :]
    low, high = story.limits
    # The second half of the curves is what is looked at; their steep beginning may leave the picture.
    axes.set_ylim(
        *((min(low, _late(ends, 0.05)), high) if story.sign > 0 else (low, max(high, _late(ends, 0.95))))
    )
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: _metric_text(story, value))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(story.metric)
    axes.grid(axis="y")
    axes.margins(x=0.02)
    return figure


def _late(values: list[float], share: float) -> float:
    return float(np.quantile(values, share))


def draw_over_time(story: SearchStory) -> Figure:
    """Every trial by its number, and the best finished one so far."""
    figure, axes = one_panel(5.4, 3.2)
    _draw_points(axes, story, {trial.id: float(trial.number) for trial in story.measured})
    numbers, bests = best_so_far(story)
    if numbers:
        last = max(trial.number for trial in story.trials)
        axes.step([*numbers, last], [*bests, bests[-1]], where="post", color=light(BEST), lw=1.4, zorder=1)
    bottom = story.limits[0]
    for trial in story.failed:
        axes.plot(trial.number, bottom, "x", color=light("bad"), ms=5, mew=1.4, clip_on=False)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("trial")
    return figure


def best_so_far(story: SearchStory) -> tuple[list[int], list[float]]:
    """The numbers of the trials that were better than all before them, and their values."""
    numbers: list[int] = []
    values: list[float] = []
    for trial in sorted(story.done, key=lambda trial: trial.number):
        if not values or story.sign * (story.value(trial) - values[-1]) > 0:
            numbers.append(trial.number)
            values.append(story.value(trial))
    return numbers, values
