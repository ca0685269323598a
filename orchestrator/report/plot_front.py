"""The front of a search that weighs its metric against a cost, and where teachers and baselines of its plan lie."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raydistill.errors import StoreError
from raydistill.plan.search import Cost
from raydistill.report.figures import Drawing, Look, one_panel, show_magnitudes, show_values
from raydistill.report.formatting import compact, shorten
from raydistill.report.search_summary import SearchSummary
from raydistill.report.theme import light, role_colour
from raydistill.runs.search_view import SearchView
from raydistill.runs.view import StageView, open_run
from raydistill.training.model_cost import counted_cost

MOST_NAMED = 14  # trials whose numbers stand beside them
AXES = {
    "parameters": "parameters",
    "multiply_adds": "multiply-adds for one input",
    "bytes": "bytes on disk",
    "latency": "milliseconds for one input",
}


@dataclass(frozen=True)
class Landmark:
    """A model of the plan that was not searched, the mean over its replicas."""

    name: str
    role: str
    metric: float
    cost: float


def landmarks_of(view: SearchView) -> list[Landmark]:
    """Teachers, assistants and baselines of which both the metric and the cost are known. Nobody measured their latency
    beside the trials'."""
    found: dict[str, Landmark] = {}
    cost = view.about.cost
    for path in view.plan_runs if cost and cost != "latency" else ():
        with suppress(StoreError):  # the run was cleaned away
            stages: dict[str, list[StageView]] = {}
            for stage in open_run(view.root / path, view.root).in_role("teacher", "assistant", "baseline"):
                stages.setdefault(stage.group, []).append(stage)
            for name, group in stages.items():
                if (landmark := _landmark(name, group, view.metric, cost)) is not None:
                    found[name] = landmark
    return list(found.values())


def _landmark(name: str, group: Sequence[StageView], metric: str, cost: Cost | None) -> Landmark | None:
    assert cost is not None
    metrics, costs = [], []
    for stage in group:
        value = stage.metrics.get(metric)
        with suppress(StoreError, OSError):
            known = counted_cost(stage.folder.path, cost)
            if value is not None and known:
                metrics.append(value)
                costs.append(known)
    return Landmark(name, group[0].role, fmean(metrics), fmean(costs)) if metrics else None


def front_drawings(summary: SearchSummary) -> Iterator[Drawing]:
    """Nothing for a search without a cost."""
    if summary.front:
        title = f"{summary.metric} against {AXES[str(summary.view.about.cost)]}"
        yield Drawing("front", "front", title, draw_front(summary, landmarks_of(summary.view)))


def draw_front(summary: SearchSummary, landmarks: Sequence[Landmark]) -> Figure:
    """A point per trial, a line along those that no other beats. A triangle at the edge: beyond it."""
    figure, axes = one_panel(5.4, 3.6)
    cost = summary.view.about.cost
    scale = 1000.0 if cost == "latency" else 1.0
    in_front = {trial.id for trial in summary.front}
    shown = [summary.value(trial) for trial in summary.front] + [landmark.metric for landmark in landmarks]
    room = 0.08 * (max(shown) - min(shown))
    low, high = (
        min(summary.limits[0], min(shown) - room),
        max(summary.limits[1], max(shown) + room),
    )
    for trial in summary.done:
        if trial.cost is None or trial.id in in_front:
            continue
        value = summary.value(trial)
        marker = "o" if low <= value <= high else "v" if value < low else "^"
        look: Look = {"color": light("muted"), "alpha": 0.45, "ms": 4.5, "mew": 0}
        axes.plot(scale * trial.cost, min(max(value, low), high), marker, clip_on=False, **look)
    costs = [scale * (trial.cost or 0.0) for trial in summary.front]
    values = [summary.value(trial) for trial in summary.front]
    line: Look = {"color": light("student"), "lw": 1.0, "drawstyle": "steps-post", "zorder": 2}
    axes.plot(costs, values, **line)
    axes.plot(costs, values, "o", color=light("student"), ms=6, zorder=3, clip_on=False)
    if len(costs) <= MOST_NAMED:
        for trial, x, y in zip(summary.front, costs, values, strict=True):
            _name(axes, str(trial.number), (x, y), "ink", summary.sign)
    for landmark in landmarks:
        colour = role_colour(landmark.role)
        axes.plot(scale * landmark.cost, landmark.metric, "D", color=light(colour), ms=6, zorder=3)
        _name(
            axes, shorten(landmark.name, 22), (scale * landmark.cost, landmark.metric), colour, summary.sign
        )
    _show_costs(axes, str(cost))
    axes.set(ylim=(low, high), ylabel=summary.metric)
    show_values(axes, is_fraction=summary.is_fraction, bins=5)
    return figure


def _name(axes: Axes, text: str, place: tuple[float, float], colour: str, sign: float) -> None:
    """To the left of a point, on the side where nothing better can be."""
    look: Look = {"ha": "right", "va": "bottom" if sign > 0 else "top", "fontsize": 8, "zorder": 4}
    axes.annotate(text, place, (-3, 3 * sign), textcoords="offset points", color=light(colour), **look)


def _show_costs(axes: Axes, cost: str) -> None:
    is_whole = cost != "latency"
    show_magnitudes(axes, AXES[cost], lambda value: compact(round(value)) if is_whole else f"{value:g}")
    axes.margins(x=0.12)
