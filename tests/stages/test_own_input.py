"""Student and teacher see one view, each with its own eyes: live, stored, replayed, exported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from raydistill.errors import PlanError
from raydistill.export import PROGRAM, export_model
from raydistill.inference.predict import predict_files
from raydistill.kinds.training import TransferConfig
from raydistill.models.build import build_model
from raydistill.plan.advice import advice
from raydistill.plan.load import read_source, validated
from raydistill.plan.model_input import InputConfig
from raydistill.prediction import load_model
from raydistill.raw_model import RawModel
from raydistill.targets.reader import open_targets
from raydistill.tasks.image_folder import ImageFolder
from raydistill.tasks.mnist import Mnist
from raydistill.training.data import Views, build_transfer_set
from raydistill.training.trust import Trust

CNN = {"name": "cnn", "widths": [4, 6]}
EYES = {"size": 12, "mean": 0.5, "std": 0.25}
VIEWS = [{"name": "shift", "pixels": 1}, {"name": "flip"}, {"name": "mixup", "alpha": 1.0}]
TEACHER = {"stage": "train", "epochs": 2, "batch_size": 16, "model": {**CNN, "input": EYES}}


def as_seen(pixels: Tensor) -> Tensor:
    return v2.Compose([v2.Resize((12, 12), antialias=True), v2.Normalize((0.5,), (0.25,))])(pixels)


def pixels_of(stages: Any) -> Tensor:
    return torch.from_numpy(np.load(stages.file)["inputs"])


def test_a_model_is_given_what_it_wants(stages: Any) -> None:
    stages.run({"teacher": TEACHER})
    trained = stages.model("teacher")
    inputs: list[Tensor] = []
    trained.plain.stage1.register_forward_hook(lambda module, given, output: inputs.append(given[0]))
    trained.logits(pixels_of(stages))
    torch.testing.assert_close(inputs[0], as_seen(pixels_of(stages)), rtol=1e-4, atol=1e-5)
    assert trained.description["model"]["input"]["size"] == 12
    assert trained.input_shape == (1, 8, 8)


def test_settings_that_change_nothing_change_no_bit(stages: Any, teacher: Any) -> None:
    same = {**teacher, "model": {**teacher["model"], "input": {"size": 8, "channels": "grey"}}}
    stages.run({"plain": teacher, "same": same})
    assert torch.equal(stages.logits("plain"), stages.logits("same"))
    assert stages.folder("plain").path != stages.folder("same").path


@pytest.mark.parametrize("student_input", [None, {"size": 6, "mean": 0.2, "std": 0.7}])
def test_a_student_of_stored_targets_is_that_of_a_live_teacher(
    stages: Any, student: Any, student_input: Any
) -> None:
    learner = student | {
        "student": {**CNN, "input": student_input},
        "teachers": ["teacher"],
        "augment": VIEWS,
    }
    stages.run({"teacher": TEACHER, "student": {**learner, "views": 2}})
    stored = stages.logits("student")
    stages.run({"teacher": TEACHER, "student": {**learner, "mode": "live"}})
    # Two epochs see the views 0 and 1 of the seed 0 in both modes; only float16 lies between them.
    torch.testing.assert_close(stages.logits("student"), stored, rtol=0, atol=2e-2)


def test_stored_targets_are_answers_to_each_replayed_view_as_the_teacher_sees_it(
    stages: Any, student: Any
) -> None:
    stages.run(
        {"teacher": TEACHER, "student": student | {"teachers": ["teacher"], "augment": VIEWS, "views": 2}}
    )
    trained = stages.model("teacher")
    bare = build_model(CNN["name"], {"widths": CNN["widths"]}, (1, 12, 12), 3).eval()
    bare.load_state_dict(trained.plain.state_dict())
    steps = tuple(stages.graph.nodes["student"].config.augment)
    data, rows = stages.plan.task.load(), torch.arange(20)
    transfer = build_transfer_set(data, TransferConfig(), Views(steps, 0, 2), "cpu")
    targets = open_targets(stages.folder("teacher.targets").path, root=stages.root, expect=None)
    for view in range(2):
        (batch,) = transfer.batches([rows], view)
        pixels = batch.inputs * data.normalisation.std + data.normalisation.mean
        told = targets.read(targets.rows_of(batch.ids), view).logits[:, 0].float()
        torch.testing.assert_close(told, bare(as_seen(pixels)), rtol=0, atol=2e-2)  # logits of 30 in float16


def test_who_sees_the_same_learns_the_same(stages: Any, student: Any) -> None:
    """A teacher's own eyes are part of its answers: a student of the same answers is the same to the last bit."""
    plan = {"teacher": TEACHER, "student": student | {"teachers": ["teacher"], "mode": "live"}}
    stages.run(plan)
    logits = stages.logits("student")
    again = stages.elsewhere("again").run(plan)
    assert torch.equal(again.logits("student"), logits)


