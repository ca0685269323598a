"""Optimizers are torch's own with our numbers; schedules against closed forms and torch's own simulated by epochs."""

import math
import random
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from raydistill.kinds.training import OneCycleSchedule, OptimizerOptions, ScheduleOptions
from raydistill.training.optimizer import (
    MaxNorm,
    build_optimizer,
    build_schedule,
    change_numbers,
    schedule_state,
)

EPOCHS, STEPS_PER_EPOCH, RATE = 6, 4, 0.3
STEPS = EPOCHS * STEPS_PER_EPOCH


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 1, 8).view(2, 4))


def scheduled(written: dict[str, Any], name: str = "sgd") -> tuple[torch.optim.Optimizer, LRScheduler]:
    config = TypeAdapter(OptimizerOptions).validate_python({"name": name, "learning_rate": RATE})
    optimizer = build_optimizer(config, [parameter()])
    schedule = TypeAdapter(ScheduleOptions).validate_python(written)
    return optimizer, build_schedule(schedule, optimizer, EPOCHS, STEPS_PER_EPOCH)


def advance(optimizer: torch.optim.Optimizer, schedule: LRScheduler, steps: int) -> list[float]:
    """The learning rate in each of the next steps."""
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_a_constant_schedule_never_changes() -> None:
    assert advance(*scheduled({"name": "constant"}), STEPS) == [RATE] * STEPS


def test_a_step_schedule_is_torchs_own_advanced_by_epochs() -> None:
    optimizer = SGD([parameter()], RATE)
    by_epoch = MultiStepLR(optimizer, [2, 5], 0.2)
    expected = []
    for _ in range(EPOCHS):
        expected += [optimizer.param_groups[0]["lr"]] * STEPS_PER_EPOCH
        optimizer.step()
        by_epoch.step()
    found = advance(*scheduled({"name": "step", "milestones": [2, 5], "factor": 0.2}), STEPS)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_a_cosine_falls_from_the_rate_to_its_final_part(final: float) -> None:
    expected = [
        RATE * (final + (1 - final) * (1 + math.cos(math.pi * step / STEPS)) / 2) for step in range(STEPS)
    ]
    optimizer, schedule = scheduled({"name": "cosine", "final": final})
    assert advance(optimizer, schedule, STEPS) == pytest.approx(expected, rel=1e-9)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(final * RATE, abs=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_one_cycle_is_torchs_own_and_leaves_the_momentum_alone(name: str) -> None:
    dummy = SGD([parameter()], RATE)
    torchs = OneCycleLR(dummy, RATE, total_steps=STEPS + 1, pct_start=0.25, cycle_momentum=False)
    expected = advance(dummy, torchs, STEPS)
    optimizer, schedule = scheduled({"name": "one_cycle", "warmup": 0.25}, name)
    group = optimizer.param_groups[0]
    momenta = group.get("momentum"), group.get("betas")
    found = advance(optimizer, schedule, STEPS)
    assert found == pytest.approx(expected, rel=1e-12)
    assert (group.get("momentum"), group.get("betas")) == momenta
    assert max(found) == pytest.approx(RATE, rel=0.05)
    assert found.index(max(found)) in (5, 6)
    assert found[0] < RATE / 20
    assert found[-1] < RATE / 20


def peak_of(warmup: float, steps: int) -> float:
    """The step at which the warm-up has reached the rate, by torch's rule; below 0: before the first."""
    return max(warmup * (steps + 1) - 1, 0)


@pytest.mark.parametrize("steps", [*range(1, 41), 99, 999])
def test_one_cycle_goes_up_and_down_with_any_warm_up_and_number_of_steps(steps: int) -> None:
    """Also where warm-up · (steps + 1) is 1, which torch divides by 0 for."""
    draw = random.Random(steps)
    whole = [part / (steps + 1) for part in range(1, min(steps + 1, 12))]
    for warmup in [0.1, 0.25, 0.3, 0.5, *whole, *(draw.uniform(1e-6, 1 - 1e-6) for _ in range(20))]:
        optimizer = SGD([parameter()], RATE)
        config = OneCycleSchedule(name="one_cycle", warmup=warmup)
        rates = advance(optimizer, build_schedule(config, optimizer, 1, steps), steps)
        top = rates.index(max(rates))
        assert all(0 < rate <= RATE * (1 + 1e-12) for rate in rates)
        assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)
        assert abs(top - peak_of(warmup, steps)) <= 1


