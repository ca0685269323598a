"""Teachers that exist as programs of `torch.export` or ONNX: judged, taught from, stored and sent like any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from raydistill.errors import PlanError
from raydistill.execution.submit.needs import find_needs
from raydistill.export import export_model
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan
from raydistill.plan.written import Source
from raydistill.prediction import load_model
from raydistill.stages.model_probe import check_features
from raydistill.targets.reader import open_targets
from raydistill.training.trust import Trust

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

OWN = """
from torch import nn
def build(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, num_classes))
"""


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def torch_program(folder: Path) -> Path:
    program = torch.export.export(
        network(), (torch.randn(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, folder / "teacher.pt2")
    return folder / "teacher.pt2"


def onnx_program(
    folder: Path, data: str = "teacher.onnx.data", outputs: tuple[str, ...] = ("logits",)
) -> Path:
    """The same network, its tensors in a file of their own."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    values = {key: value.numpy() for key, value in network().state_dict().items()}
    nodes = [
        helper.make_node("Flatten", ["x"], ["rows"]),
        helper.make_node("Gemm", ["rows", "1.weight", "1.bias"], ["pre"], transB=1),
        helper.make_node("Relu", ["pre"], ["embedding"]),
        helper.make_node("Gemm", ["embedding", "3.weight", "3.bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [onnx.numpy_helper.from_array(value, key) for key, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (folder / data).parent.mkdir(exist_ok=True)
    (folder / data).unlink(missing_ok=True)
    onnx.save_model(
        model, folder / "teacher.onnx", save_as_external_data=True, location=data, size_threshold=0
    )
    return folder / "teacher.onnx"


def exported(file: Path, **more: Any) -> dict[str, Any]:
    return {"stage": "pretrained", "model": {"name": "exported", **more}, "weights": str(file)}


def student_of(stages: Any, name: str) -> dict[str, Tensor]:
    return load_file(stages.folder(name).path / "model.safetensors")


@pytest.mark.parametrize("mode", ["stored", "live"])
def test_a_program_gives_the_same_student_as_the_network_it_was_made_from(
    mode: str, stages: Any, student: Any, users_models: Callable[[str], str], tmp_path: Path
) -> None:
    torch.save(network().state_dict(), tmp_path / "teacher.pth")
    own = {"name": f"{users_models(OWN)}:build"}
    learner = student | {"mode": mode}
    stages.run(
        {
            "torch": {"stage": "pretrained", "model": own, "weights": str(tmp_path / "teacher.pth")},
            "pt2": exported(torch_program(tmp_path)),
            "onnx": exported(onnx_program(tmp_path)),
            "of_torch": learner | {"teachers": ["torch"]},
            "of_pt2": learner | {"teachers": ["pt2"]},
            "of_onnx": learner | {"teachers": ["onnx"]},
        }
    )
    expected = student_of(stages, "of_torch")
    assert stages.record("pt2").parameters == stages.record("torch").parameters
    assert stages.record("onnx").parameters is None  # not 0: they are the runtime's
    for name in ("pt2", "onnx"):
        assert stages.record(name).metrics["test/accuracy"] == stages.record("torch").metrics["test/accuracy"]
        found = student_of(stages, f"of_{name}")
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [torch_program, onnx_program])
def test_a_finished_one_needs_its_files_no_more_and_a_stranger_runs_none(
    make: Callable[[Path], Path], stages: Any, tmp_path: Path
) -> None:
    brought = tmp_path / "brought"
    brought.mkdir()
    stages.run({"teacher": exported(make(brought))})
    for file in brought.iterdir():
        file.unlink()
    folder = stages.folder("teacher").path
    loaded = load_model(folder, Trust(root=stages.root))
    inputs = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(loaded.logits(inputs), network()(loaded.prepared(inputs)))
    with pytest.raises(PlanError, match="a program from outside the storage root is not run"):
        load_model(folder, Trust())


def test_a_damaged_copy_is_noticed(stages: Any, tmp_path: Path) -> None:
    stages.run({"teacher": exported(onnx_program(tmp_path))})
    copy = stages.folder("teacher").path / "program" / "teacher.onnx.data"
    copy.write_bytes(copy.read_bytes()[:-4] + b"\0\0\0\1")
    assert "is damaged" in stages.folder("teacher").damage()


def test_its_class_bias_can_be_adjusted(stages: Any, tmp_path: Path) -> None:
    shift = {"stage": "adjust_class_bias", "model": "teacher", "classes": [0], "by": "prior", "prior": 0.5}
    stages.run({"teacher": exported(onnx_program(tmp_path)), "shifted": shift})
    found = stages.model("shifted").logits(inputs := torch.rand(5, 1, 8, 8)) - stages.model("teacher").logits(
        inputs
    )
    assert bool((found[:, 0] != 0).all())
    assert bool((found[:, 1:] == 0).all())


def test_it_is_exported_already(stages: Any, tmp_path: Path) -> None:
    stages.run({"teacher": exported(torch_program(tmp_path))})
    folder = stages.folder("teacher").path
    with pytest.raises(PlanError, match=r"is of a program that exists; it is `.*program/teacher\.pt2`"):
        export_model(folder, tmp_path / "out", Trust(root=stages.root))
    assert not (tmp_path / "out").exists()


def test_a_training_cannot_begin_from_it(stages: Any, teacher: Any, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"initial: `brought` is a program of a file"):
        stages.write({"brought": exported(torch_program(tmp_path)), "t": teacher | {"initial": "brought"}})


def test_one_of_several_outputs_and_probabilities(stages: Any, tmp_path: Path) -> None:
    file = onnx_program(tmp_path, outputs=("embedding", "probabilities"))
    stages.run({"teacher": exported(file, output="probabilities", gives="probabilities")})
    loaded = load_model(stages.folder("teacher").path, Trust(root=stages.root))
    inputs = torch.rand(5, 1, 8, 8)
    expected = network()(loaded.prepared(inputs)).log_softmax(1)
    torch.testing.assert_close(loaded.logits(inputs), expected, rtol=1e-4, atol=1e-5)


def fingerprint(stages: Any, file: Path) -> str:
    return str(stages.write({"teacher": exported(file)}).nodes["teacher"].fingerprint)


def test_its_embedding_is_stored_and_makes_logits_with_a_matrix_of_classes(
    stages: Any, student: Any, tmp_path: Path
) -> None:
    file = onnx_program(tmp_path, outputs=("logits", "embedding"))
    texts = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "texts.npy", texts.numpy())
    matrix = {"matrix": str(tmp_path / "texts.npy"), "scale": 10}
    plan = {
        "teacher": exported(file, output="logits"),
        "zero_shot": exported(file, output="embedding", classes=matrix),
        "soft": {"stage": "predict_targets", "teacher": "teacher", "outputs": ["embedding"]},
        "student": student | {"targets": "soft", "method": {"method": "embedding"}},
        "other": student | {"teachers": ["zero_shot"]},
        "live": student | {"teachers": ["teacher"], "mode": "live", "method": {"method": "relational"}},
    }
    graph = stages.write(plan)
    check_features(graph, stages.plan)
    stages.run(plan)
    targets = open_targets(stages.folder("soft").path, root=stages.root, expect=None)
    assert targets.feature_shapes == {"embedding": (16,)}
    data = stages.plan.task.load()
    inputs = data.normalisation(torch.from_numpy(np.load(stages.file)["inputs"]))
    with torch.no_grad():
        embedding = network()[:3](inputs)
    expected = 10 * F.normalize(embedding, dim=1) @ F.normalize(texts, dim=1).T
    torch.testing.assert_close(stages.logits("zero_shot"), expected, rtol=1e-4, atol=1e-4)


def test_its_identity_is_that_of_the_tensors_beside_it_too(stages: Any, tmp_path: Path) -> None:
    file = onnx_program(tmp_path)
    before = fingerprint(stages, file)
    data = tmp_path / "teacher.onnx.data"
    data.write_bytes(b"\0" * data.stat().st_size)
    assert fingerprint(stages, file) != before


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"model": {"name": "exported"}}, "name its file as `weights`"),
        ({"model": "exported", "weights": "absent.pt2"}, "the file `absent.pt2` does not exist"),
        ({"model": "exported", "weights": "plan.pth"}, "its name ends in `.pt2` (`torch.export`) or `.onnx`"),
        ({"model": "exported", "weights": "t.pt2", "ignore": ["fc.*"]}, "a program keeps all its weights"),
        ({"stage": "train", "epochs": 1, "model": "exported", "weights": "t.pt2"}, "cannot be trained"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(
    stage: Any, words: str, stages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch_program(tmp_path).rename("t.pt2")
    task = {"name": "tensors", "file": str(stages.file)}
    plan = {"name": "p", "task": task, "stages": {"t": {"stage": "pretrained", **stage}}}
    with pytest.raises((ValueError, PlanError)) as raised:
        order_stages(Plan.model_validate(plan))
    assert words in str(raised.value)


def needed(folder: Path, weights: str) -> set[str]:
    values = {"name": "p", "stages": {"t": {"stage": "pretrained", "model": "exported", "weights": weights}}}
    return set(find_needs(folder, folder / "plan.yaml", Source("plan.yaml", values=values)).required)


def test_what_lies_beside_weights_is_sent_with_them(tmp_path: Path) -> None:
    onnx_program(tmp_path, data="tensors/of_it.bin")
    assert needed(tmp_path, "teacher.onnx") == {"teacher.onnx", "tensors/of_it.bin"}
    (tmp_path / "m.safetensors.index.json").write_text(
        '{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}'
    )
    for index in (1, 2):
        (tmp_path / f"m-{index}.safetensors").write_bytes(b"x")
    expected = {"m.safetensors.index.json", "m-1.safetensors", "m-2.safetensors"}
    assert needed(tmp_path, "m.safetensors.index.json") == expected


def test_tensors_outside_of_the_folder_are_refused(tmp_path: Path, stages: Any) -> None:
    file = onnx_program(tmp_path, data="aa/t.bin")
    file.write_bytes(file.read_bytes().replace(b"aa/t.bin", b"../t.bin"))
    with pytest.raises(PlanError, match="does not lie in its folder"):
        order_stages(
            Plan.model_validate(
                {
                    "name": "p",
                    "task": {"name": "tensors", "file": str(stages.file)},
                    "stages": {"t": exported(file)},
                }
            )
        )
