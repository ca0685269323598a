"""Growth: the larger network computes what the smaller one does, by the networks themselves and by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raydistill.models.build import build_model
from raydistill.training.net2net import grow, identity_norm, rectified_moments, widen

SHAPE, CLASSES = (3, 16, 16), 5

# Name of the case → architecture, options of the smaller and of the larger network.
GROWTHS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mlp wider": ("mlp", {"widths": [7]}, {"widths": [19]}),
    "mlp deeper": ("mlp", {"widths": [7]}, {"widths": [7, 7, 7]}),
    "mlp wider and deeper": ("mlp", {"widths": [7, 5]}, {"widths": [9, 11, 30]}),
    "cnn wider": ("cnn", {"widths": [4, 3], "hidden": [6]}, {"widths": [5, 9], "hidden": [8]}),
    "cnn deeper": ("cnn", {"widths": [4, 3]}, {"widths": [4, 3], "convolutions": [2, 3]}),
    "cnn wider and deeper, normed": (
        "cnn",
        {"widths": [4, 3], "batch_norm": True, "hidden": [6]},
        {"widths": [9, 8], "convolutions": [3, 2], "batch_norm": True, "hidden": [7, 10]},
    ),
    "the same": ("cnn", {"widths": [4], "batch_norm": True}, {"widths": [4], "batch_norm": True}),
    "dropout": ("mlp", {"widths": [7]}, {"widths": [9], "dropout": 0.5}),
}


def network(name: str, options: dict[str, Any], classes: int = CLASSES) -> nn.Module:
    """In eval mode, with batch norms that have seen something."""
    model = build_model(name, options, SHAPE, classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 1.0)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def grown(smaller: nn.Module, larger: nn.Module, seed: int = 0, noise: float = 0.0) -> nn.Module:
    larger.load_state_dict(grow(smaller, larger, seed=seed, noise=noise))
    return larger


def inputs(count: int = 6) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("case", GROWTHS)
def test_a_grown_network_computes_what_the_smaller_one_does(case: str) -> None:
    name, small, large = GROWTHS[case]
    smaller, larger = network(name, small), network(name, large)
    before = larger(inputs())
    torch.testing.assert_close(grown(smaller, larger)(inputs()), smaller(inputs()), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, smaller(inputs()), atol=1e-2)


def test_vgg8_grows_into_vgg13() -> None:
    smaller, larger = (build_model(name, {}, (3, 32, 32), 4).eval() for name in ("vgg8", "vgg13"))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(grown(smaller, larger)(images), smaller(images), rtol=1e-5, atol=1e-5)


def test_a_wider_layer_by_hand() -> None:
    """Two units; the third is a copy of unit 0, so what reads it halves that weight."""
    weights = {"weight": torch.tensor([[2.0, 3.0]]), "bias": torch.tensor([1.0])}
    wider = widen(weights, torch.tensor([0, 1, 0]), torch.tensor([0, 0]), 0.0, torch.Generator())
    assert wider["weight"].tolist() == [[1, 3, 1], [1, 3, 1]]
    assert wider["bias"].tolist() == [1, 1]


def test_growth_repeats_under_its_seed_and_differs_under_another() -> None:
    smaller, larger = network("mlp", {"widths": [5]}), network("mlp", {"widths": [40]})
    one, same, other = (grow(smaller, larger, seed=seed, noise=0.1) for seed in (3, 3, 4))
    assert all(torch.equal(one[key], value) for key, value in same.items())
    assert not torch.equal(one["hidden1.linear.weight"], other["hidden1.linear.weight"])


def test_copies_are_read_alike_for_ever_unless_there_was_noise() -> None:
    smaller = network("mlp", {"widths": [5]})
    for noise, is_stuck in ((0.0, True), (0.01, False)):
        larger = grown(smaller, network("mlp", {"widths": [50]}), noise=noise)
        larger(inputs()).square().sum().backward()
        gradients = larger.classifier.weight.grad
        assert (len(gradients.round(decimals=5).unique(dim=1).T) <= 5) is is_stuck


def test_noise_leaves_the_function_nearly_alone_and_the_first_units_quite() -> None:
    smaller = network("mlp", {"widths": [5]})
    exact, noisy = (grown(smaller, network("mlp", {"widths": [9]}), noise=noise) for noise in (0, 0.01))
    assert torch.equal(noisy.hidden1.linear.weight[:5], exact.hidden1.linear.weight[:5])
    distance = (noisy(inputs()) - smaller(inputs())).abs().max()
    assert 1e-5 < distance < 0.1


def test_the_smaller_network_is_left_as_it_was() -> None:
    smaller = network("cnn", {"widths": [4], "batch_norm": True})
    before = {key: value.clone() for key, value in smaller.state_dict().items()}
    grown(smaller, network("cnn", {"widths": [9], "batch_norm": True}), noise=0.1)
    assert all(torch.equal(before[key], value) for key, value in smaller.state_dict().items())


def test_the_moments_of_the_positive_part_are_those_of_a_large_sample() -> None:
    mean, deviation = torch.tensor([-2.0, 0.0, 0.7]), torch.tensor([1.0, -2.0, 0.5])
    draws = torch.randn(400_000, 3, dtype=torch.float64) * deviation + mean
    first, variance = rectified_moments(mean, deviation)
    torch.testing.assert_close(first, draws.relu().mean(dim=0), rtol=0.02, atol=2e-3)
    torch.testing.assert_close(variance, draws.relu().var(dim=0), rtol=0.03, atol=2e-3)


def test_an_identity_batch_norm_is_one_in_training_mode_too_on_such_inputs() -> None:
    values = (torch.randn(500, 4, 6, 6) * 0.8 + 0.4).relu()
    mean, variance = rectified_moments(torch.full((4,), 0.4), torch.full((4,), 0.8))
    norm = nn.BatchNorm2d(4)
    norm.load_state_dict(identity_norm(mean, variance, norm), strict=False)
    torch.testing.assert_close(norm.eval()(values), values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.train()(values), values, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("smaller", "larger", "message"),
    [
        (("resnet8", {}), ("resnet14", {}), "`stage1.0` is a ResidualBlock; only plain chains"),
        (("mlp", {"widths": [9]}), ("mlp", {"widths": [7]}), "`hidden1.linear` needs at least 9 units"),
        (("mlp", {"widths": [9, 9]}), ("mlp", {"widths": [9]}), "has no `hidden2.linear`"),
        (
            ("mlp", {"widths": []}),
            ("mlp", {"widths": [900]}),
            "no ReLU comes before the new `hidden1.linear`",
        ),
        (("cnn", {"widths": [4]}), ("cnn", {"widths": [4, 4]}), "pool at different places"),
        (("cnn", {}), ("cnn", {"batch_norm": True}), "`stage1.conv1` is of another kind"),
    ],
)
def test_what_cannot_grow_says_why(smaller: Any, larger: Any, message: str) -> None:
    shape = (3, 64, 64)
    models = [build_model(*model, shape, CLASSES) for model in (smaller, larger)]
    with pytest.raises(ValueError, match=message):
        grow(*models, seed=0)


def test_a_network_of_somebody_elses_does_not_grow() -> None:
    with pytest.raises(ValueError, match="a Sequential is no chain of known layers"):
        grow(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), network("mlp", {}), seed=0)


def test_growth_does_not_change_the_classes() -> None:
    models = [network("mlp", {"widths": [4]}, classes) for classes in (CLASSES, CLASSES + 1)]
    with pytest.raises(ValueError, match="have different classes"):
        grow(*models, seed=0)
