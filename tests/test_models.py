"""Architectures against the parameter counts of their papers, and against layer-by-layer sums written down here."""

import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from raydistill.models import MODELS
from raydistill.models.build import build_model
from raydistill.models.layers import DropPath
from raydistill.models.resnet import PaddedShortcut
from raydistill.models.shufflenet import ShuffleBlock
from raydistill.models.taps import Tapped

CIFAR = (3, 32, 32)
MNIST = (1, 28, 28)


def count_parameters(name, options, input_shape, num_classes):
    with torch.device("meta"):
        model = build_model(name, options, input_shape, num_classes)
    return sum(parameter.numel() for parameter in model.parameters())


def conv(channels_in, channels_out, kernel_size=3):
    """Weights of a convolution without bias and of the batch norm behind it."""
    return channels_in * channels_out * kernel_size**2 + 2 * channels_out


def resnet_formula(depth, stem, widths, num_classes):
    total, channels = conv(3, stem), stem
    for width in widths:
        total += conv(channels, width) + conv(width, width)
        total += conv(channels, width, 1) if channels != width else 0
        total += ((depth - 2) // 6 - 1) * 2 * conv(width, width)
        channels = width
    return total + (channels + 1) * num_classes


def wide_resnet_formula(depth, width_multiplier, num_classes):
    total, channels = 3 * 16 * 9, 16
    for width in (16 * width_multiplier, 32 * width_multiplier, 64 * width_multiplier):
        for _ in range((depth - 4) // 6):
            total += 2 * channels + channels * width * 9 + 2 * width + width * width * 9
            total += channels * width if channels != width else 0
            channels = width
    return total + 2 * channels + (channels + 1) * num_classes


def test_the_mnist_networks_have_the_published_counts():
    assert count_parameters("mlp", {"widths": [1200, 1200]}, MNIST, 10) == 2_395_210
    assert count_parameters("mlp", {}, MNIST, 10) == 1_276_810
    assert count_parameters("mlp", {"widths": []}, (784,), 10) == 7_850


def test_lenet5_has_61706_parameters_at_both_input_sizes():
    assert count_parameters("lenet5", {}, MNIST, 10) == 61_706
    assert count_parameters("lenet5", {}, (1, 32, 32), 10) == 61_706


def test_half_a_lenet5_halves_every_width():
    by_hand = (25 + 1) * 3 + (3 * 25 + 1) * 8 + (8 * 25 + 1) * 60 + 61 * 42 + 43 * 10
    assert count_parameters("lenet5_half", {}, MNIST, 10) == by_hand


def test_the_acoustic_network_has_84377600_weights_and_a_bias_per_unit():
    weights = 26 * 40 * 2560 + 7 * 2560**2 + 2560 * 14_000
    assert weights == 84_377_600
    assert count_parameters("acoustic_dnn", {}, (26, 40), 14_000) == weights + 8 * 2560 + 14_000


def test_a_plain_network_may_end_in_the_mean_over_all_places():
    options = {"widths": [4, 6], "average": True}
    assert count_parameters("cnn", options, MNIST, 10) == (9 + 1) * 4 + (9 * 4 + 1) * 6 + (6 + 1) * 10
    model = build_model("cnn", options, (1, 7, 5), 3)
    inputs = torch.rand(2, 1, 7, 5)
    output = Tapped(model, ["stage2", "embedding"])(inputs)
    assert output.features["stage2"].shape == (2, 6, 3, 2)  # one pool: the second stage has none behind it
    torch.testing.assert_close(output.features["embedding"], output.features["stage2"].mean(dim=(2, 3)))
    torch.testing.assert_close(output.logits, model.classifier(output.features["embedding"]))
    assert build_model(
        "cnn", {"widths": [4] * 5, "average": True}, MNIST, 10
    )  # of 28 places a side one is left


@pytest.mark.parametrize("depth", [8, 14, 20, 26, 32, 44, 56, 110])
def test_a_residual_network_has_the_parameters_of_its_layers(depth):
    expected = resnet_formula(depth, 16, (16, 32, 64), 100)
    assert count_parameters(f"resnet{depth}", {}, CIFAR, 100) == expected


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet20", 278_324),
        ("resnet56", 861_620),
        ("resnet110", 1_736_564),
        ("resnet8x4", 1_233_540),
        ("resnet32x4", 7_433_860),
        ("resnet18", 11_220_132),
        ("resnet50", 23_705_252),
        ("wrn_16_2", 703_284),
        ("wrn_40_1", 569_780),
        ("wrn_40_2", 2_255_156),
        ("wrn_28_10", 36_536_884),
        ("vgg8", 3_965_028),
        ("vgg13", 9_462_180),
        ("mobilenet_v2_half", 812_836),
        ("shufflenet_v2", 1_355_528),
    ],
)
def test_a_network_of_the_cifar100_benchmark_has_its_known_count(name, published):
    assert count_parameters(name, {}, CIFAR, 100) == published


