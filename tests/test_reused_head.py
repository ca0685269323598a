"""A network that ends in another one's classifier: what it consists of, and where it may not."""

import pytest
import torch
from torch import nn

from raydistill.models.build import build_model
from raydistill.models.reused_head import build_projector, last_maps, reuse_head
from raydistill.models.taps import Tapped

SHAPE = (3, 32, 32)
FAMILIES = {
    "resnet8": {},
    "wrn_16_1": {},
    "vgg8": {},
    "cnn": {"widths": [4, 6, 8], "hidden": [5]},
    "lenet5": {},
    "mobilenet_v2_half": {},
    "shufflenet_v2": {"width_multiplier": 0.5},
}


def images(count=4):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def network(name, seed=0):
    torch.manual_seed(seed)
    return build_model(name, FAMILIES[name], SHAPE, 5)


@pytest.mark.parametrize("name", FAMILIES)
def test_with_the_others_maps_in_the_projectors_place_the_logits_are_the_others(name):
    other = network(name).eval()
    maps, shape = last_maps(other, SHAPE)
    _, features = Tapped(other, [maps])(images())
    assert features[maps].shape[1:] == shape
    assert (features[maps] >= 0).all()
    made = reuse_head(network("resnet8", seed=1), other, SHAPE, 2) if name not in ("cnn", "lenet5") else None
    if made is None:  # their classifier takes maps of one size
        made = reuse_head(network(name, seed=1), other, SHAPE, 2)
    made.eval().projector.register_forward_hook(lambda *call: features[maps])
    assert torch.equal(made(images()), other(images()))


@pytest.mark.parametrize("name", FAMILIES)
def test_any_network_may_end_in_a_pooled_classifier(name):
    own = network(name)
    made = reuse_head(own, network("resnet8", seed=1), SHAPE, 2)
    logits, features = Tapped(made, ["projector", "embedding"])(
        images(1)
    )  # a single sample, in training mode
    assert logits.shape == (1, 5)
    assert features["projector"].shape[1] == 64
    assert max(features["projector"].shape[2:]) <= 8  # the grid of resnet8's last stage
    torch.testing.assert_close(features["embedding"], features["projector"].mean(dim=(2, 3)))


def test_only_the_others_classifier_stands_still_where_it_is_held():
    made = reuse_head(network("cnn"), network("cnn", seed=1), SHAPE, 2)
    assert made.hidden1.training
    assert all(parameter.requires_grad for parameter in made.parameters())
    made.hold_reused().eval().train()
    frozen = {name for name, parameter in made.named_parameters() if not parameter.requires_grad}
    assert {name.partition(".")[0] for name in frozen} == {"hidden1", "classifier"}
    assert made.stage1.training
    assert made.projector.training
    assert not made.hidden1.training


@pytest.mark.parametrize(("factor", "parameters"), [(2, 214_016), (4, 70_400), (8, 26_240)])
def test_the_projectors_size_is_the_published_one(factor, parameters):
    projector = build_projector((256, 8, 8), (256, 8, 8), factor)
    assert sum(parameter.numel() for parameter in projector.parameters()) == parameters


def test_a_factor_that_does_not_divide_the_channels_is_rounded_down():
    assert build_projector((3, 8, 8), (7, 8, 8), 2).conv2.weight.shape == (3, 3, 3, 3)
    assert build_projector((3, 8, 8), (7, 8, 8), 100).conv2.weight.shape == (1, 1, 3, 3)


def test_the_larger_grid_is_pooled_to_the_smaller():
    assert build_projector((3, 8, 8), (7, 4, 2), 2)(torch.rand(2, 3, 8, 8)).shape == (2, 7, 4, 2)
    assert build_projector((3, 4, 4), (7, 8, 8), 2)(torch.rand(2, 3, 4, 4)).shape == (2, 7, 4, 4)


def test_the_network_is_built_again_from_its_options():
    made = reuse_head(network("resnet8"), network("vgg8", seed=1), SHAPE, 4).eval()
    options = {"model": {"name": "resnet8"}, "head": {"name": "vgg8"}, "factor": 4}
    again = build_model("reused_head", options, SHAPE, 5).eval()
    assert list(again.state_dict()) == list(made.state_dict())
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(images()), made(images()))


def test_what_has_no_border_between_maps_and_classifier_is_refused():
    with pytest.raises(ValueError, match="is no chain of named parts"):
        reuse_head(nn.Linear(3, 2), network("resnet8"), SHAPE, 2)
    with pytest.raises(ValueError, match="none of its parts gives maps"):
        reuse_head(network("resnet8"), build_model("mlp", {}, SHAPE, 5), SHAPE, 2)
    small = build_model("cnn", {"widths": [4] * 4}, SHAPE, 5)
    with pytest.raises(
        ValueError, match=r"its last maps are 2x2, and the classifier .* takes maps of 4x4 alone"
    ):
        reuse_head(small, network("cnn"), SHAPE, 2)


@pytest.mark.parametrize("key", ["model", "head"])
@pytest.mark.parametrize(
    "inner", [{"name": "branched"}, {"name": "reused_head"}, {"name": "no"}, {"depth": 8}]
)
def test_options_name_plain_networks(key, inner):
    with pytest.raises(ValueError, match=r"plain network|unknown model|is written"):
        build_model(
            "reused_head", {"model": {"name": "resnet8"}, "head": {"name": "resnet8"}, key: inner}, SHAPE, 5
        )
