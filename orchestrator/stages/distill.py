"""Train a student to match its teachers."""

from orchestrator.lookup import load_object
from orchestrator.plan.method_configs import METHODS
from orchestrator.plan.stage_configs import DistillConfig
from orchestrator.runs.context import StageContext
from orchestrator.stages.teachers import live_teacher, stored_teacher
from orchestrator.stages.training_stage import load_data, train_model
from orchestrator.training.data import Views, build_transfer_set
from orchestrator.training.method import Method


def distill(config: DistillConfig, context: StageContext) -> dict[str, float]:
    """Train an assistant or a student, from stored targets or from live teachers."""
    data = load_data(context)
    is_stored = config.mode == "stored"
    views = Views(
        config.augment, config.view_seed if is_stored else config.seed, config.views if is_stored else None
    )
    transfer = build_transfer_set(
        data, config.transfer, views, context.device, channels_last=config.channels_last
    )
    teacher = stored_teacher(config, context, transfer) if is_stored else live_teacher(config, context)
    return train_model(config.student, build_method(config), transfer, data, config, context, teacher)


def build_method(config: DistillConfig) -> Method:
    """The method that the config names."""
    implementation = load_object(METHODS[config.method.method].implementation)
    method: Method = implementation(config.method, config.label_smoothing)
    return method