def test_resnet20_with_padded_shortcuts_is_the_network_of_the_paper():
    """0.27 million in table 6 of arXiv 1512.03385; projections add 32·16 + 2·32 + 64·32 + 2·64 = 2,752."""
    assert count_parameters("resnet20", {"shortcut": "padding"}, CIFAR, 10) == 269_722
    assert count_parameters("resnet20", {}, CIFAR, 10) == 269_722 + 2_752


def test_the_x4_networks_have_four_times_the_channels_behind_a_stem_of_32():
    assert count_parameters("resnet8x4", {}, CIFAR, 100) == resnet_formula(8, 32, (64, 128, 256), 100)
    assert count_parameters("resnet32x4", {}, CIFAR, 100) == resnet_formula(32, 32, (64, 128, 256), 100)


def test_a_residual_network_may_have_stages_of_different_depth():
    """ResNet-34 by its layers: 3, 4, 6 and 3 blocks of 64, 128, 256 and 512 channels."""
    total = conv(3, 64) + 6 * conv(64, 64)
    for width, blocks in ((128, 4), (256, 6), (512, 3)):
        total += conv(width // 2, width) + conv(width // 2, width, 1) + (2 * blocks - 1) * conv(width, width)
    assert count_parameters("resnet34", {}, CIFAR, 100) == total + 513 * 100
    stages = {"depth": 8, "blocks": [1, 1, 1]}
    assert count_parameters("resnet", stages, CIFAR, 100) == count_parameters("resnet8", {}, CIFAR, 100)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("wrn_")])
def test_a_wide_residual_network_has_the_parameters_of_its_layers(name):
    _, depth, width_multiplier = name.split("_")
    assert count_parameters(name, {}, CIFAR, 10) == wide_resnet_formula(int(depth), int(width_multiplier), 10)


def test_a_bottleneck_network_has_the_parameters_of_its_layers():
    total, channels = conv(3, 16), 16
    for width in (16, 32, 64):
        total += conv(channels, 4 * width, 1)
        for _ in range(2):
            total += conv(channels, width, 1) + conv(width, width) + conv(width, 4 * width, 1)
            channels = 4 * width
    assert count_parameters("resnet", {"depth": 20, "block": "bottleneck"}, CIFAR, 10) == total + 257 * 10


def test_mobilenet_v2_is_torchvisions_plus_the_expansion_of_the_first_block():
    theirs = count_parameters("torchvision", {"architecture": "mobilenet_v2"}, (3, 224, 224), 1000)
    assert theirs == 3_504_872
    assert count_parameters("mobilenet_v2", {}, CIFAR, 1000) == theirs + conv(32, 32, 1)


@pytest.mark.parametrize("width", [0.5, 1.0, 1.5, 2.0])
def test_shufflenet_v2_is_torchvisions_with_a_1x1_stem(width):
    architecture = f"shufflenet_v2_x{width:.1f}".replace(".", "_")
    theirs = count_parameters("torchvision", {"architecture": architecture}, (3, 224, 224), 1000)
    stems = 3 * 24 * 9 - 3 * 24
    assert count_parameters("shufflenet_v2", {"width_multiplier": width}, CIFAR, 1000) == theirs - stems