@pytest.mark.parametrize(("warmup", "steps"), [(0.1, 9), (0.25, 3), (0.5, 1)])
def test_a_warm_up_of_one_step_is_the_limit_of_a_shorter_one(warmup: float, steps: int) -> None:
    optimizers = [SGD([parameter()], RATE) for _ in range(2)]
    shorter = OneCycleLR(
        optimizers[0], RATE, total_steps=steps + 1, pct_start=warmup * (1 - 1e-6), cycle_momentum=False
    )
    exact = build_schedule(OneCycleSchedule(name="one_cycle", warmup=warmup), optimizers[1], 1, steps)
    expected = advance(optimizers[0], shorter, steps)
    assert advance(optimizers[1], exact, steps) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "written", [{"name": "step", "milestones": [3]}, {"name": "cosine"}, {"name": "one_cycle"}]
)
@pytest.mark.parametrize("done", [1, 11, 12, STEPS])
def test_a_schedule_goes_on_from_its_state(written: dict[str, Any], done: int) -> None:
    optimizer, schedule = scheduled(written)
    advance(optimizer, schedule, done)
    state, groups = schedule_state(schedule), optimizer.state_dict()["param_groups"]
    resumed, fresh = scheduled(written)
    resumed.load_state_dict({"state": {}, "param_groups": groups})
    fresh.load_state_dict(state)
    assert advance(resumed, fresh, STEPS - done) == advance(optimizer, schedule, STEPS - done)
    assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_sgd_is_torchs_with_nesterov_and_decay() -> None:
    config = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}
    check_same_steps(config, lambda p: SGD([p], 0.1, 0.8, nesterov=True, weight_decay=0.01))


def test_adamw_is_torchs_with_decoupled_decay() -> None:
    config = {"name": "adamw", "learning_rate": 0.01, "betas": [0.8, 0.95], "weight_decay": 0.1}
    check_same_steps(config, lambda p: AdamW([p], 0.01, (0.8, 0.95), weight_decay=0.1))


def check_same_steps(config: dict[str, Any], expected: Any) -> None:
    ours, theirs = parameter(), parameter()
    built = build_optimizer(TypeAdapter(OptimizerOptions).validate_python(config), [ours])
    for optimizer, weights in ((built, ours), (expected(theirs), theirs)):
        for _ in range(4):
            optimizer.zero_grad()
            weights.pow(3).sum().backward()
            optimizer.step()
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, parameter())


def test_frozen_parameters_are_left_out() -> None:
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    config = TypeAdapter(OptimizerOptions).validate_python({"name": "sgd"})
    (group,) = build_optimizer(config, [frozen, parameter()]).param_groups
    assert len(group["params"]) == 1


def test_max_norm_scales_long_units_and_leaves_the_others() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Conv2d(2, 2, 2), nn.BatchNorm2d(2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 0.0, 4.0], [0.1, 0.2, 0.2]]))
        model[1].weight.fill_(10.0)
        model[2].weight.fill_(10.0)
    biases = model[0].bias.clone()
    MaxNorm(model, 2.0).apply()
    torch.testing.assert_close(model[0].weight, torch.tensor([[1.2, 0.0, 1.6], [0.1, 0.2, 0.2]]))
    # All weights into an output channel are one unit: 8 of them, so 2 / √8 each.
    torch.testing.assert_close(model[1].weight, torch.full((2, 2, 2, 2), 2 / math.sqrt(8)))
    assert torch.equal(model[0].bias, biases)
    assert model[2].weight.tolist() == [10.0, 10.0]


@pytest.mark.parametrize(
    "written",
    [
        {"name": "constant"},
        {"name": "step", "milestones": [1, 4], "factor": 0.2},
        {"name": "cosine", "final": 0.1},
        {"name": "cosine"},
        {"name": "one_cycle", "warmup": 0.4},
    ],
)
@pytest.mark.parametrize("at", [4, 12, STEPS - 1])
def test_another_rate_is_another_base_of_the_same_schedule(written: dict[str, Any], at: int) -> None:
    plain = advance(*scheduled(written), STEPS)
    optimizer, schedule = scheduled(written)
    before = advance(optimizer, schedule, at)
    change(optimizer, schedule, written, learning_rate=0.7 * RATE)
    after = advance(optimizer, schedule, STEPS - at)
    assert before + after == pytest.approx(plain[:at] + [0.7 * rate for rate in plain[at:]], rel=1e-9)


def change(optimizer: Any, schedule: LRScheduler, written: dict[str, Any], **numbers: float) -> None:
    config = TypeAdapter(OptimizerOptions).validate_python({"name": "sgd", "learning_rate": RATE, **numbers})
    change_numbers(optimizer, schedule, config, TypeAdapter(ScheduleOptions).validate_python(written))


