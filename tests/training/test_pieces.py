"""A batch in pieces says what the whole one says, and none of the pieces is large."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from raydistill.models.taps import Output, Tapped
from raydistill.training.parity import forward_pass
from raydistill.training.pieces import BYTES, FEWEST, logits_by_pieces, output_by_pieces, pieces_of

LARGE = (3, 96, 96)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)
    )


@given(st.integers(1, 700), st.sampled_from([(1,), (784,), (3, 32, 32), LARGE]))
def test_pieces_are_the_batch_in_its_order_and_none_is_large(samples: int, shape: tuple[int, ...]) -> None:
    inputs = torch.arange(float(samples)).reshape(-1, *[1] * len(shape)).expand(-1, *shape)
    pieces = pieces_of(inputs)
    first = (slice(None), *[0] * len(shape))
    assert torch.equal(torch.cat([piece[first] for piece in pieces]), torch.arange(float(samples)))
    for piece in pieces:
        assert len(piece) <= FEWEST or piece.numel() * 4 <= BYTES
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1, "they take the same time"


def test_digits_stay_whole() -> None:
    inputs = torch.rand(500, 1, 28, 28)
    assert [len(piece) for piece in pieces_of(inputs)] == [500]


@pytest.mark.parametrize("samples", [0, 1, 100])
def test_logits_and_features_are_those_of_the_whole_batch(samples: int) -> None:
    model, inputs = network().eval(), torch.rand(samples, *LARGE)
    tapped = Tapped(model, ["1"])
    with torch.no_grad():
        whole = tapped(inputs)
        assert torch.allclose(logits_by_pieces(model, inputs), whole.logits, atol=1e-6)
        output = output_by_pieces(tapped, inputs)
    assert torch.allclose(output.logits, whole.logits, atol=1e-6)
    assert torch.allclose(output.features["1"], whole.features["1"], atol=1e-6)


def test_a_stored_teacher_sees_a_large_batch_piece_by_piece() -> None:
    sizes: list[int] = []
    model = network().eval()
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    with torch.no_grad():
        output: Output = forward_pass(Tapped(model, []), "cpu", "float32")(torch.rand(100, *LARGE))
    assert sum(sizes) == len(output.logits) == 100
    assert max(sizes) < 20


def test_a_program_is_written_for_batches_of_any_size() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = network().eval()

        def forward(self, inputs: Tensor) -> Tensor:
            return logits_by_pieces(self.model, inputs)

    module, size = Split(), torch.export.Dim("batch", min=1, max=10_000)
    program = torch.export.export(module, (torch.rand(100, *LARGE),), dynamic_shapes=({0: size},)).module()
    inputs = torch.rand(3, *LARGE)
    assert torch.allclose(program(inputs), module(inputs), atol=1e-6)


def test_a_device_takes_a_batch_whole() -> None:
    inputs: Tensor = torch.empty(500, *LARGE, device="meta")
    assert len(pieces_of(inputs)) == 1
