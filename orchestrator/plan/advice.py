"""What a plan may say but hardly means: a line each, to be printed and not refused."""

from collections.abc import Iterator

from raydistill.plan.order import Locate
from raydistill.plan.schema import Plan
from raydistill.plan.stage_bases import TrainingConfig
from raydistill.plan.stage_configs import DistillConfig


def advice(plan: Plan, locate: Locate) -> Iterator[str]:
    """Lines about a plan that can be run."""
    starts = {
        stage.initial.rpartition(".")[0] or str(stage.initial)
        for stage in plan.stages.values()
        if isinstance(stage, TrainingConfig) and stage.initial is not None
    }
    for name, stage in plan.stages.items():
        if isinstance(stage, DistillConfig) and not stage.trains_classifier and name not in starts:
            key = "methods" if stage.methods else "method"
            yield locate(
                ("stages", name, key),
                "trains no classifier, and no stage goes on from here with `initial`: the model will guess; add labels"
                " (`{method: labels}`) or soft targets (`{method: hinton}`)",
            ).message
