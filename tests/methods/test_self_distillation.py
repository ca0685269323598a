"""BYOT against a slow loop in float64, printed values, and who learns from whom."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.kinds.online import SelfDistillConfig
from raydistill.methods.self_distillation import SelfDistillation, distance
from raydistill.models.build import build_model
from raydistill.models.exits import add_exits
from raydistill.models.taps import Output, Tapped
from raydistill.training.data import Batch

LABELS = torch.tensor([2, 0, 1, 1])


def method(exits: int = 2, **options: Any) -> SelfDistillation:
    values = {"stage": "self_distill", "model": {"name": "resnet8"}, "epochs": 1}
    return SelfDistillation(SelfDistillConfig.model_validate(values | options), exits)


def fill(shape: tuple[int, ...], slope: float) -> Tensor:
    """sin(slope · k), k = 1, 2, … in row-major order."""
    return (slope * torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)).sin().reshape(shape)


def outputs(exits: int = 2, batch: int = 4) -> Output:
    """Logits (batch, 3) and embeddings (batch, 5) of all exits, with gradients."""
    generator = torch.Generator().manual_seed(0)

    def draw(width: int) -> Tensor:
        return torch.randn(batch, width, generator=generator, dtype=torch.float64).requires_grad_()

    features = {f"exit{place}": draw(3) for place in range(1, exits + 1)}
    features |= {f"exit{place}_embedding": draw(5) for place in range(1, exits + 1)}
    return Output(draw(3), features | {"embedding": draw(5)})


def batch_of(size: int = 4) -> Batch:
    rows = torch.arange(size)
    return Batch(torch.zeros(size, 1), LABELS[:size], rows, rows)


def slow_divergence(teacher: Tensor, student: Tensor, temperature: float) -> float:
    total = 0.0
    for v, z in zip(teacher.tolist(), student.tolist(), strict=True):
        p, q = ([math.exp(value / temperature) for value in row] for row in (v, z))
        for a, b in zip(p, q, strict=True):
            total += a / sum(p) * math.log(a / sum(p) / (b / sum(q)))
    return temperature**2 * total / len(teacher)


def slow_distance(own: Tensor, aim: Tensor) -> float:
    pairs = zip(own.flatten().tolist(), aim.flatten().tolist(), strict=True)
    return sum((one - other) ** 2 for one, other in pairs if one > 0 or other > 0) / own.numel()


@pytest.mark.parametrize(("exits", "batch"), [(2, 4), (3, 1)])
def test_the_loss_is_its_equation(exits: int, batch: int) -> None:
    made = outputs(exits, batch)
    terms = method(exits, soft_weight=0.3, temperature=2.5, feature_weight=0.7).losses(
        made, None, batch_of(batch)
    )
    logits = [made.features[f"exit{place}"] for place in range(1, exits + 1)]
    embeddings = [made.features[f"exit{place}_embedding"] for place in range(1, exits + 1)]
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {
            "hard": 0.7 * F.cross_entropy(made.logits, LABELS[:batch]).item(),
            "exits": 0.7 * sum(F.cross_entropy(own, LABELS[:batch]).item() for own in logits),
            "soft": 0.3 * sum(slow_divergence(made.logits, own, 2.5) for own in logits),
            "features": 0.7 * sum(slow_distance(own, made.features["embedding"]) for own in embeddings),
        },
        rel=1e-5,
    )


def test_the_distance_of_embeddings_has_its_printed_value() -> None:
    own, aim = fill((2, 4), 0.7), fill((2, 4), 1.1)
    assert distance(own, aim).item() * own.numel() == pytest.approx(9.552195807, rel=1e-9)
    assert distance(torch.tensor([[-3.0, 2.0]]), torch.tensor([[-1.0, -1.0]])).item() == 4.5  # of two entries


def test_nothing_of_what_the_end_teaches_moves_the_end() -> None:
    made = outputs()
    terms = method().losses(made, None, batch_of())
    (terms["soft"] + terms["features"]).backward()
    assert made.logits.grad is None
    assert made.features["embedding"].grad is None
    assert all(made.features[name].grad is not None for name in made.features if name != "embedding")


def test_an_exit_that_says_the_same_as_the_end_is_taught_nothing() -> None:
    made = outputs(1)
    same = Output(made.logits, {"exit1": made.logits, "exit1_embedding": made.features["embedding"]} | {
        "embedding": made.features["embedding"]})  # fmt: skip
    terms = method(1).losses(same, None, batch_of())
    assert terms["soft"].item() == pytest.approx(0, abs=1e-6)
    assert terms["features"].item() == 0


def test_weights_of_nothing_leave_labels_alone() -> None:
    assert method(soft_weight=0, feature_weight=0).losses(outputs(), None, batch_of()).keys() == {
        "hard",
        "exits",
    }


def test_without_its_teaching_the_end_learns_as_alone_and_the_first_stages_for_all_exits() -> None:
    torch.manual_seed(0)
    model = add_exits(build_model("resnet8", {}, (3, 16, 16), 3), (3, 16, 16)).double().eval()
    labels_alone = method(soft_weight=0, feature_weight=0)
    inputs = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    made = Tapped(model, labels_alone.student_features)(inputs)
    terms = labels_alone.losses(made, None, batch_of())
    classifier, stem = model.network.classifier.weight, next(model.network.parameters())
    alone = [F.cross_entropy(made.logits, LABELS)]
    alone += [F.cross_entropy(made.features[name], LABELS) for name in labels_alone.exits]
    gradients = [torch.autograd.grad(loss, stem, retain_graph=True)[0] for loss in alone]
    (of_classifier,) = torch.autograd.grad(alone[0], classifier, retain_graph=True)
    torch.stack(list(terms.values())).sum().backward()
    torch.testing.assert_close(classifier.grad, of_classifier, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(stem.grad, torch.stack(gradients).sum(dim=0), rtol=1e-5, atol=1e-7)


def test_extreme_logits_in_half_precision_leave_the_losses_and_gradients_finite() -> None:
    def bfloat16(*values: float) -> Tensor:
        return torch.tensor([values], dtype=torch.bfloat16, requires_grad=True)

    features = {
        "exit1": bfloat16(300, -300, 0),
        "exit1_embedding": bfloat16(1e3, 0),
        "embedding": bfloat16(0, 1e3),
    }
    terms = method(1).losses(Output(bfloat16(-300, 300, 0), features), None, batch_of(1))
    torch.stack(list(terms.values())).sum().backward()
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    assert all(features[name].grad.isfinite().all() for name in ("exit1", "exit1_embedding"))  # type: ignore[union-attr]
