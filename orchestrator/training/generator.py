"""The generator of DAFL (arXiv 1904.01186), and a student that sees nothing but what it draws."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raydistill.models.layers import chain, image_shape
from raydistill.models.taps import Output

CHANNELS = 128
EPSILON = 0.8  # the release's, probably meant as momentum; the published numbers were made with it


class Generator(nn.Sequential):
    """Latent vectors (B, latent) to images (B, C, H, W), each channel standardised over the batch, as a normalised
    input is. `ValueError` when the sides are no multiples of 4."""

    def __init__(self, latent: int, input_shape: Sequence[int]) -> None:
        channels, height, width = image_shape(input_shape)
        if height % 4 or width % 4:
            raise ValueError(
                f"the generator draws images whose sides are multiples of 4, not {height}x{width}"
            )
        small = (CHANNELS, height // 4, width // 4)
        super().__init__(
            chain(
                linear=nn.Linear(latent, CHANNELS * small[1] * small[2]),
                shape=nn.Unflatten(1, small),
                norm=nn.BatchNorm2d(CHANNELS),
            ),
            _enlarged(CHANNELS, CHANNELS),
            _enlarged(CHANNELS, CHANNELS // 2),
            chain(
                conv=nn.Conv2d(CHANNELS // 2, channels, 3, padding=1),
                tanh=nn.Tanh(),
                norm=nn.BatchNorm2d(channels, affine=False),
            ),
        )


def _enlarged(channels_in: int, channels_out: int) -> nn.Sequential:
    return chain(
        upsample=nn.Upsample(scale_factor=2),
        conv=nn.Conv2d(channels_in, channels_out, 3, padding=1),
        norm=nn.BatchNorm2d(channels_out, eps=EPSILON),
        relu=nn.LeakyReLU(0.2),
    )


class Dreaming(nn.Module):
    """In training, a generator and the student on what it draws, whatever the inputs; in eval mode, the student.

    The feature `inputs` are the drawn inputs, which a loss may follow back to the generator; the student's logits do
    not lead there.
    """

    def __init__(self, generator: nn.Module, student: nn.Module, latent: int) -> None:
        super().__init__()
        self.generator = generator
        self.student = student
        self.latent = latent

    def forward(self, inputs: Tensor) -> Output:
        if not self.training:
            return Output(self.student(inputs), {})
        drawn = self.generator(torch.randn(len(inputs), self.latent, device=inputs.device))
        return Output(self.student(drawn.detach()), {"inputs": drawn})
