"""A trained model as a module of its own, for programs that hold it in their hands."""

import torch
from torch import Tensor, nn

from raydistill.training.model_files import TrainedModel


class RawModel(nn.Module):
    """A trained model with its normalisation: raw inputs (B, ...) in, logits (B, C) float32 out.

    Pictures are uint8, or floats scaled to [0, 1]. In eval mode and frozen; `requires_grad_()` and `train()` undo that,
    and the gradient reaches the inputs in any case.
    """

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.normalisation, self.model = trained.normalisation, trained.model
        self.class_names, self.input_shape = trained.class_names, trained.input_shape
        self.input_dtype = trained.input_dtype
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.dtype == torch.uint8 and self.input_dtype.is_floating_point:
            inputs = inputs.float() / 255
        logits: Tensor = self.model(self.normalisation(inputs.to(self.input_dtype)))
        return logits.float()
