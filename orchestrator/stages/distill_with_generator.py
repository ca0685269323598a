"""Train a student on what a generator draws, which learns from the teacher alone (DAFL)."""

import torch
from torch import Tensor

from orchestrator.errors import StageError
from orchestrator.methods.dafl import Dafl
from orchestrator.plan.data_free_configs import DistillWithGeneratorConfig
from orchestrator.plan.training_configs import TransferConfig
from orchestrator.runs.context import StageContext
from orchestrator.stages.training_stage import build_initial_model, load_data, store_model
from orchestrator.training import model_files
from orchestrator.training.data import TransferSet
from orchestrator.training.generator import Dreaming, Generator
from orchestrator.training.loop import fit
from tasks.splits import TensorSplit


def distill_with_generator(config: DistillWithGeneratorConfig, context: StageContext) -> dict[str, float]:
    """Train generator and student side by side; the task's data judges the student, and does nothing else."""
    data = load_data(context)
    teacher = model_files.load(context.input(config.teacher), context.device)
    student = build_initial_model(config.student, config, context)
    try:
        generator = Generator(config.latent, context.task.input_shape).to(context.device)
        method = Dafl(config, teacher.model, generator)
    except ValueError as error:
        raise StageError(str(error)) from error
    model = Dreaming(generator, student, config.latent)
    transfer = TransferSet(_nothing(config, context.device), teacher.mean, teacher.std)
    config = config.replace(transfer=TransferConfig(labelled=False))
    fit(model, method, transfer, data.validation.to(context.device), config, context)
    if not context.is_main:
        return {}
    return store_model(student, config.student, transfer, data, config, context)


def _nothing(config: DistillWithGeneratorConfig, device: str) -> TensorSplit:
    """As many empty inputs as an epoch draws: the loop counts them, the generator draws in their place."""
    rows = torch.arange(config.iterations * config.batch_size, device=device)
    empty: Tensor = torch.zeros(len(rows), 1, 1, 1, device=device)
    return TensorSplit(empty, torch.zeros_like(rows), rows)
