"""Plots of a population: what each member reached, and the values it had, over the epochs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from raydistill.report.plot_models import one_panel
from raydistill.report.plots import Drawing, file_name
from raydistill.report.search_story import Axis, SearchStory, metric_limits
from raydistill.report.theme import light
from raydistill.runs.search_run import Segment, TrialRecord
from raydistill.runs.search_words import short

MEMBER, BEST = "model", "student"
DOTS = (0, (1, 1.5))


@dataclass(frozen=True)
class Step:
    """A segment with the one that it goes on from, and whether it is on the way of the best."""

    trial: TrialRecord
    segment: Segment
    before: TrialRecord | None
    is_of_best: bool

    @property
    def end(self) -> int:
        """The last epoch that it has ended."""
        return max(self.trial.epochs, default=self.segment.start)


def population_drawings(story: SearchStory) -> Iterable[Drawing]:
    """The metric of all members, and each option."""
    found = steps(story)
    title = f"{story.metric} of the members"
    yield "population-metric", "population", title, draw_metric(story, found)
    for axis in story.axes:
        title = f"{axis.name} of the members"
        yield file_name(f"population-{axis.name}"), "population", title, draw_option(axis, found)


def steps(story: SearchStory) -> list[Step]:
    """All segments, those on the way of the best last."""
    places = {
        (trial.segment.member, trial.segment.round): trial
        for trial in story.trials
        if trial.segment is not None
    }
    way, trial = set[str](), story.best
    while trial is not None:
        way.add(trial.id)
        trial = _before(trial, places)
    found = [
        Step(trial, trial.segment, _before(trial, places), trial.id in way)
        for trial in places.values()
        if trial.segment is not None
    ]
    return sorted(found, key=lambda step: (step.is_of_best, step.trial.number))


def _before(trial: TrialRecord, places: Mapping[tuple[int, int], TrialRecord]) -> TrialRecord | None:
    """The segment whose weights a segment began with."""
    assert trial.segment is not None
    member = trial.segment.member if trial.segment.donor is None else trial.segment.donor
    return places.get((member, trial.segment.round - 1))


def draw_metric(story: SearchStory, found: list[Step]) -> Figure:
    """The metric over epochs, each segment tied to the one that it goes on from."""
    figure, axes = one_panel(3.9, 2.9)
    for step in found:
        curve = dict(sorted(step.trial.epochs.items()))
        if step.before is not None and step.before.epochs:
            last = max(step.before.epochs)
            curve = {last: step.before.epochs[last], **curve}
        _draw(axes, step, list(curve), list(curve.values()))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    if story.is_fraction:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    values = [value for step in found for value in step.trial.epochs.values()]
    if values:  # the steep beginning, and who never got on, may leave the picture
        low, high = metric_limits(values, story.sign)
        axes.set_ylim(low, high)
    return _labelled(figure, axes, story.metric)


def draw_option(axis: Axis, found: list[Step]) -> Figure:
    """The values of one option over epochs."""
    figure, axes = one_panel(3.9, 2.9)
    if axis.domain.is_logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator(axis.ticks))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: short(float(value)))
    for step in found:
        value, start = step.trial.values[axis.path], step.segment.start
        _draw(axes, step, [start, step.end], [value, value])
        if step.segment.donor is not None and step.before is not None:
            _draw(axes, step, [start, start], [step.before.values[axis.path], value], dots=True)
    return _labelled(figure, axes, axis.name)


def _draw(axes: Axes, step: Step, epochs: list[int], values: list[float], *, dots: bool = False) -> None:
    axes.plot(
        epochs,
        values,
        color=light(BEST if step.is_of_best else MEMBER),
        alpha=1.0 if step.is_of_best else 0.45,
        lw=2.2 if step.is_of_best and not dots else 1.0,
        linestyle=DOTS if dots else "-",
        solid_capstyle="butt",
    )


def _labelled(figure: Figure, axes: Axes, name: str) -> Figure:
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(name)
    axes.grid(axis="y")
    axes.margins(x=0.02)
    return figure
