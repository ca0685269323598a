"""Which teacher layers a student's layers listened to: the attention that a training logged, epoch by epoch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydistill.report.comparison import Competitor
from raydistill.report.curves import Line, learning_curves

LOGGED = re.compile(r"train/(?:[^/]+/)?attention/([^/]+)/([^/]+)")


@dataclass(frozen=True)
class AttentionMap:
    """Mean attention of one student over its replicas: a line over the epochs by (student layer, teacher layer)."""

    name: str
    student_layers: tuple[str, ...]
    teacher_layers: tuple[str, ...]
    lines: dict[tuple[str, str], Line]

    @property
    def last(self) -> NDArray[np.float64]:
        """The last epoch's (student layers, teacher layers)."""
        return np.array(
            [
                [
                    self.lines[own, aim].mean[-1] if (own, aim) in self.lines else np.nan
                    for aim in self.teacher_layers
                ]
                for own in self.student_layers
            ]
        )


def read_attention(competitors: Sequence[Competitor]) -> tuple[AttentionMap, ...]:
    """The map of every student that logged one, in the order of the plan."""
    maps = (_read_map(competitor) for competitor in competitors)
    return tuple(found for found in maps if found is not None)


def _read_map(competitor: Competitor) -> AttentionMap | None:
    logged = dict.fromkeys(name for stage in competitor.results for line in stage.progress for name in line)
    lines = {}
    for name in logged:
        if (match := LOGGED.fullmatch(name)) and (curves := learning_curves([competitor], name)):
            lines[match[1], match[2]] = curves[0]
    if not lines:
        return None
    student_layers, teacher_layers = (tuple(dict.fromkeys(pair[side] for pair in lines)) for side in (0, 1))
    return AttentionMap(competitor.name, student_layers, teacher_layers, lines)
