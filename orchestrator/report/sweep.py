"""Students that differ in nothing but their temperature: which T suits which student (arXiv 1503.02531, section 3)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raydistill.report.comparison import Competitor
from raydistill.report.formatting import compact
from raydistill.report.predictions import methods_of, temperature_of
from raydistill.report.transfers import model_of

FEWEST = 3  # temperatures that make a line


@dataclass(frozen=True)
class SweepLine:
    """One student at several temperatures, coldest first."""

    label: str
    points: tuple[tuple[float, Competitor], ...]

    @property
    def best(self) -> list[float]:
        """The temperatures with the best mean validation accuracy: one, or several that are equal."""
        means = self._validation()
        return [heat for heat, mean in means.items() if mean == max(means.values())]

    @property
    def close(self) -> list[float]:
        """Other temperatures whose mean validation accuracy is within the best one's deviation over replicas."""
        means, best = self._validation(), self.best
        if not best:
            return []
        deviations = [
            row.validation.deviation or 0.0
            for heat, row in self.points
            if heat in best and row.validation is not None
        ]
        limit = max(means.values()) - max(deviations)
        return [heat for heat, mean in means.items() if mean >= limit and heat not in best]

    def at(self, temperature: float) -> Competitor | None:
        """The student at this temperature."""
        return dict(self.points).get(temperature)

    def _validation(self) -> dict[float, float]:
        return {heat: row.validation.mean for heat, row in self.points if row.validation is not None}


@dataclass(frozen=True)
class Sweep:
    """All students with three temperatures or more, largest first."""

    lines: tuple[SweepLine, ...]

    @property
    def temperatures(self) -> list[float]:
        """All temperatures that occur."""
        return sorted({heat for line in self.lines for heat, _ in line.points})

    @property
    def students(self) -> list[Competitor]:
        """Every student at every temperature."""
        return [row for line in self.lines for _, row in line.points]

    @property
    def is_repeated(self) -> bool:
        """Whether there are replicas."""
        return any(len(row.results) > 1 for row in self.students)

    @property
    def chosen(self) -> Competitor:
        """The student with the best mean validation accuracy, the larger one of equals."""
        return max(self.students, key=lambda row: row.validation.mean if row.validation else 0.0)


def find_sweep(competitors: Iterable[Competitor]) -> Sweep | None:
    """The students of a plan that were taught at three temperatures or more, all else being equal."""
    groups: dict[str, dict[float, Competitor]] = {}
    for competitor in competitors:
        if competitor.errors is not None:
            first = competitor.results[0]
            if (alike := _all_but_temperature(first.config)) is not None:
                groups.setdefault(alike, {}).setdefault(temperature_of(first), competitor)
    series = [sorted(group.items()) for group in groups.values() if len(group) >= FEWEST]
    series.sort(key=lambda points: -(points[0][1].parameters or 0))
    lines = [SweepLine(label, tuple(points)) for label, points in zip(_labels(series), series, strict=True)]
    return Sweep(tuple(lines)) if lines else None


def _all_but_temperature(config: Mapping[str, Any]) -> str | None:
    """The rest of a student's config, without its replica's seed; None for a method that has no temperature."""
    methods = methods_of(config)
    if not any("temperature" in method for method in methods):
        return None
    rest = [{key: value for key, value in method.items() if key != "temperature"} for method in methods]
    return json.dumps({**config, "method": None, "methods": rest, "seed": None}, sort_keys=True)


def _labels(series: Sequence[Sequence[tuple[float, Competitor]]]) -> list[str]:
    """What tells the students apart: their name, the options that differ, their size; if need be their first stage."""
    firsts = [points[0][1] for points in series]
    models = [model_of(first.members[0]) for first in firsts]
    options = [_options(model) for model in models]
    names = [
        " ".join([str(model.get("name", "student")), *_differing(own, options)])
        + (f" ({compact(first.parameters)})" if first.parameters else "")
        for model, own, first in zip(models, options, firsts, strict=True)
    ]
    return [
        f"{name}, {first.name} …" if names.count(name) > 1 else name
        for name, first in zip(names, firsts, strict=True)
    ]


def _options(model: Mapping[str, Any]) -> dict[str, Any]:
    options = model.get("options")
    return options if isinstance(options, dict) else {}


def _differing(own: Mapping[str, Any], all_options: Sequence[Mapping[str, Any]]) -> list[str]:
    """Options in which these models are not all the same, as words: `300-300`, `depth 20`."""
    words = []
    for key, value in own.items():
        if any(other.get(key) != value for other in all_options):
            is_list = isinstance(value, list)
            words.append("-".join(map(str, value)) if is_list else f"{key} {value}")
    return words
