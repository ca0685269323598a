"""Parameters with rates and decays of their own: against one optimizer for each of them, with these numbers."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torchvision
from pydantic import TypeAdapter
from torch import nn

from raydistill.errors import StageError
from raydistill.kinds.training import OptimizerOptions, ParameterGroupConfig, ScheduleOptions
from raydistill.models.build import build_model
from raydistill.training.optimizer import build_optimizers, build_schedule, change_numbers
from raydistill.training.parameter_groups import Rule, layers_of, rules_of

EPOCHS, STEPS_PER_EPOCH = 3, 4
SCHEDULES: list[dict[str, Any]] = [
    {"name": "constant"},
    {"name": "step", "milestones": [1, 2]},
    {"name": "cosine", "final": 0.1},
    {"name": "cosine", "warmup": 0.3, "final": 0.1},
    {"name": "one_cycle", "warmup": 0.4},
]


def network() -> nn.Module:
    torch.manual_seed(0)
    parts = {"stem": nn.Linear(3, 4), "norm": nn.BatchNorm1d(4), "head": nn.Linear(4, 2)}
    built = nn.Sequential()
    for name, part in parts.items():
        built.add_module(name, part)
    return built


def groups_of(*written: dict[str, Any]) -> list[ParameterGroupConfig]:
    return [ParameterGroupConfig.model_validate(group) for group in written]


def steps(
    parameters: list[nn.Parameter],
    optimizer: dict[str, Any],
    schedule: dict[str, Any],
    rules: Mapping[int, Rule],
    later_decay: float,
) -> None:
    """So many steps with made-up gradients; from the seventh on a third of the rate and another decay."""
    config = TypeAdapter(OptimizerOptions).validate_python(optimizer)
    written = TypeAdapter(ScheduleOptions).validate_python(schedule)
    built = build_optimizers(config, parameters, None, rules)
    advancing = build_schedule(written, built, EPOCHS, STEPS_PER_EPOCH)
    for step in range(EPOCHS * STEPS_PER_EPOCH):
        if step == 6:
            config = config.replace(learning_rate=config.learning_rate / 3, weight_decay=later_decay)
            change_numbers(built, advancing, config, written)
        for value in parameters:
            value.grad = torch.sin(step + torch.arange(value.numel())).view_as(value)
        built.step()
        advancing.step()


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_parameter_learns_as_with_an_optimizer_of_its_own(name: str, schedule: dict[str, Any]) -> None:
    """The first of two groups that match counts; a decay of its own stays when the optimizer's changes."""
    groups = groups_of(
        {"match": "head.w*", "lr_scale": 10.0},
        {"match": "head.*", "lr_scale": 0.5, "weight_decay": 0.0},
        {"match": "norm.*", "weight_decay": 0.7},
    )
    scales = {"stem": 0.25, "norm": 0.5, "head.weight": 10.0, "head.bias": 0.5}
    decays = {"stem.bias": 0.0, "norm": 0.7, "head.bias": 0.0}  # of the others: 0.3, and 0.6 later
    common = {"name": name, "weight_decay": 0.3, "learning_rate": 0.02, "undecayed": "norms_and_biases"}
    model, expected = network(), network()
    steps(list(model.parameters()), common, schedule, rules_of(model, groups, 0.5), 0.6)
    for (key, own), alone in zip(model.named_parameters(), expected.parameters(), strict=True):
        part = key.split(".")[0]
        decay = decays.get(key, decays.get(part))
        rate = 0.02 * scales.get(key, scales.get(part, 1.0))
        numbers = {"name": name, "learning_rate": rate, "weight_decay": 0.3 if decay is None else decay}
        steps([alone], numbers, schedule, {}, 0.6 if decay is None else decay)
        torch.testing.assert_close(own, alone, rtol=1e-5, atol=1e-7, msg=key)


def test_layers_are_the_parts_of_a_network_in_order() -> None:
    def names(model: nn.Module) -> list[set[str]]:
        of = {id(value): name for name, value in model.named_parameters()}
        return [{of[id(value)].rsplit(".", 1)[0] for value in layer} for layer in layers_of(model)]

    with torch.device("meta"):
        resnet = build_model("resnet20", {}, (3, 32, 32), 10)
        theirs = build_model("torchvision", {"architecture": "resnet18"}, (3, 64, 64), 10)
        convnext = torchvision.models.convnext_tiny()
        vit = torchvision.models.vit_b_16()
    parts = [{name.split(".")[0] for name in layer} for layer in names(resnet)]
    assert parts == [{"stem"}, {"stage1"}, {"stage2"}, {"stage3"}, {"classifier"}]
    parts = [{name.split(".")[0] for name in layer} for layer in names(theirs)]
    assert parts == [{"conv1"}, {"bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}, {"fc"}]
    parts = [{".".join(name.split(".")[:2]) for name in layer} for layer in names(convnext)]
    assert parts == [*({f"features.{index}"} for index in range(8)), {"classifier.0"}, {"classifier.2"}]
    assert "class_token" in names(vit)[0]
    assert "conv_proj" in names(vit)[0]
    wrapped = nn.Sequential()
    wrapped.add_module("only", network())
    assert [len(layer) for layer in layers_of(wrapped)] == [2, 2, 2]


def test_no_decay_by_layer_is_one_rate_and_every_parameter_has_one() -> None:
    model = build_model("resnet20", {}, (3, 32, 32), 10)
    scales = {name: rules_of(model, [], 0.5)[id(value)].lr_scale for name, value in model.named_parameters()}
    assert scales["stem.conv.weight"] == 1 / 16
    assert scales["stage3.0.branch.conv1.weight"] == 1 / 2
    assert scales["classifier.bias"] == 1
    assert {rule.lr_scale for rule in rules_of(model, [], 1.0).values()} == {1.0}


@pytest.mark.parametrize(
    ("match", "problem"),
    [
        (
            "haed.*",
            "`parameter_groups.0.match: haed.*` matches no parameter of the model; did you mean `head.*`?",
        ),
        ("stem.*", "matches no parameter that is trained"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(match: str, problem: str) -> None:
    model = network()
    model.stem.requires_grad_(False)
    with pytest.raises(StageError) as caught:
        rules_of(model, groups_of({"match": match, "lr_scale": 2}), None)
    assert problem in str(caught.value)
