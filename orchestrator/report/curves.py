"""Learning curves: a metric by epoch, the replicas of a model taken together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydistill.report.comparison import Competitor

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """A learning curve over replicas: mean, lowest and highest value by epoch."""

    label: str
    role: str
    epochs: Values
    mean: Values
    low: Values
    high: Values


def learning_curves(competitors: Sequence[Competitor], metric: str) -> list[Line]:
    """One line for every trained model that reported `metric`."""
    trained = (competitor for competitor in competitors if not competitor.computed)
    return [line for competitor in trained if (line := _average(competitor, metric))]


def _average(competitor: Competitor, metric: str) -> Line | None:
    curves = [stage.curve(metric) for stage in competitor.members if stage.makes_model]
    # An epoch that a resumed run repeated counts once, with its last value.
    curves_by_epoch = [dict(zip(curve.epochs, curve.values, strict=True)) for curve in curves if curve.epochs]
    epochs = sorted(set().union(*curves_by_epoch))
    if not epochs:
        return None
    values = [[curve[epoch] for curve in curves_by_epoch if epoch in curve] for epoch in epochs]
    times = f" ×{len(curves_by_epoch)}" if len(curves_by_epoch) > 1 else ""
    mean, low, high = (np.array([measure(found) for found in values]) for measure in (np.mean, min, max))
    return Line(competitor.name + times, competitor.role, np.array(epochs), mean, low, high)
