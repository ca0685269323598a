"""Plots of how good models are: their errors side by side, whether their confidence can be trusted, and what teacher
and student say about a few pictures."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from raydistill.report.comparison import Competitor
from raydistill.report.costs import pareto_front
from raydistill.report.examples import Example
from raydistill.report.figures import Look, bar_places, free_panel, one_panel, show_magnitudes
from raydistill.report.formatting import compact, mean, percent, shorten, whole
from raydistill.report.summary import Calibration, RunSummary
from raydistill.report.theme import light, role_colour

WIDTH = 4.9  # inches
LETTER = 5.1  # mean width of a letter in points
MOST_NAMED = 12  # of more models only those of the front have room for their names
HEADROOM = 1.18  # above the topmost point, for its mark and its name
FEW = 20  # samples in a bin below which its accuracy says little
CARD, SIDE, NAMES, ROW = 258.0, 62.0, 62.0, 18.0  # points
SHOWN_PIXELS = 160  # on the longer side of a picture
Shares = tuple[tuple[str, float], ...]


def draw_errors(rows: Sequence[Competitor]) -> Figure:
    """A bar per model with its mean number of test errors; a dot per replica."""
    names = [_name_of(row) for row in rows]
    figure, axes = one_panel(WIDTH, 0.55 + 0.31 * len(rows))
    room = 72 * WIDTH - LETTER * max(map(len, names)) - 20
    limit = 1.0
    for row in rows:  # the numbers stand beside the bars and must fit
        assert row.errors is not None
        taken = (LETTER * len(_text_of(row)) + 14) / room
        limit = max(limit, max(row.errors.values) / max(0.2, 1 - taken))
    for place, row in enumerate(rows):
        assert row.errors is not None
        values, colour, alpha = (
            row.errors.values,
            light(role_colour(row.role)),
            0.45 if row.adjusted else 0.85,
        )
        axes.barh(place, row.errors.mean, height=0.62, color=colour, alpha=alpha, linewidth=0)
        if len(values) > 1:
            look: Look = {"ms": 3.2, "mfc": light("paper"), "mec": light("ink"), "mew": 0.8}
            axes.plot(values, [place] * len(values), "o", **look)
        axes.text(max(values) + 0.022 * limit, place, _text_of(row), va="center", color=light("ink"))
    bar_places(axes, names)
    axes.set_xlim(0, limit)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: whole(value))
    samples = {row.samples for row in rows if row.samples}
    axes.set_xlabel("test errors" + (f" of {whole(max(samples))}" if len(samples) == 1 else ""))
    return figure


def draw_front(rows: Sequence[Competitor]) -> Figure:
    """Test errors against multiply-adds; a line along the models that no other beats in both."""
    figure, axes = one_panel(WIDTH, 2.9)
    front = pareto_front(rows)
    axes.plot(
        [row.multiply_adds or 0 for row in front],
        [row.errors.mean for row in front if row.errors],
        color=light("muted"),
        drawstyle="steps-post",
        linewidth=0.8,
        zorder=1,
    )
    for row in rows:
        assert row.errors is not None
        assert row.multiply_adds is not None
        colour, is_best = light(role_colour(row.role)), row in front
        look: Look = {"ms": 5.5, "mfc": colour if is_best else light("paper"), "mec": colour, "mew": 1.2}
        axes.plot([row.multiply_adds], [row.errors.mean], "o", **look)
        if is_best or len(rows) <= MOST_NAMED:
            place = (row.multiply_adds, row.errors.mean)
            axes.annotate(_name_of(row), place, (5, 4), textcoords="offset points", color=light("ink"))
    # Of the axis and not of the points' own range: these may all lie close to the top.
    axes.set_ylim(0, HEADROOM * max((row.errors.mean for row in rows if row.errors), default=0) or 1)
    show_magnitudes(axes, "multiply-adds for one input", lambda value: compact(round(value)))
    axes.margins(x=0.25)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_ylabel("test errors")
    return figure


def _name_of(row: Competitor) -> str:
    return shorten(row.name, 26) + (f" ×{row.times}" if row.times > 1 else "")


def _text_of(row: Competitor) -> str:
    assert row.errors is not None
    rate = f" ({percent(row.error_rate)})" if row.error_rate is not None else ""
    return f"{mean(row.errors)}{rate}{' oracle' if row.adjusted and row.adjusted.is_oracle else ''}"


def draw_reliability(calibration: Calibration) -> Figure:
    """Accuracy by confidence against the diagonal of a calibrated model; below, how many samples each bin holds."""
    bins = calibration.bins
    filled, width = bins.counts > 0, 1 / len(bins.counts)
    left, counts = bins.edges[:-1][filled], bins.counts[filled]
    accuracy, confidence = bins.accuracy[filled], bins.confidence[filled]
    figure = Figure(figsize=(3.3, 3.75))
    edges = {"left": 0.23, "right": 0.925, "top": 0.93, "bottom": 0.115, "hspace": 0.12}
    axes, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True, gridspec_kw=edges)
    colour = light(role_colour(calibration.role))
    look: Look = {
        "align": "edge",
        "color": [(colour, 0.85 if number >= FEW else 0.3) for number in counts],
        "ec": light("paper"),
        "lw": 0.6,
    }
    axes.plot([0, 1], [0, 1], color=light("muted"), lw=0.9, ls=(0, (4, 3)))
    axes.bar(left, accuracy, width, **look)
    # The distance that the calibration error measures, where there are enough samples to measure it.
    right, claimed = accuracy[counts >= FEW], confidence[counts >= FEW]
    axes.vlines(claimed, np.minimum(right, claimed), np.maximum(right, claimed), color=light("ink"), lw=1)
    axes.plot(claimed, claimed, "o", ms=2.4, color=light("ink"))
    axes.set_title(f"{shorten(calibration.name, 30)}: ECE {percent(calibration.error)}")
    axes.set(ylabel="accuracy", ylim=(0, 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    below.bar(left, counts, width, **look)
    below.set(yscale="log", ylim=(0.7, None), ylabel="samples", xlabel="confidence")
    below.yaxis.set_minor_locator(NullLocator())
    below.yaxis.set_major_formatter(lambda value, _: whole(value))
    for panel in (axes, below):
        panel.grid(axis="y")
        panel.set_xlim(0, 1)
        panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    return figure


def draw_example(summary: RunSummary, example: Example) -> Figure:
    """A picture with its label and what it was taken for; below, a column of bars for each temperature.

    One panel in points for everything: panels with axes of their own take half of a report's time.
    """
    top = SIDE + 20
    figure, axes = free_panel(CARD, top + ROW * len(example.bars))
    _show_picture(axes, example)
    label = shorten(summary.class_name(example.label), 22)
    axes.text(SIDE + 14, 16, label, va="center", weight="bold", fontsize=11)
    answers = (("teacher", example.teacher_says), ("student", example.student_says))
    for line, (who, answer) in enumerate(answers):
        is_right = answer == example.label
        said = "right" if is_right else shorten(summary.class_name(answer), 22)
        colour = light("muted" if is_right else "bad")
        axes.text(SIDE + 14, 34 + 15 * line, f"{who}: {said}", va="center", fontsize=10, color=colour)
    width = (CARD - NAMES) / len(summary.temperatures)
    for place, temperature in enumerate(summary.temperatures):
        left = NAMES + width * place
        heading: Look = {"weight": "bold", "fontsize": 8, "color": light("muted")}
        axes.text(left, top - 7, f"T = {temperature:g}", va="center", **heading)
        largest = max(max(bar.teacher[place], bar.student[place]) for bar in example.bars)
        for row, bar in enumerate(example.bars):
            shares = ((summary.teacher_role, bar.teacher[place]), ("student", bar.student[place]))
            _draw_shares(axes, left, top + ROW * row, (width - 38) / largest, shares)
    for row, bar in enumerate(example.bars):
        name, weight = (
            shorten(summary.class_name(bar.label), 11),
            "bold" if bar.label == example.label else "normal",
        )
        axes.text(0, top + ROW * row + 8, name, va="center", weight=weight, fontsize=8)
    return figure


def _show_picture(axes: Axes, example: Example) -> None:
    """The picture in its own proportions, its pixels as they are."""
    height, width = example.picture.shape[:2]
    longest = max(height, width)
    right, bottom = SIDE * width / longest, 2 + SIDE * height / longest
    grey: Look = {"cmap": "gray", "vmin": 0, "vmax": 255} if example.picture.ndim == 2 else {}
    step = math.ceil(longest / SHOWN_PIXELS)
    pixels = example.picture[::step, ::step]
    axes.imshow(pixels, extent=(0, right, bottom, 2), interpolation="none", aspect="auto", **grey)


def _draw_shares(axes: Axes, left: float, top: float, scale: float, shares: Shares) -> None:
    """The probabilities of one class by teacher and student, one below the other."""
    for line, (role, share) in enumerate(shares):
        y, width = top + 8 * line, scale * share
        axes.add_patch(Rectangle((left, y + 1.5), width, 5.4, color=light(role_colour(role)), linewidth=0))
        text = "< 0.1 %" if share < 0.001 else f"{100 * share:.{0 if share >= 0.0995 else 1}f} %"
        axes.text(left + width + 4, y + 4.4, text, va="center", fontsize=7.6, color=light("muted"))
