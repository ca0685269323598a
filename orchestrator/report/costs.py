"""Which method should I pick? Trainings of one model that differ in what taught it, by errors and by what they cost."""

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
