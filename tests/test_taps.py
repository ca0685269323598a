"""Features by name and by path: what they are, and that taking them changes nothing."""

import copy
import weakref

import pytest
import torch
from torch import nn

from raydistill.models import MODELS
from raydistill.models.build import build_model
from raydistill.models.taps import Output, Tapped

SMALL = {
    "mlp": {"widths": [20, 20]},
    "acoustic_dnn": {"layers": 2, "width": 20},
    "cnn": {},
    "plain_cnn_4": {},
    "lenet5": {},
    "resnet8": {},
    "wrn_16_1": {},
    "vgg8": {},
    "mobilenet_v2_half": {},
    "shufflenet_v2": {"width_multiplier": 0.5},
    "branched": {"model": {"name": "resnet8"}},
    "reused_head": {"model": {"name": "resnet8"}, "head": {"name": "resnet8"}},
    "torchvision": {"architecture": "resnet18"},
}


def build(name, num_classes=10):
    torch.manual_seed(0)
    return build_model(name, SMALL[name], (3, 32, 32), num_classes)


def images(count=2):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def pre_activation_pairs(model):
    """(pre, post) feature names; a stage without a closing ReLU has no pair."""
    paths = model.feature_paths
    pairs = []
    for pre in (name for name in paths if name.endswith("_pre")):
        name = pre.removesuffix("_pre")
        post = f"{name}_post" if f"{name}_post" in paths else name
        if paths[pre] != paths[post]:
            pairs.append((pre, post))
    return pairs


def test_every_family_is_covered_by_these_tests():
    families = {architecture.build for name, architecture in MODELS.items() if name != "exported"}
    assert {MODELS[name].build for name in SMALL} == families


@pytest.mark.parametrize("name", SMALL)
def test_a_pre_activation_is_negative_in_places_and_its_feature_is_its_relu(name):
    model = build(name)
    pairs = pre_activation_pairs(model)
    assert pairs
    features = Tapped(model, model.feature_paths)(images()).features
    for pre, post in pairs:
        assert features[pre].min() < 0, pre
        assert torch.equal(features[post], features[pre].relu()), pre


def test_only_mobilenet_v2_ends_stages_without_a_relu():
    paths = {name: build(name).feature_paths for name in SMALL}
    unpaired = {
        name
        for name, known in paths.items()
        for feature in known
        if feature.endswith("_pre") and known[feature] == known[feature.removesuffix("_pre")]
    }
    assert unpaired == {"mobilenet_v2_half"}


def test_a_stage_of_a_wide_resnet_is_the_sum_before_batch_norm():
    model = build("wrn_16_1").eval()
    features = Tapped(model, ["stage1", "stage1_pre", "stage3", "stage3_pre"])(images()).features
    assert torch.equal(features["stage1_pre"], model.get_submodule("stage2.0.norm1")(features["stage1"]))
    assert torch.equal(features["stage3_pre"], model.norm(features["stage3"]))


@pytest.mark.parametrize("name", [name for name in SMALL if name != "branched"])  # each branch has its own
def test_the_embedding_is_a_row_per_sample_that_the_last_linear_layer_reads(name):
    model = build(name).eval()
    output = Tapped(model, ["embedding"])(images())
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    assert torch.equal(last(output.features["embedding"]), output.logits)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("training", [True, False])
def test_taps_leave_logits_gradients_and_buffers_as_they_are(name, training):
    plain, tapped_model = build(name).train(training), build(name).train(training)
    tapped = Tapped(tapped_model, tapped_model.feature_paths)
    logits, output = plain(images()), tapped(images())
    assert torch.equal(output.logits, logits)
    logits.square().sum().backward()
    output.logits.square().sum().backward()
    for ours, theirs in zip(tapped_model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(tapped_model.buffers(), plain.buffers(), strict=True)
    )


def test_features_come_in_the_order_asked_for_and_once():
    output = Tapped(build("resnet8"), ["stage2", "stem", "stage2"])(images())
    assert isinstance(output, Output)
    assert list(output.features) == ["stage2", "stem"]


def test_gradients_flow_through_features():
    model = build("resnet8")
    Tapped(model, ["stage1_pre"])(images()).features["stage1_pre"].sum().backward()
    assert model.get_submodule("stem.conv").weight.grad.abs().sum() > 0
    assert model.get_submodule("stage2.0.branch.conv1").weight.grad is None


class Foreign(nn.Module):
    """A user's network: unnamed parts, a ReLU used twice, and one that overwrites."""

    def __init__(self, inplace=False):
        super().__init__()
        self.body = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 3)])
        self.relu = nn.ReLU(inplace=inplace)
        self.unused = nn.Linear(3, 3)
        self.memory = nn.LSTM(3, 3)

    def forward(self, inputs):
        return self.memory(self.relu(self.body[1](self.relu(self.body[0](inputs)))))[0]


