"""Train a student that ends in its teacher's classifier (SimKD)."""

from raydistill.errors import StageError
from raydistill.kinds.reuse import ReuseClassifierConfig
from raydistill.methods.simkd import Simkd
from raydistill.models.reused_head import ReusedHead, last_maps, reuse_head
from raydistill.plan.model import ModelConfig
from raydistill.runs.context import StageContext
from raydistill.stages.teachers import frozen_teacher
from raydistill.stages.training_stage import build_initial_model, load_data, note_compared_layers, train_model
from raydistill.stages.transfer_data import load_transfer_set
from raydistill.tasks.splits import TaskData
from raydistill.training import model_files
from raydistill.training.data import Views
from raydistill.training.model_files import TrainedModel


def reuse_classifier(config: ReuseClassifierConfig, context: StageContext) -> dict[str, float]:
    """Train the student and its projector; store them with the teacher's classifier."""
    data = load_data(context)
    views = Views(config.augment, config.seed)
    transfer = load_transfer_set(
        config.transfer, views, context, data, channels_last=config.channels_last, with_unlabelled=True
    )
    teacher = model_files.load(context.input(config.teacher), context.device)
    taught = plain_teacher(ModelConfig.model_validate(teacher.description["model"]))
    model = build_reused(teacher, data, config, context)
    maps, _ = last_maps(teacher.plain, context.task.input_shape)
    options = {"model": _named(config.student), "head": _named(taught), "factor": config.factor}
    made = ModelConfig(name="reused_head", num_classes=config.student.num_classes, options=options)
    method, run = Simkd(maps), frozen_teacher(teacher, (maps,))
    note_compared_layers(context, {config.word: method.compared_layers})
    return train_model(model, made, method, transfer, data, config, context, run)


def build_reused(
    teacher: TrainedModel, data: TaskData, config: ReuseClassifierConfig, context: StageContext
) -> ReusedHead:
    """The student begins as it would alone with this seed; the projector is drawn after it."""
    student = build_initial_model(config.student, data, config, context)
    try:
        reused = reuse_head(student, teacher.plain, context.task.input_shape, config.factor)
    except ValueError as error:
        raise StageError(f"student `{config.student.name}` of `{config.teacher}`: {error}") from error
    return reused.hold_reused()


def plain_teacher(model: ModelConfig) -> ModelConfig:
    """The teacher's architecture; `StageError` for one that is more than a plain network of ours."""
    adapted = [key for key in ("input", "output", "gives", "classes") if getattr(model, key) is not None]
    if adapted or model.is_users_own or model.name in ("branched", "reused_head"):
        why = f"answers through its `{adapted[0]}`" if adapted else f"is of the model `{model.name}`"
        raise StageError(
            f"the teacher {why}, and only a plain network of ours has a classifier that can be reused; take"
            " `stage: distill` with `method: {method: hints}`"
        )
    return model


def _named(model: ModelConfig) -> dict[str, object]:
    return {"name": model.name, **model.options}
