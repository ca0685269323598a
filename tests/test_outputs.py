"""Models that return more, or something else, than logits."""

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raydistill.models.outputs import are_probabilities, likely_output, take_logits

LOGITS = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
OTHER = torch.zeros(2, 7)
Pair = namedtuple("Pair", "loss scores")


class Returns(nn.Module):
    """A network that returns what it was made of."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.weight, self.outputs = nn.Parameter(torch.ones(1)), outputs

    def forward(self, inputs: Tensor) -> Any:
        return self.outputs


@pytest.mark.parametrize(
    ("outputs", "output"),
    [
        ((LOGITS, OTHER), 0),
        ([OTHER, LOGITS], 1),
        ([OTHER, LOGITS], -1),
        (Pair(OTHER, LOGITS), "scores"),
        ({"aux": OTHER, "out": LOGITS}, "out"),
        ({"aux": OTHER, "out": LOGITS}, 1),
        (SimpleNamespace(logits=LOGITS, hidden_states=None), "logits"),
    ],
)
def test_one_of_several_outputs_is_taken(outputs: Any, output: str | int) -> None:
    model = take_logits(Returns(outputs), output, None)
    assert torch.equal(model(LOGITS), LOGITS)
    assert list(model.state_dict()) == ["weight"]


@pytest.mark.parametrize(("outputs", "output"), [((LOGITS,), 1), ({"a": LOGITS}, "b"), (LOGITS, "logits")])
def test_an_output_that_is_not_there_is_named(outputs: Any, output: str | int) -> None:
    with pytest.raises(ValueError, match=f"has no output `{output}`: it returns "):
        take_logits(Returns(outputs), output, None)(LOGITS)


def test_the_softmax_of_what_probabilities_become_is_the_probabilities() -> None:
    probabilities = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
    logits = take_logits(Returns({"p": probabilities}), "p", "probabilities")(LOGITS)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits.softmax(1), probabilities)


@pytest.mark.parametrize(
    ("outputs", "likely"),
    [
        ({"loss": None, "aux": OTHER, "logits": LOGITS}, "logits"),
        ({"loss": None, "x": OTHER}, "x"),
        ((None, LOGITS), 1),
        (SimpleNamespace(logits=LOGITS), "logits"),
        (3, None),
    ],
)
def test_the_likely_output_is_suggested(outputs: Any, likely: Any) -> None:
    assert likely_output(outputs) == likely


def test_probabilities_are_told_from_logits() -> None:
    assert are_probabilities(LOGITS.softmax(1))
    assert are_probabilities(torch.randn(5, 1000).softmax(1).half())
    assert not are_probabilities(LOGITS)
    assert not are_probabilities(LOGITS.log_softmax(1))
    assert not are_probabilities(LOGITS.sigmoid())
