"""A network with exits against the plain network in it."""

import pytest
import torch
from torch import nn

from raydistill.models.build import build_model
from raydistill.models.exits import add_exits
from raydistill.models.taps import Tapped

SHAPE = (3, 32, 32)
STAGED = {
    "resnet8": {},
    "wrn_16_1": {},
    "vgg8": {},
    "cnn": {"widths": [4, 6, 8], "hidden": [5]},
    "mobilenet_v2_half": {},
    "shufflenet_v2": {"width_multiplier": 0.5},
}


def images(count=4):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", STAGED)
def test_the_logits_are_the_plain_networks_and_its_features_are_there(name):
    torch.manual_seed(0)
    plain = build_model(name, STAGED[name], SHAPE, 5)
    model = add_exits(plain, SHAPE).eval()
    assert torch.equal(model(images()), plain(images()))
    for feature in plain.feature_paths:
        own = Tapped(plain, [feature])(images()).features[feature]
        assert torch.equal(Tapped(model, [feature])(images()).features[feature], own)


@pytest.mark.parametrize("name", STAGED)
def test_every_stage_but_the_last_has_an_exit_as_wide_as_the_end(name):
    torch.manual_seed(0)
    model = add_exits(build_model(name, STAGED[name], SHAPE, 5), SHAPE)
    stages = [part for part, _ in model.network.named_children() if part.removeprefix("stage").isdigit()]
    assert list(model.exits) == stages[:-1]
    names = [f"exit{place}{what}" for place in range(1, len(stages)) for what in ("", "_embedding")]
    logits, features = Tapped(model, [*names, "embedding"])(images(1))  # a single sample, in training mode
    width = features.pop("embedding").shape[1]
    assert [tuple(value.shape) for value in features.values()] == [(1, 5), (1, width)] * (len(stages) - 1)
    assert logits.shape == (1, 5)
    assert all((features[name] >= 0).all() for name in names if name.endswith("_embedding"))


def test_an_exit_strides_over_the_ratio_of_the_grids():
    model = add_exits(build_model("resnet8", {}, SHAPE, 5), SHAPE)
    assert [part.conv2.kernel_size for part in model.exits.values()] == [(4, 4), (2, 2)]
    # 16 → 16 → 16 → 64 channels and 5 classes: 16·16 + 16·16·4·4 + 16·64 + 2·(16 + 16 + 64) + 64·5 + 5
    assert sum(p.numel() for p in model.exits["stage1"].parameters()) == 256 + 4096 + 1024 + 192 + 325


def test_an_exit_sees_its_own_stage_and_nothing_behind_it():
    model = add_exits(build_model("resnet8", {}, SHAPE, 5), SHAPE).eval()
    before = Tapped(model, ["exit1", "exit2"])(images()).features
    with torch.no_grad():
        for parameter in model.network.stage2.parameters():
            parameter.add_(1)
    after = Tapped(model, ["exit1", "exit2"])(images()).features
    assert torch.equal(before["exit1"], after["exit1"])
    assert not torch.equal(before["exit2"], after["exit2"])


def test_what_has_no_stage_for_an_exit_is_refused():
    with pytest.raises(ValueError, match="is no chain of named stages"):
        add_exits(nn.Linear(3, 2), (3,))
    with pytest.raises(ValueError, match="a network of 1 stages has none before its last one"):
        add_exits(build_model("cnn", {"widths": [4]}, SHAPE, 5), SHAPE)
    with pytest.raises(ValueError, match="a network of 0 stages"):
        add_exits(build_model("mlp", {}, SHAPE, 5), SHAPE)
