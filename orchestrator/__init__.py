"""Knowledge distillation on Ray: what users may call from Python. The command line calls nothing else.

    import raydistill

    plan = raydistill.load_plan("plan.yaml", {"stages.student.epochs": 10})
    run = raydistill.run(plan)
    pandas.DataFrame(run.table())
    student = raydistill.load_model(run["student"])

Importing this loads nothing: a name is looked up where it is defined when somebody asks for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raydistill.api import Predictions as Predictions
    from raydistill.api import dry_run as dry_run
    from raydistill.api import load_model as load_model
    from raydistill.api import open_run as open_run
    from raydistill.api import order as order
    from raydistill.api import predict as predict
    from raydistill.api import run as run
    from raydistill.errors import DistillError as DistillError
    from raydistill.errors import PlanError as PlanError
    from raydistill.errors import StageError as StageError
    from raydistill.errors import StoreError as StoreError
    from raydistill.plan.load import build_plan as build_plan
    from raydistill.plan.load import load_plan as load_plan
    from raydistill.plan.load import override_plan as override_plan
    from raydistill.plan.schema import Plan as Plan
    from raydistill.runs.view import RunView as RunView
    from raydistill.runs.view import StageView as StageView

_MODULES = {
    "api": ("Predictions", "dry_run", "load_model", "open_run", "order", "predict", "run"),
    "errors": ("DistillError", "PlanError", "StageError", "StoreError"),
    "plan.load": ("build_plan", "load_plan", "override_plan"),
    "plan.schema": ("Plan",),
    "runs.view": ("RunView", "StageView"),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