@pytest.mark.parametrize("name", ["constant", "cosine", "one_cycle"])
def test_numbers_that_an_optimizer_has_change_nothing(name: str) -> None:
    optimizer, schedule = scheduled({"name": name})
    advance(optimizer, schedule, 5)
    group, state = dict(optimizer.param_groups[0]), schedule_state(schedule)
    change(optimizer, schedule, {"name": name})
    assert (optimizer.param_groups[0], schedule_state(schedule)) == (group, state)


def test_momentum_and_weight_decay_change_with_their_words() -> None:
    optimizer, schedule = scheduled({"name": "constant"})
    change(optimizer, schedule, {"name": "constant"}, momentum=0.5, weight_decay=1e-3, learning_rate=0.2)
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["lr"]) == (0.5, 1e-3, 0.2)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_norms_and_biases_are_as_without_decay_and_the_rest_as_with(name: str) -> None:
    """Against optimizers with and without decay, side by side; a change of the decay leaves them at 0."""

    def stepped(**written: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        adapter = TypeAdapter(OptimizerOptions)
        config = adapter.validate_python({"name": name, "learning_rate": 0.1, "weight_decay": 0.3} | written)
        optimizer = build_optimizer(config, network.parameters())
        constant = TypeAdapter(ScheduleOptions).validate_python({"name": "constant"})
        schedule = build_schedule(constant, optimizer, 1, 4)
        for step in range(4):
            if step == 2:
                config = config.replace(weight_decay=2 * config.weight_decay)
                change_numbers(optimizer, schedule, config, constant)
            for index, value in enumerate(network.parameters()):
                value.grad = torch.full_like(value, 0.1 * (index + step))
            optimizer.step()
        return [value.detach() for value in network.parameters()]

    decayed, bare = stepped(), stepped(weight_decay=0.0)
    for own, with_it, without in zip(stepped(undecayed="norms_and_biases"), decayed, bare, strict=True):
        assert not torch.equal(with_it, without) or not without.any()
        assert torch.equal(own, with_it if own.ndim > 1 else without)


def after_a_warm_up(name: str, step: int) -> float:
    """The factor in a step, whose first 6 of 24 go up."""
    if step < 6:
        return (step + 1) / 6
    if name == "cosine":
        return 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 5) / 19)) / 2
    return 1.0 if name == "constant" else 0.2 ** ((step >= 8) + (step >= 20))


@pytest.mark.parametrize(
    "written",
    [
        {"name": "constant"},
        {"name": "step", "milestones": [2, 5], "factor": 0.2},
        {"name": "cosine", "final": 0.1},
    ],
)
def test_a_warm_up_goes_up_in_a_line_and_on_with_the_schedule(written: dict[str, Any]) -> None:
    """Also from a state, and with another rate from step 12 on."""
    written = written | {"warmup": 0.25}
    optimizer, schedule = scheduled(written)
    found = advance(optimizer, schedule, 12)
    state, groups = schedule_state(schedule), optimizer.state_dict()["param_groups"]
    resumed, fresh = scheduled(written)
    resumed.load_state_dict({"state": {}, "param_groups": groups})
    fresh.load_state_dict(state)
    change(resumed, fresh, written, learning_rate=RATE / 2)
    found += advance(resumed, fresh, STEPS - 12)
    bases = [RATE] * 12 + [RATE / 2] * (STEPS - 12)
    expected = [base * after_a_warm_up(written["name"], step) for step, base in enumerate(bases)]
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "written", [{"name": "constant"}, {"name": "cosine"}, {"name": "step", "milestones": [2]}]
)
def test_a_warm_up_of_one_step_is_none(written: dict[str, Any]) -> None:
    warm = advance(*scheduled(written | {"warmup": 1e-6}), STEPS)
    assert warm == pytest.approx(advance(*scheduled(written), STEPS), rel=1e-9)


def test_adam_is_the_papers_with_decay_in_the_gradient() -> None:
    """Against algorithm 1 of Kingma and Ba (arXiv 1412.6980) in float64, written out."""
    value = nn.Parameter(torch.linspace(-1, 1, 8, dtype=torch.float64))
    written = {"name": "adam", "learning_rate": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.3}
    optimizer = build_optimizer(TypeAdapter(OptimizerOptions).validate_python(written), [value])
    expected = value.detach().clone()
    mean, square = torch.zeros_like(expected), torch.zeros_like(expected)
    for step in range(1, 6):
        pull = torch.sin(step * torch.arange(8.0, dtype=torch.float64))
        value.grad = pull.clone()
        optimizer.step()
        gradient = pull + 0.3 * expected
        mean, square = 0.8 * mean + 0.2 * gradient, 0.95 * square + 0.05 * gradient**2
        expected -= 0.02 * (mean / (1 - 0.8**step)) / ((square / (1 - 0.95**step)).sqrt() + 1e-8)
    torch.testing.assert_close(value.detach(), expected, rtol=1e-12, atol=1e-12)
