"""The modules that a plan takes its own models from: they must be importable wherever a stage runs."""

from raydistill.plan.model import models_in
from raydistill.plan.schema import Plan


def user_modules(plan: Plan) -> list[str]:
    """`package.module` of every model written as `package.module:function`."""
    names = {model.name for stage in plan.stages.values() for _, model in models_in(stage)}
    return sorted({name.partition(":")[0] for name in names if ":" in name})
