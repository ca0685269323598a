"""Which method should I pick? Trainings of one model that differ in what taught it, by errors and by what they cost.
And which model: errors against multiply-adds."""

from collections.abc import Sequence
from dataclasses import dataclass

from raydistill.plan.stage import StageConfig
from raydistill.report.comparison import Comparison, Competitor
from raydistill.report.predictions import methods_of

MEBIBYTE = 2**20


@dataclass(frozen=True)
class CostRow:
    """What one way to train a model costs, beside training it on labels alone, which is called `plain`."""

    competitor: Competitor
    plain: str
    times_plain: float | None
    extra: int | None
    mebibytes: float | None

    @property
    def methods(self) -> list[str]:
        """Names of the methods that taught the model; what its kind of stage learns by where that is one of its own."""
        first = self.competitor.members[0]
        names = [str(method["method"]) for method in methods_of(first.config) if "method" in method]
        kind = StageConfig.choices().get(first.kind)
        return names or [(kind.learns_by if kind else "") or first.kind]


def compare_costs(comparison: Comparison) -> list[CostRow]:
    """The students of the baseline's size and the baseline, the fewest errors first; empty if there is one student."""
    for plain in comparison.in_role("baseline"):
        students = [row for row in comparison.in_role("student") if row.parameters == plain.parameters]
        rivals = [row for row in students if row.cost("seconds_per_step")]
        if len(rivals) > 1 and plain.cost("seconds_per_step"):
            rows = sorted([plain, *rivals], key=lambda row: row.errors.mean if row.errors else float("inf"))
            return [_cost_row(row, plain) for row in rows]
    return []


def _cost_row(row: Competitor, plain: Competitor) -> CostRow:
    own, plainly = row.cost("seconds_per_step"), plain.cost("seconds_per_step")
    trained, peak = row.cost("trained_parameters"), row.cost("peak_bytes")
    return CostRow(
        competitor=row,
        plain=plain.name,
        # The fastest replica against the fastest: a slow one was disturbed.
        times_plain=min(own.values) / min(plainly.values) if own and plainly else None,
        extra=round(trained.mean) - row.parameters if trained and row.parameters is not None else None,
        mebibytes=peak.mean / MEBIBYTE if peak else None,
    )


def weighed(comparison: Comparison) -> list[Competitor]:
    """The models with test errors whose multiply-adds are known, if they differ in them: the fewest first."""
    rows = [row for row in comparison.competitors if row.errors and row.multiply_adds]
    rows.sort(key=lambda row: row.multiply_adds or 0)
    return rows if len({row.multiply_adds for row in rows}) > 1 else []


def pareto_front(rows: Sequence[Competitor]) -> list[Competitor]:
    """Those of `weighed` models of which no other has fewer errors for as few multiply-adds, the cheapest first."""
    front: list[Competitor] = []
    for row in sorted(rows, key=lambda row: (row.multiply_adds or 0, row.errors.mean if row.errors else 0.0)):
        assert row.errors is not None
        if not front or (front[-1].errors and row.errors.mean < front[-1].errors.mean):
            front.append(row)
    return front
