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
    from raydistill.api import build_search as build_search
    from raydistill.api import dry_run as dry_run
    from raydistill.api import load_model as load_model
    from raydistill.api import open_run as open_run
    from raydistill.api import order as order
    from raydistill.api import predict as predict
    from raydistill.api import preview_search as preview_search
    from raydistill.api import run as run
    from raydistill.api import survey_labels as survey_labels
    from raydistill.api import tune as tune
    from raydistill.api import with_fetched_models as with_fetched_models
    from raydistill.api import write_reports as write_reports
    from raydistill.errors import DistillError as DistillError
    from raydistill.errors import PlanError as PlanError
    from raydistill.errors import StageError as StageError
    from raydistill.errors import StageStopped as StageStopped
    from raydistill.errors import StoreError as StoreError
    from raydistill.execution.preview import DryRun as DryRun
    from raydistill.execution.preview import Preview as Preview
    from raydistill.explanation import explain as explain
    from raydistill.export import export_model as export_model
    from raydistill.inference.labels import Labelled as Labelled
    from raydistill.inference.labels import Prediction as Prediction
    from raydistill.inference.output import check_output as check_output
    from raydistill.inference.output import write_predictions as write_predictions
    from raydistill.inference.predict import predict_batches as predict_batches
    from raydistill.inference.predict import predict_files as predict_files
    from raydistill.inference_cost import InferenceCost as InferenceCost
    from raydistill.inference_cost import measure_costs as measure_costs
    from raydistill.kinds.method_options import MethodOptions as MethodOptions
    from raydistill.kinds.stage_bases import TrainingConfig as TrainingConfig
    from raydistill.new_plan import write_plan as write_plan
    from raydistill.plan.load import build_plan as build_plan
    from raydistill.plan.load import load_plan as load_plan
    from raydistill.plan.load import override_plan as override_plan
    from raydistill.plan.schema import Plan as Plan
    from raydistill.plan.shipped import find_plan as find_plan
    from raydistill.plan.shipped import headline as headline
    from raydistill.plan.shipped import shipped_plans as shipped_plans
    from raydistill.plan.stage import StageConfig as StageConfig
    from raydistill.prediction import evaluate_model as evaluate_model
    from raydistill.runs.cleaning import Cleaning as Cleaning
    from raydistill.runs.cleaning import Removal as Removal
    from raydistill.runs.cleaning import find_removals as find_removals
    from raydistill.runs.cleaning import remove as remove
    from raydistill.runs.context import StageContext as StageContext
    from raydistill.runs.contrast import Contrast as Contrast
    from raydistill.runs.contrast import contrast as contrast
    from raydistill.runs.inventory import Inventory as Inventory
    from raydistill.runs.inventory import find_stored as find_stored
    from raydistill.runs.inventory import read_inventory as read_inventory
    from raydistill.runs.mirror import open_storage as open_storage
    from raydistill.runs.mirror import storage_name as storage_name
    from raydistill.runs.search_view import SearchView as SearchView
    from raydistill.runs.search_view import open_search as open_search
    from raydistill.runs.view import RunView as RunView
    from raydistill.runs.view import StageView as StageView
    from raydistill.search.preview import SearchPreview as SearchPreview
    from raydistill.search.problem import SearchProblem as SearchProblem
    from raydistill.serving import serve_model as serve_model
    from raydistill.stages.export_targets import export_targets as export_targets
    from raydistill.stages.verify_targets import holds_targets as holds_targets
    from raydistill.stages.verify_targets import verify_files as verify_files
    from raydistill.stages.verify_targets import verify_targets as verify_targets
    from raydistill.tasks.task import Task as Task
    from raydistill.tracking import sync as sync
    from raydistill.tracking.costs import track_costs as track_costs
    from raydistill.training.method import Method as Method
    from raydistill.training.trust import Trust as Trust
    from raydistill.ui import serve as serve

_MODULES = {
    "api": (
        "Predictions",
        "build_search",
        "dry_run",
        "load_model",
        "open_run",
        "order",
        "predict",
        "preview_search",
        "run",
        "survey_labels",
        "tune",
        "with_fetched_models",
        "write_reports",
    ),
    "errors": ("DistillError", "PlanError", "StageError", "StageStopped", "StoreError"),
    "execution.preview": ("DryRun", "Preview"),
    "explanation": ("explain",),
    "export": ("export_model",),
    "inference.labels": ("Labelled", "Prediction"),
    "inference.output": ("check_output", "write_predictions"),
    "inference.predict": ("predict_batches", "predict_files"),
    "inference_cost": ("InferenceCost", "measure_costs"),
    "kinds.method_options": ("MethodOptions",),
    "kinds.stage_bases": ("TrainingConfig",),
    "new_plan": ("write_plan",),
    "plan.load": ("build_plan", "load_plan", "override_plan"),
    "plan.schema": ("Plan",),
    "plan.shipped": ("find_plan", "headline", "shipped_plans"),
    "plan.stage": ("StageConfig",),
    "prediction": ("evaluate_model",),
    "runs.cleaning": ("Cleaning", "Removal", "find_removals", "remove"),
    "runs.context": ("StageContext",),
    "runs.contrast": ("Contrast", "contrast"),
    "runs.inventory": ("Inventory", "find_stored", "read_inventory"),
    "runs.mirror": ("open_storage", "storage_name"),
    "runs.search_view": ("SearchView", "open_search"),
    "runs.view": ("RunView", "StageView"),
    "search.preview": ("SearchPreview",),
    "search.problem": ("SearchProblem",),
    "serving": ("serve_model",),
    "stages.export_targets": ("export_targets",),
    "stages.verify_targets": ("holds_targets", "verify_files", "verify_targets"),
    "tasks.task": ("Task",),
    "tracking": ("sync",),
    "tracking.costs": ("track_costs",),
    "training.method": ("Method",),
    "training.trust": ("Trust",),
    "ui": ("serve",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