def test_the_plain_networks_of_takd_have_the_parameters_of_their_layers():
    def biased(channels_in, channels_out):
        return conv(channels_in, channels_out) + channels_out

    two = biased(3, 16) + biased(16, 16) + (16 * 8 * 8 + 1) * 10
    four = biased(3, 16) + biased(16, 16) + biased(16, 32) + biased(32, 32) + (32 * 8 * 8 + 1) * 10
    ten = biased(3, 32) + biased(32, 32) + biased(32, 64) + biased(64, 64) + biased(64, 128)
    ten += biased(128, 128) + biased(128, 256) + 3 * biased(256, 256) + (256 * 2 * 2 + 1) * 128 + 129 * 10
    counts = [count_parameters(f"plain_cnn_{size}", {}, CIFAR, 10) for size in (2, 4, 10)]
    assert counts == [two, four, ten]


SMALL_OPTIONS = {
    "acoustic_dnn": {"layers": 3, "width": 64},
    "branched": {"model": {"name": "resnet8"}},
    "reused_head": {"model": {"name": "resnet8"}, "head": {"name": "resnet8"}},
    "torchvision": {"architecture": "resnet18"},
    "wide_resnet": {"depth": 10, "width_multiplier": 2},
}


@pytest.mark.parametrize("name", [name for name in MODELS if name != "exported"])
def test_every_model_maps_two_samples_to_logits_and_trains_every_parameter(name):
    size = 28 if "lenet" in name else 16 if name.startswith("plain_cnn") else 8
    input_shape = (3, size, size)
    torch.manual_seed(0)
    model = build_model(name, SMALL_OPTIONS.get(name, {}), input_shape, 7)
    logits = model(torch.randn(2, *input_shape))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    untrained = [path for path, parameter in model.named_parameters() if parameter.grad is None]
    assert untrained == []


@pytest.mark.parametrize(
    "name", ["mlp", "cnn", "resnet8", "wrn_16_1", "vgg8", "mobilenet_v2_half", "shufflenet_v2"]
)
def test_the_channels_of_the_input_come_from_the_task(name):
    model = build_model(name, {}, (1, 32, 32), 4)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_2", "resnet8x4"])
def test_stages_halve_the_image_and_widen(name):
    widths = {"resnet8": (16, 32, 64), "wrn_16_2": (32, 64, 128), "resnet8x4": (64, 128, 256)}[name]
    features = Tapped(build_model(name, {}, CIFAR, 10), ["stage1", "stage2", "stage3", "embedding"])(
        torch.randn(2, *CIFAR)
    ).features
    shapes = [tuple(feature.shape[1:]) for feature in features.values()]
    assert shapes == [(widths[0], 32, 32), (widths[1], 16, 16), (widths[2], 8, 8), (widths[2],)]


def test_the_benchmarks_small_networks_end_in_the_benchmarks_feature_maps():
    images = torch.randn(2, *CIFAR)
    sizes = {}
    for name in ("vgg8", "mobilenet_v2_half", "shufflenet_v2"):
        model = build_model(name, {}, CIFAR, 100)
        stages = [
            feature for feature in model.feature_paths if feature.startswith("stage") and "_" not in feature
        ]
        sizes[name] = [
            tuple(feature.shape[1:3]) for feature in Tapped(model, stages)(images).features.values()
        ]
    assert sizes == {
        "vgg8": [(128, 16), (256, 8), (512, 4), (512, 4)],
        "mobilenet_v2_half": [(12, 16), (16, 8), (48, 4), (160, 2)],
        "shufflenet_v2": [(116, 16), (232, 8), (464, 4)],
    }


def test_convolutions_start_with_the_variance_of_he_et_al():
    torch.manual_seed(0)
    model = build_model("resnet8x4", {}, CIFAR, 10)
    weight = model.get_submodule("stage3.0.branch.conv2").weight
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)


def test_the_signal_survives_the_eight_layers_of_the_acoustic_network():
    torch.manual_seed(0)
    model = build_model("acoustic_dnn", {"width": 512}, (26, 40), 100)
    assert 0.5 < model(torch.randn(32, 26, 40)).square().mean().sqrt().item() < 3


