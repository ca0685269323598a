"""Class attention and softmax regression: known values, and what a classifier makes of maps."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.kinds.classifier_methods import SoftmaxRegressionConfig
from raydistill.methods.classifiers import class_maps, last_maps, means, pooled_classifier
from raydistill.methods.features import direction
from raydistill.methods.softmax_regression import regression_losses
from raydistill.models.build import build_model
from raydistill.models.taps import Tapped
from raydistill.training.method import Features

SMALL = {"name": "resnet8"}
LARGE = {"name": "resnet8x4"}
WORDS = ("class_attention", "softmax_regression")


def fill(shape: tuple[int, ...], slope: float) -> Tensor:
    return torch.sin(slope * torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)).reshape(shape)


def attention(
    own: Tensor, weight: Tensor, aim: Tensor, aim_weight: Tensor, places: int, scaled: bool
) -> float:
    sides = [class_maps(own, weight, places), class_maps(aim, aim_weight, places)]
    return float(F.mse_loss(*(map(direction, sides) if scaled else sides)))


@pytest.mark.parametrize(
    ("places", "normalised", "value"), [(2, False, 0.447762753), (2, True, 0.498859985), (1, True, 3)]
)
def test_class_attention_has_its_known_values(places: int, normalised: bool, value: float) -> None:
    own, aim = fill((2, 3, 4, 4), 0.7), fill((2, 5, 4, 4), 1.1)
    found = attention(own, fill((2, 3), 0.9), aim, fill((2, 5), 1.3), places, normalised)
    assert found == pytest.approx(value, abs=1e-9)


def test_softmax_regression_has_its_known_values() -> None:
    classifier = nn.Linear(3, 4).double()
    with torch.no_grad():
        classifier.weight.copy_(fill((4, 3), 0.9))
        classifier.bias.copy_(fill((4,), 0.4))
    config = SoftmaxRegressionConfig.model_validate({"method": "softmax_regression"})
    own, aim = means(fill((2, 3, 2, 2), 0.7)), means(fill((2, 3, 2, 2), 1.1))
    terms = regression_losses(own, aim, classifier, config)
    assert terms["features"].item() == pytest.approx(0.402027340, abs=1e-9)
    assert terms["regression"].item() == pytest.approx(0.039831764, abs=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        SMALL,
        {"name": "wrn_16_2"},
        {"name": "mobilenet_v2"},
        {"name": "shufflenet_v2"},
        {"name": "vgg8"},
        {"name": "torchvision", "architecture": "resnet18"},
    ],
    ids=lambda options: options.get("architecture", options["name"]),
)
def test_the_mean_of_a_class_s_map_is_its_logit_less_the_bias(options: Mapping[str, Any]) -> None:
    torch.manual_seed(0)
    shape = (3, 32, 32)
    model = build_model(
        options["name"], {key: value for key, value in options.items() if key != "name"}, shape, 5
    ).eval()
    features = Features(model, shape)
    name = last_maps(features, "student_feature")
    classifier = pooled_classifier(features, name, "class_attention", "student_feature")
    inputs = torch.rand(4, *shape)
    with torch.no_grad():
        logits, tapped = Tapped(model, [name])(inputs)
    seen = class_maps(tapped[name], classifier.weight, 1).squeeze(2)
    torch.testing.assert_close(seen + classifier.bias, logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("word", WORDS)
def test_the_same_network_costs_nothing(pair: Any, images: Any, word: str) -> None:
    models = pair.of(LARGE, LARGE)
    models.student.load_state_dict(models.teacher.state_dict())
    models.student.eval()
    method = models.method(word)
    for module in method.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight)
    method.eval()  # the connector's batch norm is the identity then, up to its epsilon
    loss = sum(models.losses(method, *images).values())
    assert loss.item() == pytest.approx(0, abs=1e-8)


def test_the_student_s_classifier_learns_from_class_attention_alone_and_the_teacher_s_never(
    pair: Any, images: Any
) -> None:
    models = pair.of(SMALL, LARGE)
    method = models.method("class_attention")
    assert list(method.parameters()) == []
    sum(models.losses(method, *images).values()).backward()
    assert models.student.classifier.weight.grad.abs().max() > 0
    assert models.student.classifier.bias.grad is None
    assert models.teacher.classifier.weight.grad is None


def test_scale_of_a_class_s_row_does_not_matter_to_normalised_maps() -> None:
    own, aim, weight = fill((2, 3, 4, 4), 0.7), fill((2, 5, 4, 4), 1.1), fill((2, 3), 0.9)
    one, other = (
        attention(own, rows, aim, fill((2, 5), 1.3), 2, True)
        for rows in (weight, torch.tensor([[7.0], [0.3]]) * weight)
    )
    assert one == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize(
    ("left_out", "term"), [("feature_weight", "regression"), ("regression_weight", "features")]
)
def test_each_term_of_softmax_regression_reaches_the_connector(
    pair: Any, images: Any, left_out: str, term: str
) -> None:
    models = pair.of(SMALL, LARGE)
    method = models.method("softmax_regression", **{left_out: 0})
    terms = models.losses(method, *images)
    assert set(terms) == {term}
    terms[term].backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in method.parameters())
    assert all("classifier" not in name for name in method.state_dict())
    assert models.teacher.classifier.weight.grad is None
    one = models.losses(method, *(part[:1] for part in images))
    assert all(value.isfinite() for value in one.values())


@pytest.mark.parametrize(
    ("word", "options", "words"),
    [
        (
            "class_attention",
            {"teacher_feature": "stage1"},
            "`stage1` of Network is none; name others as `tea",
        ),
        ("class_attention", {"places": 30}, "fewer than `places: 30`"),
        ("softmax_regression", {"teacher_feature": "stage3_pre"}, "`stage3_pre` of Network is none"),
        ("softmax_regression", {"student_feature": "embedding"}, "compares maps of"),
        ("softmax_regression", {"feature_weight": 0, "regression_weight": 0}, "both 0"),
    ],
)
def test_networks_that_do_not_suit_are_refused(
    pair: Any, word: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        pair.of(SMALL, LARGE).method(word, **options)


def test_a_head_of_two_layers_and_one_of_flattened_maps_are_refused(pair: Any) -> None:
    mobilenet = build_model("torchvision", {"architecture": "mobilenet_v3_small"}, (3, 32, 32), 5)
    flattened = build_model("cnn", {"widths": [8, 8]}, (3, 32, 32), 5)
    for model, last in ((mobilenet, "features"), (flattened, "stage2")):
        features = Features(model, (3, 32, 32))
        with pytest.raises(ValueError, match="one linear layer that gives the logits"):
            pooled_classifier(features, last, "softmax_regression", "key")
