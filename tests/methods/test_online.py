"""ONE and mutual learning against slow loops in float64, closed forms, and who learns from whom."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.kinds.online import TrainBranchesConfig, TrainPeersConfig
from raydistill.methods.mutual import Mutual
from raydistill.methods.one import One
from raydistill.models.taps import Output
from raydistill.training.data import Batch

LABELS = torch.tensor([2, 0, 1, 1])


def one(**options: Any) -> One:
    values = {"stage": "train_branches", "model": {"name": "resnet8"}, "epochs": 1, "ramp_epochs": 0}
    return One(TrainBranchesConfig.model_validate(values | options))


def mutual(count: int, **options: Any) -> Mutual:
    values = {"stage": "train_peers", "peers": [{"name": "mlp"}] * count, "epochs": 1}
    return Mutual(TrainPeersConfig.model_validate(values | options))


def draw(count: int, seed: int = 0, batch: int = 4) -> list[Tensor]:
    """Logits of several members (batch, 3), float64, with gradients."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (2 * torch.randn(batch, 3, generator=generator, dtype=torch.float64)).requires_grad_()
        for _ in range(count)
    ]


def mixed(members: Sequence[Tensor], gate: Tensor) -> Tensor:
    return (gate.unsqueeze(-1) * torch.stack(list(members), dim=1)).sum(dim=1)


def batch_of(size: int = 4, epoch: int = 0) -> Batch:
    rows = torch.arange(size)
    return Batch(torch.zeros(size, 1), LABELS[:size], rows, rows, epoch=epoch)


def losses(
    method: One | Mutual, ensemble: Tensor, members: Sequence[Tensor], epoch: int = 0
) -> dict[str, Tensor]:
    features = dict(zip(method.student_features, members, strict=True))
    return method.losses(Output(ensemble, features), None, batch_of(len(ensemble), epoch))


def slow_divergence(teacher: Tensor, student: Tensor, temperature: float) -> float:
    """T² KL, averaged over samples, by loops over Python's numbers."""
    total = 0.0
    for v, z in zip(teacher.tolist(), student.tolist(), strict=True):
        p, q = ([math.exp(value / temperature) for value in row] for row in (v, z))
        for a, b in zip(p, q, strict=True):
            total += a / sum(p) * math.log(a / sum(p) / (b / sum(q)))
    return temperature**2 * total / len(teacher)


@pytest.mark.parametrize(("branches", "batch"), [(2, 4), (4, 1)])
def test_one_is_its_equation(branches: int, batch: int) -> None:
    members, gate = draw(branches, batch=batch), torch.rand(batch, branches, dtype=torch.float64).softmax(1)
    ensemble = mixed(members, gate)
    terms = losses(one(branches=branches, temperature=2.5, weight=0.7), ensemble, members)
    expected = {
        "hard": sum(F.cross_entropy(logits, LABELS[:batch]) for logits in members),
        "ensemble": F.cross_entropy(ensemble, LABELS[:batch]),
        "soft": torch.tensor(0.7 * sum(slow_divergence(ensemble, logits, 2.5) for logits in members)),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-5)


def test_equal_branches_cost_one_more_cross_entropy_and_teach_the_gate_nothing() -> None:
    (logits,) = draw(1)
    votes = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    terms = losses(one(), mixed([logits] * 3, votes.softmax(dim=1)), [logits] * 3)
    torch.stack(list(terms.values())).sum().backward()
    assert terms["soft"].item() == pytest.approx(0, abs=1e-6)
    total = sum(loss.item() for loss in terms.values())
    assert total == pytest.approx(4 * F.cross_entropy(logits, LABELS).item(), rel=1e-6)
    assert votes.grad is not None
    torch.testing.assert_close(votes.grad, torch.zeros_like(votes.grad), atol=1e-7, rtol=0)


@pytest.mark.parametrize(("detach", "learns"), [(True, False), (False, True)])
def test_the_gate_learns_from_the_distillation_term_only_when_the_ensemble_is_not_detached(
    detach: bool, learns: bool
) -> None:
    members = draw(3)
    votes = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    terms = losses(one(detach_teacher=detach), mixed(members, votes.softmax(dim=1)), members)
    (gradient,) = torch.autograd.grad(terms["soft"], votes, allow_unused=True)
    assert (gradient is not None and bool(gradient.abs().max() > 1e-3)) is learns