def test_dropout_of_inputs_and_of_hidden_units_are_set_apart():
    torch.manual_seed(0)
    options = {"widths": [1000], "input_dropout": 0.2, "dropout": 0.5}
    model = build_model("mlp", options, (1000,), 2)
    tapped = Tapped(model, ["input_dropout", "hidden1", "hidden1.dropout"])
    features = tapped(torch.ones(8, 1000)).features
    assert (features["input_dropout"] == 0).float().mean().item() == pytest.approx(0.2, abs=0.03)
    kept = features["hidden1.dropout"][features["hidden1"] > 0]
    assert (kept == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    tapped.eval()
    assert tapped(torch.ones(8, 1000)).features["input_dropout"].eq(1).all()


def test_a_padded_shortcut_samples_pixels_and_appends_zeros():
    images = torch.arange(16.0).reshape(1, 1, 4, 4)
    padded = PaddedShortcut(stride=2, extra_channels=2)(images)
    assert padded[0, 0].tolist() == [[0, 2], [8, 10]]
    assert padded.shape == (1, 3, 2, 2)
    assert padded[0, 1:].eq(0).all()


def test_a_shuffle_block_equals_the_order_of_the_paper():
    """The paper: ReLU on the branch, concatenate, then shuffle as (groups, channels) transposed."""
    torch.manual_seed(0)
    block = ShuffleBlock(6).eval()
    images = torch.rand(2, 6, 4, 4)
    joined = torch.cat((images[:, :3], block.branch(images[:, 3:]).relu()), dim=1)
    expected = joined.view(2, 2, 3, 4, 4).transpose(1, 2).reshape(2, 6, 4, 4)
    torch.testing.assert_close(block(images), expected, rtol=0, atol=0)


def test_checking_a_plan_loads_no_torch():
    code = (
        "import sys, raydistill.models.options; print('torch' in sys.modules or 'torchvision' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("name", "options", "input_shape", "message"),
    [
        ("resnet21", {}, CIFAR, "unknown model `resnet21`; did you mean `resnet"),
        ("transformer", {}, CIFAR, "unknown model `transformer`; known: `mlp`, "),
        ("resnet20", {"dept": 20}, CIFAR, "unknown option `dept`; did you mean `depth`"),
        ("resnet20", {"depth": 32}, CIFAR, "option `depth` is 20 by the model's name"),
        ("resnet", {"depth": 21}, CIFAR, "21 is not 6n \\+ 2; the nearest are 20 and 26"),
        (
            "resnet",
            {"depth": 26, "block": "bottleneck"},
            CIFAR,
            "26 is not 9n \\+ 2; the nearest are 20 and 29",
        ),
        ("resnet", {"depth": 20, "blocks": [2, 2]}, CIFAR, "these `blocks` make a depth of 10, not 20"),
        ("resnet", {"depth": -4}, CIFAR, "the nearest are 8 and 14"),
        ("resnet", {"shortcut": "padding", "stem_width": 64}, CIFAR, "padding can only add channels"),
        ("wide_resnet", {"depth": 28.5}, CIFAR, "option `depth`"),
        ("mlp", {"widths": [800, 0]}, MNIST, "option `widths.1`: Input should be greater than or equal to 1"),
        ("mlp", {"dropout": 1.0}, MNIST, "option `dropout`"),
        ("mlp", {"dropout": float("nan")}, MNIST, "option `dropout`"),
        ("cnn", {"widths": [8] * 5}, MNIST, "5 pools leave nothing of an image of 28x28"),
        ("cnn", {"convolutions": [1]}, MNIST, "`convolutions` counts 1 stages and `widths` 2"),
        ("shufflenet_v2", {"width_multiplier": 0.7}, CIFAR, "the paper has the widths"),
        ("lenet5", {}, (3, 64, 64), "28x28 or 32x32, not 64x64"),
        ("resnet20", {}, (784,), "use `mlp`"),
        ("torchvision", {}, CIFAR, "option `architecture`: Field required"),
        ("torchvision", {"architecture": "resnet19"}, CIFAR, "did you mean `resnet1.`"),
        ("torchvision", {"architecture": "inception_v3"}, CIFAR, "returns logits alone"),
        ("torchvision", {"architecture": "resnet18"}, MNIST, "read 3 channels"),
    ],
)
def test_a_wrong_choice_is_refused_with_the_way_out(name, options, input_shape, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, options, input_shape, 10)


def test_a_model_without_classes_is_refused():
    with pytest.raises(ValueError, match="at least one class"):
        build_model("mlp", {}, MNIST, 0)


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_1"])
def test_deeper_blocks_are_dropped_oftener_and_in_eval_mode_none_is(name):
    torch.manual_seed(0)
    plain = build_model(name, {}, CIFAR, 10).eval()
    torch.manual_seed(0)
    model = build_model(name, {"drop_path": 0.3}, CIFAR, 10).eval()
    blocks = {"resnet20": 9, "wrn_16_1": 6}[name]
    rates = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.3 * block / blocks for block in range(1, blocks + 1)])
    assert model.state_dict().keys() == plain.state_dict().keys()
    inputs = torch.rand(4, *CIFAR)
    assert torch.equal(model(inputs), plain(inputs))
    assert not any(isinstance(module, DropPath) for module in plain.modules())


