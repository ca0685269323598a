"""Train a student on what a generator draws, which learns from the teacher alone (DAFL)."""

import torch
from torch import Tensor

from raydistill.errors import StageError
from raydistill.kinds.data_free import DistillWithGeneratorConfig
from raydistill.kinds.training import TransferConfig
from raydistill.methods.dafl import Dafl
from raydistill.runs.context import StageContext
from raydistill.stages.training_stage import build_initial_model, load_data, store_model
from raydistill.tasks.splits import TensorSplit
from raydistill.training import model_files
from raydistill.training.data import TransferSet
from raydistill.training.generator import Dreaming, Generator
from raydistill.training.loop import fit


def distill_with_generator(config: DistillWithGeneratorConfig, context: StageContext) -> dict[str, float]:
    """Train generator and student side by side; the task's data judges the student, and does nothing else."""
    data = load_data(context)
    teacher = model_files.load(context.input(config.teacher), context.device)
    student = build_initial_model(config.student, data, config, context)
    try:
        generator = Generator(config.latent, context.task.input_shape).to(context.device)
        method = Dafl(config, teacher.model, generator)
    except ValueError as error:
        raise StageError(str(error)) from error
    model = Dreaming(generator, student, config.latent)
    transfer = TransferSet(_nothing(config, context.device), teacher.normalisation)
    config = config.replace(transfer=TransferConfig(labelled=False))
    fit(model, method, transfer, data.validation.to(context.device), config, context)
    return store_model(student, config.student, transfer, data, config, context)


def _nothing(config: DistillWithGeneratorConfig, device: str) -> TensorSplit:
    """As many empty inputs as an epoch draws: the loop counts them, the generator draws in their place."""
    rows = torch.arange(config.iterations * config.batch_size, device=device)
    empty: Tensor = torch.zeros(len(rows), 1, 1, 1, device=device)
    return TensorSplit(empty, torch.zeros_like(rows), rows)