def test_the_gates_gradient_is_the_closed_form() -> None:
    """∂CE(z_e)/∂a_i = g_i Σ_c (p_c - y_c)(z_i,c - z_e,c)."""
    members = draw(3)
    votes = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    gate = votes.softmax(dim=1)
    ensemble = mixed(members, gate)
    torch.stack(list(losses(one(), ensemble, members).values())).sum().backward()
    assert votes.grad is not None
    for sample in range(4):
        error = ensemble[sample].softmax(dim=0) - F.one_hot(LABELS[sample], 3)
        for index, logits in enumerate(members):
            expected = gate[sample, index] * (error * (logits[sample] - ensemble[sample])).sum() / 4
            assert votes.grad[sample, index].item() == pytest.approx(expected.item(), abs=1e-6)


def test_the_ramp_is_that_of_the_release() -> None:
    members = draw(2)
    ensemble = mixed(members, torch.full((4, 2), 0.5, dtype=torch.float64))
    full = losses(one(branches=2), ensemble, members)["soft"].item()
    ramped = one(branches=2, ramp_epochs=80)
    for epoch, factor in {0: 0.0067379, 20: 0.0600547, 40: 0.2865048, 60: 0.7316156, 80: 1, 200: 1}.items():
        soft = losses(ramped, ensemble, members, epoch)["soft"].item()
        assert soft == pytest.approx(factor * full, rel=1e-5)


def test_a_weight_of_nothing_leaves_the_term_out() -> None:
    members = draw(3)
    assert "soft" not in losses(one(weight=0.0), members[0], members)
    assert "soft" not in losses(mutual(3, weight=0.0), members[0], members)


@pytest.mark.parametrize(("peers", "batch"), [(2, 4), (3, 1), (4, 3)])
def test_mutual_learning_is_its_equation(peers: int, batch: int) -> None:
    members = draw(peers, batch=batch)
    terms = losses(mutual(peers, temperature=1.5, weight=0.4), members[0], members)
    soft = 0.0
    for index, own in enumerate(members):
        for other in (*members[:index], *members[index + 1 :]):
            soft += 0.4 * slow_divergence(other, own, 1.5) / (peers - 1)
    assert terms["soft"].item() == pytest.approx(soft, rel=1e-5)
    hard = sum(F.cross_entropy(logits, LABELS[:batch]).item() for logits in members)
    assert terms["hard"].item() == pytest.approx(hard, rel=1e-6)


def test_a_peers_gradient_is_the_distance_from_the_mean_of_the_others_probabilities() -> None:
    """∂/∂z_i of its own divergences, Σ_j (q_i - q_j) / (K - 1) / B: nothing comes from those of the others."""
    members = draw(3)
    losses(mutual(3), members[0], members)["soft"].backward()
    q = [logits.detach().softmax(dim=1) for logits in members]
    for index, logits in enumerate(members):
        expected = sum(q[index] - q[other] for other in range(3) if other != index) / 2 / 4
        torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=1e-5)


def test_equal_peers_cost_nothing_more_and_a_single_peer_is_supervised() -> None:
    (logits,) = draw(1)
    assert losses(mutual(2), logits, [logits, logits])["soft"].item() == pytest.approx(0, abs=1e-6)
    terms = losses(mutual(1), logits, [logits])
    assert terms.keys() == {"hard"}
    assert terms["hard"].item() == pytest.approx(F.cross_entropy(logits, LABELS).item(), rel=1e-6)


@pytest.mark.parametrize("method", [one(branches=2, detach_teacher=False), mutual(2)])
def test_extreme_logits_in_half_precision_leave_the_losses_and_gradients_finite(method: One | Mutual) -> None:
    members = [torch.tensor([[300.0, -300.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)]
    members.append(torch.tensor([[-300.0, 300.0, 0.0]], dtype=torch.bfloat16, requires_grad=True))
    terms = losses(method, (members[0] + members[1]) / 2, members)
    torch.stack(list(terms.values())).sum().backward()
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in terms.values())
    assert all(logits.grad is not None and logits.grad.isfinite().all() for logits in members)