def test_a_dropped_branch_is_zero_for_a_sample_and_larger_for_the_others_with_the_same_mean():
    torch.manual_seed(0)
    inputs = 1 + torch.rand(20_000, 2, 1, 1, dtype=torch.float64)
    outputs = DropPath(0.25)(inputs)
    is_kept = (outputs != 0).flatten(1)
    assert torch.equal(is_kept[:, 0], is_kept[:, 1])
    torch.testing.assert_close(outputs, inputs * is_kept[:, :1, None, None] / 0.75)
    # Binomial: within five standard deviations.
    assert abs(is_kept[:, 0].double().mean().item() - 0.75) < 5 * (0.75 * 0.25 / 20_000) ** 0.5
    assert outputs.mean().item() == pytest.approx(inputs.mean().item(), rel=0.02)


def test_an_option_that_came_later_is_written_down_where_it_says_something():
    read = MODELS["resnet20"].read_options
    assert "drop_path" not in read({"drop_path": 0}).written()
    assert read({"drop_path": 0.1}).written()["drop_path"] == 0.1
    assert read(read({}).written()) == read({})


def test_options_may_repeat_what_the_name_decides():
    """A checked plan writes every option down, as JSON has it: lists for tuples."""
    architecture = MODELS["plain_cnn_10"]
    written = architecture.read_options({}).model_dump(mode="json")
    assert architecture.read_options(written) == architecture.read_options({})


@pytest.fixture
def users_module(monkeypatch):
    module = ModuleType("models_of_a_user")
    monkeypatch.setitem(sys.modules, "models_of_a_user", module)
    return module


def test_a_users_function_gets_the_classes_and_its_options(users_module):
    users_module.build = lambda num_classes, width: nn.Sequential(
        nn.Linear(5, width), nn.Linear(width, num_classes)
    )
    model = build_model("models_of_a_user:build", {"width": 3}, (5,), 2)
    assert model(torch.zeros(4, 5)).shape == (4, 2)
    assert model[0].out_features == 3


def test_a_users_function_gets_the_input_shape_if_it_takes_it(users_module):
    users_module.build = lambda num_classes, input_shape: nn.Linear(input_shape[0], num_classes)
    assert build_model("models_of_a_user:build", {}, (5,), 2).in_features == 5


def test_a_users_class_is_as_good_as_a_function(users_module):
    class Linear(nn.Linear):
        def __init__(self, num_classes, size):
            super().__init__(size, num_classes)

    users_module.Linear = Linear
    assert build_model("models_of_a_user:Linear", {"size": 5}, (5,), 2).out_features == 2


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("models_of_a_user:biuld", "`models_of_a_user` has no `biuld`; did you mean `build`"),
        ("models_of_a_user:constant", "is a int, not a function"),
        (
            "models_of_a_user:build",
            "cannot be called with num_classes, width: missing a required argument: 'size'",
        ),
        ("models_of_a_user:nothing", "returned NoneType, not a torch.nn.Module"),
        ("no_such_package.module:build", "cannot import `no_such_package.module`"),
        (":build", "not of the form `package.module:function`"),
        ("models_of_a_user:", "not of the form `package.module:function`"),
    ],
)
def test_a_users_model_that_cannot_be_built_says_why(users_module, address, message):
    users_module.build = lambda num_classes, width, size: nn.Linear(size, num_classes)
    users_module.nothing = lambda num_classes, width: None
    users_module.constant = 3
    with pytest.raises(ValueError, match=message):
        build_model(address, {"width": 3}, (5,), 2)
