"""Workers share trainings; whatever else asked for several ran whole on each of them."""

from typing import Any

import pytest

from raydistill.errors import PlanError
from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.kinds.stages import STAGES
from raydistill.plan.load import check_plan
from raydistill.plan.written import parse_source

PLAN = """\
name: shared
task: {name: mnist}
stages:
  teacher: {stage: train, model: {name: mlp}, epochs: 1, resources: {workers: 2}}
"""
OTHERS = {
    "quantize": "{stage: quantize, model: teacher, resources: {workers: 2}}",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_more_than_one_worker_is_refused_where_nobody_shares_the_work(kind: str) -> None:
    with pytest.raises(
        PlanError,
        match=r"plan.yaml:5: stages.other.resources.workers: workers share trainings and predictions",
    ):
        check_plan(parse_source(f"{PLAN}  other: {OTHERS[kind]}\n", "plan.yaml"))


def test_exactly_trainings_and_predictions_share_their_work() -> None:
    found: dict[str, Any] = {kind.word: kind.shares_work for kind in STAGES}
    assert found == {
        kind.word: issubclass(kind, TrainingConfig) or kind.workers_come_and_go for kind in STAGES
    }
