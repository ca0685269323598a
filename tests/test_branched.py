"""A branched network against the plain networks that it is made of."""

import pytest
import torch
from torch import nn

from raydistill.models.branched import branch_out
from raydistill.models.build import build_model
from raydistill.models.layers import LoneBatchNorm1d, LoneBatchNorm2d
from raydistill.models.taps import Tapped

SHAPE = (3, 32, 32)
STAGED = {
    "resnet8": {},
    "wrn_16_1": {},
    "vgg8": {},
    "cnn": {"widths": [4, 6], "hidden": [5]},
    "lenet5": {},
    "mobilenet_v2_half": {},
    "shufflenet_v2": {"width_multiplier": 0.5},
}


def branched(name="cnn", branches=3, classes=5):
    torch.manual_seed(0)
    plain = {"name": name, **STAGED[name]}
    return build_model("branched", {"model": plain, "branches": branches}, SHAPE, classes)


def images(count=4):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def with_statistics(model):
    """In eval mode, after one batch in training mode."""
    model.train()(images(8))
    return model.eval()


@pytest.mark.parametrize("name", STAGED)
def test_a_single_branch_is_the_plain_architecture_and_gives_that_branchs_logits(name):
    model = with_statistics(branched(name))
    features = Tapped(model, ["branch0", "branch2"])(images()).features
    for index in (0, 2):
        plain = build_model(name, STAGED[name], SHAPE, 5)
        plain.load_state_dict(model.plain(index).state_dict(), strict=True)
        assert list(plain.state_dict()) == list(model.plain(index).state_dict())
        assert model.plain(index).feature_paths == plain.feature_paths
        assert torch.equal(plain.eval()(images()), features[f"branch{index}"])


@pytest.mark.parametrize("name", STAGED)
def test_the_logits_are_the_branches_logits_weighted_by_the_gate(name):
    model = with_statistics(branched(name))
    logits, features = Tapped(model, ["gate", "branch0", "branch1", "branch2"])(images())
    gate = features.pop("gate")
    assert gate.shape == (4, 3)
    assert (gate > 0).all()
    torch.testing.assert_close(gate.sum(dim=1), torch.ones(4))
    for sample in range(4):
        expected = sum(gate[sample, index] * features[f"branch{index}"][sample] for index in range(3))
        torch.testing.assert_close(logits[sample], expected)


def test_the_first_branch_is_the_network_itself_and_the_others_have_weights_of_their_own():
    networks = [build_model("resnet8", {}, SHAPE, 5) for _ in range(3)]
    own = [network.classifier.weight for network in networks]
    model = branch_out(networks, SHAPE)
    assert [branch.classifier.weight is weight for branch, weight in zip(model.branches, own, strict=True)]
    assert torch.equal(model.plain(0)(images()), networks[0](images()))
    assert not torch.equal(own[0], own[1])
    assert [name for name, _ in model.trunk.named_children()] == ["stem", "stage1", "stage2"]


def test_a_gate_without_positive_votes_is_uniform():
    model = branched(branches=4).eval()
    nn.init.zeros_(model.gate.norm.weight)
    nn.init.constant_(model.gate.norm.bias, -1.0)
    gate = Tapped(model, ["gate"])(images()).features["gate"]
    torch.testing.assert_close(gate, torch.full((4, 4), 0.25))


def test_the_stages_of_the_trunk_keep_their_names():
    model = branched("resnet8").eval()
    features = Tapped(model, ["stem", "stage2", "stage2_pre"])(images()).features
    assert torch.equal(features["stage2"], features["stage2_pre"].relu())
    with pytest.raises(ValueError, match="no feature `stage3`"):
        Tapped(model, ["stage3"])


@pytest.mark.parametrize(("norm", "shape"), [(LoneBatchNorm1d, (1, 3)), (LoneBatchNorm2d, (1, 3, 1, 1))])
def test_a_batch_of_one_sample_counts_as_two_equal_ones(norm, shape):
    one, two = norm(3), norm(3)
    row = torch.randn(shape)
    torch.testing.assert_close(one(row), two(torch.cat([row, row]))[:1], atol=1e-4, rtol=0)
    torch.testing.assert_close(one.running_mean, two.running_mean)
    torch.testing.assert_close(one.running_var, two.running_var)
    assert one.running_var.isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mlp", {}, "a network of 0 stages has no trunk"),
        ("cnn", {"widths": [4]}, "a network of 1 stages has no trunk"),
    ],
)
def test_a_network_without_stages_to_share_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_model("branched", {"model": {"name": name, **options}}, SHAPE, 5)


def test_a_network_of_somebody_elses_is_refused():
    with pytest.raises(ValueError, match="a Sequential is no chain of named stages"):
        branch_out([nn.Sequential(nn.Flatten(), nn.LazyLinear(5))], SHAPE)


def test_the_options_of_the_plain_network_are_checked():
    with pytest.raises(ValueError, match="did you mean `resnet20`"):
        build_model("branched", {"model": {"name": "resnt20"}}, SHAPE, 5)
    with pytest.raises(ValueError, match="option `width`"):
        build_model("branched", {"model": {"name": "cnn", "width": 3}}, SHAPE, 5)