def test_any_module_is_tapped_by_path_with_its_input_or_its_output():
    torch.manual_seed(0)
    model, inputs = Foreign(), torch.randn(5, 4)
    features = Tapped(model, ["body.0", "relu", "relu:input", "memory:input"])(inputs).features
    first = model.body[0](inputs)
    last = model.body[1](first.relu())
    assert torch.equal(features["body.0"], first)
    assert torch.equal(features["relu:input"], last)
    assert torch.equal(features["relu"], last.relu())
    assert torch.equal(features["memory:input"], last.relu())


def test_a_part_with_two_names_is_tapped_by_either():
    relu = nn.ReLU()
    model = nn.Sequential(relu, nn.Linear(4, 4), relu)
    features = Tapped(model, ["0", "2"])(torch.randn(5, 4)).features
    assert torch.equal(features["0"], features["2"])


@pytest.mark.parametrize("path", ["body.0", "relu:input"])
def test_a_feature_that_is_overwritten_in_place_is_refused(path):
    tapped = Tapped(Foreign(inplace=True), [path])
    for context in (torch.enable_grad(), torch.no_grad()):
        with context, pytest.raises(ValueError, match=f"`{path}` was overwritten.*inplace=False"):
            tapped(torch.randn(5, 4))


def test_inference_mode_keeps_the_value_from_before_it_is_overwritten():
    model = Foreign(inplace=True)
    with torch.inference_mode():
        inputs = torch.randn(5, 4)
        assert torch.equal(Tapped(model, ["body.0"])(inputs).features["body.0"], model.body[0](inputs))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stage_1", "`stage_1`; did you mean `stage1`"),
        ("stage1.0.pre_activatoin", "did you mean `stage1.0.pre_activation`"),
        ("zzz", "ResNet has no feature `zzz`; known: `stem_pre`, `stem`, "),
        ("", "has no feature"),
        ("stem:inputs", "has no feature"),
    ],
)
def test_an_unknown_feature_is_refused_with_a_suggestion(name, message):
    with pytest.raises(ValueError, match=message.replace("ResNet", "Network")):
        Tapped(build("resnet8"), [name])


def test_a_foreign_module_lists_its_parts():
    with pytest.raises(
        ValueError, match="Foreign has no feature `zzz`; known: `body`, `relu`, `unused`, `memory`"
    ):
        Tapped(Foreign(), ["zzz"])


def test_a_part_that_does_not_run_or_returns_no_tensor_is_named():
    with pytest.raises(ValueError, match="`unused` was not computed"):
        Tapped(Foreign(), ["unused"])(torch.randn(5, 4))
    with pytest.raises(ValueError, match="`memory` is a tuple"):
        Tapped(Foreign(), ["memory"])(torch.randn(5, 4))


def test_no_activation_lives_longer_than_its_output():
    tapped = Tapped(build("cnn"), ["stage1"])
    output = tapped(images())
    feature = weakref.ref(output.features["stage1"])
    del output
    assert feature() is None


def test_a_failed_pass_leaves_nothing_behind():
    tapped = Tapped(build("cnn"), ["stage1"])
    kept = []
    tapped.model.stage1.register_forward_hook(
        lambda module, arguments, output: kept.append(weakref.ref(output))
    )
    with pytest.raises(RuntimeError):
        tapped(torch.randn(2, 3, 64, 64))
    assert kept[0]() is None


def test_the_model_alone_collects_nothing():
    model = build("cnn")
    tapped = Tapped(model, ["stage1"])
    seen = []
    model.stage1.register_forward_hook(lambda module, arguments, output: seen.append(weakref.ref(output)))
    with torch.no_grad():
        model(images())
    assert seen[0]() is None
    assert tapped(images()).features["stage1"].shape[0] == 2


def test_two_taps_on_one_model_do_not_disturb_each_other():
    model = build("cnn")
    first, second = Tapped(model, ["stage1"]), Tapped(model, ["stage2"])
    assert list(first(images()).features) == ["stage1"]
    assert list(second(images()).features) == ["stage2"]


def test_a_copy_collects_its_own_features():
    original = Tapped(build("cnn"), ["stage1"])
    copied = copy.deepcopy(original)
    nn.init.zeros_(copied.model.stage1.conv1.weight)
    assert copied(images()).features["stage1"].eq(0).all()
    assert original(images()).features["stage1"].gt(0).any()


def test_removed_hooks_are_gone():
    model = build("cnn")
    Tapped(model, ["stage1", "classifier:input"]).remove_hooks()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_tapped_model_compiles_in_one_graph():
    model = build("cnn")
    tapped = Tapped(model, ["stage1_pre", "stage1", "embedding"])
    expected = tapped(images())
    torch.compiler.reset()
    compiled = torch.compile(tapped, backend="eager", fullgraph=True)(images())
    assert torch.equal(compiled.logits, expected.logits)
    assert all(torch.equal(compiled.features[name], expected.features[name]) for name in expected.features)
