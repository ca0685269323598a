"""ONNX files that leave the house answer as torch does, tell what they take, and come back as teachers."""

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor, nn

from raydistill import lookup, onnx_file
from raydistill.cli import main
from raydistill.errors import PlanError, StoreError
from raydistill.execution.local_backend import LocalBackend
from raydistill.execution.scheduler import run_stages
from raydistill.export import export_model
from raydistill.models import MODELS
from raydistill.models.build import build_model
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan, build_task
from raydistill.prediction import Predictor, load_predictor, predict_arrays
from raydistill.runs.folder import StageFolder
from raydistill.tasks.normalisation import Normalisation, channel_statistics
from raydistill.training.model_files import TrainedModel

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

MLP = {"stage": "train", "model": {"name": "mlp", "widths": [30]}, "epochs": 1}
STAGES = {
    "student": MLP | {"transfer": {"omit_classes": [3]}},
    "adjusted": {
        "stage": "adjust_class_bias",
        "model": "student",
        "classes": [3],
        "by": "prior",
        "prior": 0.4,
    },
    "other": MLP | {"seed": 1},
    "mean": {"stage": "evaluate", "models": ["student", "other"], "rule": "geometric", "weights": [3, 1]},
}


def run(stages: dict[str, Any], task: Any, root: Path) -> dict[str, StageFolder]:
    """Run a plan; the folders of its stages by name."""
    graph = order_stages(plan := Plan.model_validate({"name": "tiny", "task": task, "stages": stages}))
    run_stages(graph, LocalBackend(), task=plan.task, root=root)
    return {name: StageFolder(root / node.folder) for name, node in graph.nodes.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def folders(root: Path) -> dict[str, Path]:
    """Digits: a network that never saw the 3, the same one with that logit shifted, another one, and both as one."""
    return {name: folder.path for name, folder in run(STAGES, {"name": "mnist"}, root).items()}


@pytest.fixture(scope="module")
def files(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    target = tmp_path_factory.mktemp("exported")
    for name, folder in folders.items():
        export_model(folder, target / name, format="onnx", license="CC BY 4.0")
    return {name: target / name / "model.onnx" for name in folders}


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """All raw test digits (1000, 1, 28, 28) uint8."""
    inputs: np.ndarray = build_task({"name": "mnist"}).load().test.inputs.numpy()
    return inputs


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_bytes_in_give_the_probabilities_and_labels_of_predict(
    name: str, rows: int, folders: dict[str, Path], files: dict[str, Path], digits: np.ndarray
) -> None:
    session = onnxruntime.InferenceSession(files[name])
    given, labels = session.run(["probabilities", "label"], {"inputs": digits[:rows]})
    ours = predict_arrays(load_predictor(folders[name]), digits[:rows])
    assert np.abs(given - ours).max() < 1e-5
    assert list(labels) == [str(label) for label in ours.argmax(axis=1)]


def test_the_file_tells_what_it_takes_and_where_it_comes_from(
    folders: dict[str, Path], files: dict[str, Path]
) -> None:
    told = onnxruntime.InferenceSession(files["student"]).get_modelmeta().custom_metadata_map
    assert json.loads(told["class_names"]) == [str(label) for label in range(10)]
    assert (told["task"], told["license"]) == ("mnist", "CC BY 4.0")
    assert folders["student"].name.endswith(told["fingerprint"])
    inputs = json.loads(told["contract"])["inputs"]
    assert (inputs["dtype"], inputs["shape"]) == ("uint8", ["batch", 1, 28, 28])
    assert "255" in inputs["values"]
    assert "divided" not in inputs["values"]
    assert str(Path(__file__).parents[1]).encode() not in files["student"].read_bytes()  # no lines of code


def test_the_page_has_numbers_with_their_interval_and_the_license(files: dict[str, Path]) -> None:
    page = (files["student"].parent / "README.md").read_text()
    assert [path.name for path in sorted(files["student"].parent.iterdir())] == ["README.md", "model.onnx"]
    (row,) = [line for line in page.splitlines() if line.startswith("| test/accuracy")]
    accuracy = float(row.split("|")[2])
    low, high = (float(bound) for bound in row.split("|")[3].split(" to "))
    assert low < accuracy < high
    # Of 1,000 samples about 1.96 √(p (1 - p) / 1000) to each side.
    assert (high - low) / 2 == pytest.approx(1.96 * (accuracy * (1 - accuracy) / 1000) ** 0.5, rel=0.02)
    assert "License: CC BY 4.0" in page
    assert f"{784 * 30 + 30 * 10:,} multiply-adds" in page
    assert "p95" not in page
    assert "uint8" in page


def test_it_comes_back_as_a_teacher_of_equal_accuracy(
    root: Path, folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    stages = {
        name: {"stage": "pretrained", "model": {"name": "exported"}, "weights": str(files[name])}
        for name in ("student", "mean")
    }
    # As a network of its own that is shown pictures in another size first, and back.
    stages["sized"] = stages["student"] | {"model": {"name": "exported", "input": {"size": 28}}}
    # And as the program of torch that `distill export` writes, which normalises by itself, too.
    program = next(path for path in export_model(folders["student"], tmp_path) if path.suffix == ".pt2")
    stages["program"] = stages["student"] | {"weights": str(program)}
    found = run(stages, {"name": "mnist"}, root)
    of = {"sized": "student", "program": "student"}
    for name, folder in found.items():
        record, source = folder.done_record(), StageFolder(folders[of.get(name, name)]).record()
        assert source is not None
        assert record.metrics["test/accuracy"] == source.metrics["test/accuracy"]
        assert record.metrics["test/loss"] == pytest.approx(source.metrics["test/loss"], rel=1e-4)


def test_one_that_normalises_by_itself_is_not_normalised_twice(root: Path, files: dict[str, Path]) -> None:
    own = {"name": "exported", "input": {"mean": 0.5, "std": 0.5}}
    stages = {"twice": {"stage": "pretrained", "model": own, "weights": str(files["student"])}}
    folder = run(stages, {"name": "mnist"}, root)["twice"]
    assert "leave `mean` and `std` of `input` out" in str((record := folder.record()) and record.error)


def test_a_committee_is_refused_with_the_reason(root: Path, tmp_path: Path) -> None:
    stages = {
        "generalist": STAGES["other"],
        "clusters": {"stage": "confusion_clusters", "given": [[1, 2], [3, 4]]},
        "specialists": {
            "stage": "train_specialists",
            "generalist": "generalist",
            "clusters": "clusters",
            "epochs": 1,
        },
        "committee": {
            "stage": "evaluate",
            "models": ["generalist"],
            "committee": {"specialists": ["specialists"], "active": 1},
        },
    }
    folder = run(stages, {"name": "mnist"}, root)["committee"].path
    with pytest.raises(PlanError, match=r"a committee cannot be written as ONNX: .* solved by iteration"):
        export_model(folder, tmp_path / "out", format="onnx")
    assert not (tmp_path / "out").exists()


def test_one_that_answers_otherwise_is_not_written(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*arguments: Any) -> Any:
        model = converted(*arguments)
        for tensor in model.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.ndim == 2:
                tensor.CopyFrom(onnx.numpy_helper.from_array(values * 1.01, tensor.name))
        return model

    converted = onnx_file._converted
    monkeypatch.setattr(onnx_file, "_converted", damaged)
    with pytest.raises(StoreError, match=r"probabilities are up to .* from torch's on 1000 samples"):
        export_model(folders["student"], tmp_path / "out", format="onnx")
    assert not (tmp_path / "out").exists()


def test_without_the_libraries_a_line_says_what_to_install(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = "onnxscript"
    monkeypatch.setattr(lookup, "find_spec", lambda name: None if name == absent else find_spec(name))
    result = CliRunner().invoke(
        main, ["export", str(folders["student"]), str(tmp_path / "out"), "--format", "onnx"]
    )
    assert isinstance(result.exception, PlanError) or result.exit_code == 2
    said = str(result.exception) + result.output
    assert "`onnxscript`" in said
    assert "pip install 'raydistill[deploy]'" in said


class Counting(nn.Module):
    """Takes the number of samples for a constant."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.flatten(1)[:, :3] + torch.zeros(len(inputs), 3)


def trained(model: nn.Module, like: Tensor) -> Predictor:
    """A model as it is loaded, on inputs (N, ...) like these."""
    plain = Normalisation(*channel_statistics(like))
    whole = TrainedModel(model.eval().requires_grad_(False), plain, (), like.shape[1:], {})
    return Predictor(whole.logits, [whole])


def test_a_model_for_one_batch_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"write `inputs\.shape\[0\]`"):
        onnx_file.write_onnx(
            trained(Counting(), torch.randn(4, 5)),
            torch.randn(4, 5),
            tmp_path / "m.onnx",
            properties={},
            class_names="abc",
        )
    assert not any(tmp_path.iterdir())


def test_samples_of_the_user_stand_for_data_that_is_not_there(root: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    file = tmp_path / "data.npz"
    np.savez(file, inputs=draw.normal(size=(90, 5)).astype(np.float32), labels=np.arange(90) % 3)
    folder = run({"model": MLP}, {"name": "tensors", "file": str(file)}, root)["model"].path
    file.unlink()
    with pytest.raises(PlanError, match="name files with `--samples`"):
        export_model(folder, tmp_path / "out", format="onnx")
    np.save(tmp_path / "some.npy", draw.normal(size=(4, 5)).astype(np.float32))
    written = export_model(folder, tmp_path / "out", format="all", samples=[tmp_path / "some.npy"])
    names = {path.name for path in written}
    assert names == {"model.onnx", "model.json", "model.safetensors", "README.md", "model.pt2"}
    (inputs,) = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx").get_inputs()
    assert inputs.type == "tensor(float)"


def test_weights_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    written = export_model(folders["student"], tmp_path / "out", format="safetensors")
    assert {path.name for path in written} == {"model.json", "model.safetensors", "README.md"}
    assert (tmp_path / "out" / "model.pt2").exists() is False
    with pytest.raises(PlanError, match="several models"):
        export_model(folders["mean"], tmp_path / "mean", format="all")


OPTIONS: dict[str, dict[str, Any]] = {
    "acoustic_dnn": {"layers": 3, "width": 256},
    "branched": {"model": {"name": "resnet8"}},
    "reused_head": {"model": {"name": "resnet8"}, "head": {"name": "resnet8"}},
    "torchvision": {"architecture": "mobilenet_v3_small"},
}
TORCHVISION = ("resnet18", "efficientnet_b0", "convnext_tiny", "vit_b_16", "densenet121", "regnet_x_400mf")
# ALL_ARCHITECTURES=1 asks for the deeper ones of a family, too, and for up to 1,000 samples: 9 minutes on two cores.
ALL = bool(os.environ.get("ALL_ARCHITECTURES"))
DEEPER = re.compile(r"resnet(26|32|44|56|110)|wrn_(28|40)_\d+|plain_cnn_[468].*|wide_resnet")
NETWORKS = [
    (name, OPTIONS.get(name, {}))
    for name in MODELS
    if name != "exported" and (ALL or not DEEPER.fullmatch(name))
]
NETWORKS += [("torchvision", {"architecture": name}) for name in TORCHVISION]
PARAMETERS_AT_ONCE = 3e9 if ALL else 3e8  # of samples times parameters: fewer samples of a large network


class Confident(nn.Module):
    """A network that was not trained, with logits that differ by some 0.5.

    By 4, as those of a trained one, torch's own float32 is 2e-4 from float64 in ShuffleNetV2: random weights amplify
    rounding.
    """

    def __init__(self, network: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        self.network = network
        for norm in (part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)):
            norm.momentum = (
                1.0  # one look at the inputs: otherwise rounding is all that a deep network tells apart
            )
        with torch.no_grad():
            for weight in (weight for weight in network.parameters() if weight.ndim > 1 and not weight.any()):
                nn.init.normal_(weight, std=0.02)  # torchvision's vit begins with a head of zeros
            network(inputs)
            logits = network.eval()(inputs)
            self.register_buffer("middle", logits.mean(dim=0))
            self.register_buffer("factor", 0.5 / (logits - self.middle).std())

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.network(inputs) - self.middle) * self.factor


def shown(name: str, digits: Tensor, size: int) -> Tensor:
    """Digits (N, 1, 28, 28) as a network of that name takes them."""
    if name.startswith("lenet5"):
        return digits
    if name == "acoustic_dnn":
        return F.pad(digits, (6, 6))[:, 0, 1:27]
    rest = (size - 28) // 2
    return F.pad(digits, (rest, rest, rest, rest)).expand(-1, 3, -1, -1).contiguous()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"), NETWORKS, ids=[options.get("architecture", name) for name, options in NETWORKS]
)
def test_every_architecture_answers_on_real_samples_as_in_torch(
    name: str, options: dict[str, Any], digits: np.ndarray, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    size = 224 if name == "torchvision" else 32
    samples = shown(name, torch.from_numpy(digits), size)
    network = build_model(name, options, tuple(samples.shape[1:]), 10)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    samples = samples[: max(16, round(min(1000, PARAMETERS_AT_ONCE / parameters / (size / 32) ** 2)))]
    statistics = Normalisation(*channel_statistics(samples))
    predictor = trained(Confident(network, statistics(samples[:64] / 255)), samples)
    file = tmp_path / "m.onnx"
    names = [str(label) for label in range(10)]
    difference = onnx_file.write_onnx(predictor, samples, file, properties={}, class_names=names)
    assert difference < 1e-4
    # And not by the product's own comparison, in one batch.
    given, labels = onnxruntime.InferenceSession(file).run(None, {"inputs": samples.numpy()})
    expected = predictor.logits(samples / 255).softmax(dim=1)
    assert len(set(labels)) > 1
    torch.testing.assert_close(torch.from_numpy(given), expected, atol=1e-4, rtol=0)
    sure = expected.topk(2).values.diff().abs().squeeze(1) > 1e-3
    assert list(labels[sure.numpy()]) == [str(int(label)) for label in expected.argmax(dim=1)[sure]]