def test_an_exported_student_has_its_eyes_with_it(stages: Any, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    inputs = draw.integers(256, size=(60, 3, 10, 10), dtype=np.uint8)
    np.savez(stages.file, inputs=inputs, labels=np.arange(60) % 3, split=np.repeat([0, 2], 30))
    eyes = {"size": 12, "resize": 14, "mean": "imagenet", "std": "imagenet"}
    stages.run({"student": {**TEACHER, "model": {**CNN, "input": eyes}}})
    folder, logits = (
        stages.folder("student").path,
        stages.model("student").logits(torch.from_numpy(inputs) / 255),
    )
    raw = RawModel(load_model(folder, Trust(stages.root)))
    assert torch.equal(raw(torch.from_numpy(inputs)), logits)
    export_model(folder, tmp_path / "out")
    page = (tmp_path / "out/README.md").read_text()
    assert "how the network is shown a picture (size 12, resize 14, mean [0.485" in page
    program = torch.export.load(tmp_path / "out" / PROGRAM).module()
    expected = torch.softmax(logits, dim=1)
    torch.testing.assert_close(program(torch.from_numpy(inputs) / 255), expected, rtol=1e-4, atol=1e-6)
    Image.fromarray(inputs[0].transpose(1, 2, 0)).save(tmp_path / "one.png")
    (told,) = predict_files(tmp_path / "out", [tmp_path / "one.png"])
    assert dict(told.ranked)[str(int(expected[0].argmax()))] == pytest.approx(
        float(expected[0].max()), abs=1e-5
    )


def test_grey_digits_have_a_teacher_of_colours(stages: Any, student: Any) -> None:
    colourful = {
        "name": "torchvision",
        "architecture": "squeezenet1_1",
        "input": {"size": 32, "channels": "rgb", "mean": "imagenet", "std": "imagenet"},
    }
    teacher = {**TEACHER, "model": colourful, "epochs": 1}
    stages.run({"teacher": teacher, "student": student | {"teachers": ["teacher"]}})
    assert stages.record("student").status == "done"


def test_weights_go_on_with_other_eyes(stages: Any) -> None:
    tuned = {**TEACHER, "model": {**CNN, "input": {"size": 12}}, "initial": "teacher"}
    stages.run({"teacher": TEACHER, "tuned": tuned})
    assert stages.record("tuned").status == "done"


@pytest.mark.parametrize(
    ("eyes", "words"),
    [
        ({"size": 0}, "at least 1"),
        ({"size": 5000}, "at most 2,048"),
        ({"size": 8, "resize": 4}, "no larger"),
        ({"resize": 10}, "write a `size`"),
        ({"mean": 0.5}, "`mean` needs a `std` beside it"),
        ({"mean": "imagnet", "std": "imagenet"}, "should be `imagenet`"),
        (
            {"mean": "imagenet", "std": "imagenet"},
            "has 3 numbers for 1 channel; write `channels: rgb` beside it",
        ),
        ({"mean": [0.1, 0.2], "std": [0.1, 0.2], "channels": "rgb"}, "has 2 numbers for 3 channels"),
        ({"mean": 0.5, "std": 0}, "above 0"),
        ({"channels": "bgr"}, "rgb"),
        ({"sice": 8}, "did you mean `size`"),
    ],
)
def test_what_cannot_be_meant_is_an_error_of_one_line(stages: Any, eyes: Any, words: str) -> None:
    with pytest.raises(Exception) as caught:
        stages.write({"teacher": {**TEACHER, "model": {**CNN, "input": eyes}}})
    assert words in str(caught.value)


def test_inputs_that_are_no_pictures_are_refused(stages: Any) -> None:
    np.savez(stages.file, inputs=np.zeros((30, 7), np.float32), labels=np.arange(30) % 3)
    with pytest.raises(
        PlanError, match=r"`input` is about pictures, and an input of the task is float32 \(7,\)"
    ):
        stages.write({"teacher": {**TEACHER, "model": {"name": "mlp", "widths": [4], "input": {"size": 8}}}})


TIMM = """
from torch import nn
def build(num_classes):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, num_classes))
    model.pretrained_cfg = {TOLD}
    return model
"""
TOLD = {
    "input_size": (3, 20, 20),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
}
SQUEEZENET = {"name": "torchvision", "architecture": "squeezenet1_1"}


def test_what_a_network_tells_of_its_input_holds_and_is_written_down(
    stages: Any, users_models: Any, caplog: pytest.LogCaptureFixture
) -> None:
    name = users_models(TIMM.replace("{TOLD}", repr(TOLD)))
    stages.run({"teacher": {**TEACHER, "model": {"name": f"{name}:build", "input": {"like": "published"}}}})
    written = stages.model("teacher").description["model"]["input"]
    assert (written["size"], written["channels"], written["interpolation"]) == (20, "rgb", "bicubic")
    assert (written["like"], written["mean"]) == (None, [0.5, 0.5, 0.5])
    assert not any("is not built by the code" in line for line in caplog.messages)
    (told,) = (line for line in stages.record("teacher").warnings if "20 x 20, rgb, mean 0.5 0.5 0.5" in line)
    assert "pictures of 8 x 8 are enlarged to 20 x 20" in told


def test_what_stands_beside_it_goes_before_what_is_published(stages: Any, users_models: Any) -> None:
    name = users_models(TIMM.replace("{TOLD}", repr(TOLD)))
    wanted = {"like": "published", "size": 10}
    stages.run({"teacher": {**TEACHER, "model": {"name": f"{name}:build", "input": wanted}}})
    written = stages.model("teacher").description["model"]["input"]
    assert (written["size"], written["std"]) == (10, [0.5, 0.5, 0.5])


def test_a_network_that_tells_nothing_is_an_error_with_the_way_out(stages: Any, users_models: Any) -> None:
    name = users_models(TIMM.replace("{TOLD}", "None"))
    stages.write({"teacher": {**TEACHER, "model": {"name": f"{name}:build", "input": {"like": "published"}}}})
    assert "has no `pretrained_cfg`; write `input:" in str(stages.attempt("teacher").error)
    with pytest.raises(ValueError, match="nothing is published about a `cnn`"):
        stages.write({"teacher": {**TEACHER, "model": {**CNN, "input": {"like": "published"}}}})


@pytest.mark.parametrize(
    ("file", "written"), [("squeezenet1_1-b8a52dc0.pth", 224), ("mine.pth", None), ("mine.pth", "published")]
)
def test_published_weights_bring_their_input_along(
    stages: Any, tmp_path: Path, file: str, written: Any
) -> None:
    network = build_model("torchvision", {"architecture": "squeezenet1_1"}, (3, 32, 32), 3)
    torch.save(network.state_dict(), tmp_path / file)
    np.savez(stages.file, inputs=np.zeros((30, 3, 36, 36), np.float32), labels=np.arange(30) % 3)
    model = SQUEEZENET | ({"input": {"like": written}} if written == "published" else {})
    plan = {"teacher": {"stage": "pretrained", "model": model, "weights": str(tmp_path / file)}}
    stages.write(plan)
    told = [line for line in advice(stages.plan) if "`input: published`" in line]
    assert len(told) == (written is None)
    stages.run(plan)
    found = stages.model("teacher").description["model"]["input"]
    assert (None if found is None else found["size"]) == (224 if written else None)
    if found:
        assert found["mean"] == [0.485, 0.456, 0.406]


def test_enlarged_pictures_and_a_mean_of_grey_levels_are_told(stages: Any) -> None:
    eyes = {"size": 16, "mean": 127.5, "std": 60.0}
    stages.write({"teacher": {**TEACHER, "model": {**CNN, "input": eyes}}})
    enlarged, levels = advice(stages.plan)
    assert "stages.teacher.model.input" in enlarged
    assert "pictures of 8 x 8 are enlarged to 16 x 16" in enlarged
    assert "divide `mean` and `std` by 255" in levels


def test_published_is_a_word_in_a_plan(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(
        "name: p\ntask: {name: mnist}\nstages:\n  teacher: {stage: train, epochs: 1,"
        " model: {name: torchvision, architecture: resnet18, input: published}}\n"
    )
    assert validated(read_source(file)).stages["teacher"].model.input.like == "published"


SHARED = {"epochs": 1, "batch_size": 16, "augment": [{"name": "shift", "pixels": 1}]}
SMALL = {**CNN, "batch_norm": True, "input": {"size": 6, "mean": 0.4, "std": 0.3}}
LARGE = {**SMALL, "input": EYES}
COMMITTEE = {"specialists": ["specialists"], "active": 1}
SOFT = {"method": "hinton", "soft_weight": 1.0, "hard_weight": 0.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "peers": {"model": {"stage": "train_peers", "peers": [SMALL, LARGE], "deploy": 1, **SHARED}},
    "codistill": {"model": {"stage": "codistill", "model": LARGE, "replicas": 2, "burn_in": 0, **SHARED}},
    "specialists": {
        "teacher": {"stage": "train", "model": LARGE, **SHARED},
        "clusters": {"stage": "confusion_clusters", "given": [[2, 0], [1, 2]]},
        "specialists": {
            "stage": "train_specialists",
            "generalist": "teacher",
            "clusters": "clusters",
            **SHARED,
        },
        "model": {
            "stage": "distill",
            "student": SMALL,
            "teachers": ["teacher"],
            "committee": COMMITTEE,
            **SHARED,
            "augment": [],
        },
    },
    "data-free": {
        "teacher": {"stage": "train", "model": LARGE, **SHARED},
        "statistics": {"stage": "record_statistics", "teacher": "teacher", "layers": "all"},
        "images": {
            "stage": "synthesize",
            "teacher": "teacher",
            "statistics": "statistics",
            "batches": 2,
            "batch_size": 8,
            "steps": 3,
        },
        "model": {
            "stage": "distill",
            "student": SMALL,
            "teachers": ["teacher"],
            "transfer": {"synthesized": "images"},
            "method": SOFT,
            "epochs": 1,
        },
    },
    "features": {
        "teacher": {"stage": "train", "model": LARGE, "channels_last": True, **SHARED},
        "model": {
            "stage": "distill",
            "mode": "live",
            "student": SMALL,
            "teachers": ["teacher"],
            "methods": [{"method": "hinton"}, {"method": "relational"}],
            "precision": "bfloat16",
            **SHARED,
        },
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_stage_shows_its_models_what_they_will_be_shown_when_they_are_loaded(
    stages: Any, family: str
) -> None:
    plan = FAMILIES[family]
    stages.run(plan)
    data = stages.plan.task.load()
    for name in stages.graph.nodes:
        metrics = stages.record(name).metrics
        if name.partition(".")[0] not in ("model", "teacher") or "test/loss" not in metrics:
            continue
        logits = stages.model(name).logits(data.test.inputs)
        loss = float(torch.nn.functional.cross_entropy(logits, data.test.labels))
        loose = 2e-2 if plan[name.partition(".")[0]].get("precision") else 1e-5
        assert metrics["test/loss"] == pytest.approx(loss, rel=loose)


def test_a_folder_of_pictures_can_be_read_larger_and_says_so() -> None:
    wanted, task = InputConfig(size=224), ImageFolder(folder=Path("birds"), image_size=64)
    assert "set `image_size: 224` in the task, and `input: {size: …}`" in str(wanted.enlarges(task))
    assert wanted.enlarges(ImageFolder(folder=Path("birds"))) is None
    assert InputConfig(size=32).enlarges(Mnist()) is None  # nothing can be done about it, and little is lost
