"""`predict_targets: {outputs: [logits, embedding]}`, and the methods that read an embedding from the store."""

from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor, nn

from raydistill.cli import main
from raydistill.errors import PlanError
from raydistill.kinds.augmentations import FlipConfig, ShiftConfig
from raydistill.kinds.relation_methods import ProjectedConfig
from raydistill.methods.projected import Projected
from raydistill.models.build import build_model
from raydistill.models.taps import Tapped
from raydistill.stages.export_targets import export_targets
from raydistill.stages.model_probe import check_features
from raydistill.stages.verify_targets import verify_targets
from raydistill.targets.reader import Targets, open_targets
from raydistill.targets.verify import compare_features
from raydistill.tasks.array_files import array_names, open_array
from raydistill.training.augment import augment
from raydistill.training.data import Batch
from raydistill.training.method import Features, MethodContext, StoredFeatures

SHIFTED = {"augment": [{"name": "shift", "pixels": 1}, {"name": "flip"}], "view_seed": 8}
EMBEDDING = {"method": "embedding"}


def open_store(stages: Any, name: str) -> Targets:
    return open_targets(stages.folder(name).path, root=stages.root, expect=None)


def inputs_of(stages: Any, ids: Tensor) -> Tensor:
    arrays = np.load(stages.file)
    return torch.from_numpy(np.stack([arrays["inputs"][arrays["ids"] == i][0] for i in ids.tolist()]))


def soft(**options: Any) -> dict[str, Any]:
    return {"stage": "predict_targets", "teacher": "teacher", "batch_size": 11, **options}


def weights_apart(stages: Any, one: str, other: str) -> float:
    """The largest difference of two models' weights, measured by how far the first moved them at all."""
    here, there = (load_file(stages.folder(name).path / "model.safetensors") for name in (one, other))
    return max((here[key].double() - there[key].double()).abs().max().item() for key in here)


def test_features_are_those_of_the_views_that_the_teacher_saw(stages: Any, teacher: dict[str, Any]) -> None:
    plan = {
        "teacher": teacher,
        "soft": soft(outputs=["logits", "embedding", "hidden1:input"], views=2, **SHIFTED),
    }
    plan["alone"] = soft(outputs=["embedding"], views=2, **SHIFTED)
    plan["plain"] = soft(views=2, **SHIFTED)
    stages.run(plan)
    both, alone, plain = (open_store(stages, name) for name in ("soft", "alone", "plain"))
    model, rows = stages.model("teacher"), torch.arange(len(both.ids))
    tapped = Tapped(model.model, ["embedding"])
    inputs = inputs_of(stages, both.ids)
    for view in range(2):
        seen = augment(inputs, both.ids, [ShiftConfig(pixels=1), FlipConfig()], 8, view)
        with torch.no_grad():
            expected = tapped(model.normalisation(seen)).features["embedding"]
        read = both.read(rows, view, features=["embedding"])
        torch.testing.assert_close(read.features["embedding"], expected, rtol=2**-10, atol=1e-4)
        assert torch.equal(
            read.features["embedding"], alone.read(rows, view, features=["embedding"]).features["embedding"]
        )
        assert torch.equal(read.logits, plain.read(rows, view).logits)
    assert "targets/errors" not in stages.record("alone").metrics
    assert stages.record("soft").metrics == stages.record("plain").metrics


@pytest.mark.parametrize("method", ["relational", "triplet"])
def test_a_student_of_stored_features_is_that_of_the_live_teacher(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], method: str
) -> None:
    """Up to float16. These methods draw no numbers, as a projector does."""
    options = {"methods": [{"method": "labels"}, {"method": method}], "epochs": 2, "batch_size": 25}
    slow = {"optimizer": {"name": "sgd", "learning_rate": 1e-3}}
    live = student | options | slow | {"teachers": ["teacher"], "mode": "live"}
    plan = {"teacher": teacher, "live": live, "other": live | {"seed": 5}}
    plan["stored"] = live | {"mode": "stored"}
    plan["soft"] = soft(outputs=["logits", "embedding"])
    plan["named"] = student | options | slow | {"targets": "soft"}
    stages.run(plan)
    assert stages.graph.nodes["stored"].config.targets == "teacher.targets"
    assert stages.graph.nodes["teacher.targets"].config.outputs == ("embedding",)
    assert weights_apart(stages, "live", "stored") < 5e-3 * weights_apart(stages, "live", "other")
    assert weights_apart(stages, "stored", "named") < 5e-3 * weights_apart(stages, "live", "other")


@pytest.mark.parametrize("kind", ["smooth_l1", "squared", "cosine"])
@pytest.mark.parametrize("normalize", ["none", "unit", "layer_norm"])
def test_the_loss_of_what_is_stored_is_a_slow_loop_over_the_live_embedding(
    stages: Any, teacher: dict[str, Any], kind: str, normalize: str
) -> None:
    stages.run({"teacher": teacher, "soft": soft(outputs=["embedding"])})
    targets = open_store(stages, "soft")
    config = ProjectedConfig(distance=kind, normalize=normalize)
    student = build_model("mlp", {"widths": [6]}, (1, 8, 8), 3)
    context = MethodContext(
        student=Features(student, (1, 8, 8)),
        teacher=StoredFeatures(nn.Module(), (1, 8, 8), known=targets.feature_shapes),
    )
    method = Projected(config, context)
    rows, seen = torch.arange(9), inputs_of(stages, targets.ids[:9])
    batch = Batch(seen, torch.zeros(9).long(), targets.ids[:9], rows)
    own = Tapped(student, ["embedding"])(seen)
    loss = method.losses(own, targets.read(rows, features=["embedding"]), batch)["embedding"]
    live = Tapped(stages.model("teacher").model, ["embedding"])(stages.model("teacher").normalisation(seen))
    total = 0.0
    for mine, aim in zip(own.features["embedding"], live.features["embedding"], strict=True):
        aim = aim.double()
        if normalize == "unit":
            aim = aim / aim.square().sum().sqrt()
        if normalize == "layer_norm":
            aim = (aim - aim.mean()) / (aim.var(unbiased=False) + 1e-5).sqrt()
        made = method.projector.weight.double() @ mine.double() + method.projector.bias.double()
        apart = made - aim
        if kind == "cosine":
            total += 1 - (made @ aim / made.norm() / aim.norm()).item()
        elif kind == "squared":
            total += apart.square().mean().item()
        else:
            total += torch.where(apart.abs() < 1, apart.square() / 2, apart.abs() - 0.5).mean().item()
    assert loss.item() == pytest.approx(total / 9, rel=1e-3)


def test_an_embedding_teaches_without_labels_and_logits(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    """On views that are replayed: each epoch's loss is that of a slow loop over what is stored."""
    hidden = {"transfer": {"labelled": False}}
    blind = (
        student | hidden | {"teachers": ["teacher"], "method": EMBEDDING, "views": 2, **SHIFTED, "epochs": 1}
    )
    still = {"batch_size": 1000, "optimizer": {"name": "sgd", "learning_rate": 1e-9}}
    probe = {
        "stage": "train",
        "model": student["student"],
        "initial": "blind",
        "freeze": ["hidden*"],
        "epochs": 1,
    }
    stages.run({"teacher": teacher, "blind": blind | still, "probe": probe})
    node = stages.graph.nodes["teacher.targets"]
    assert node.config.outputs == ("embedding",)
    targets = open_store(stages, "teacher.targets")
    stored = targets.read(targets.rows_of(targets.ids), 0, features=["embedding"]).features["embedding"]
    assert stored.shape == (len(targets.ids), 16)
    lines = [line for line in stages.metrics("blind") if "train/loss/embedding" in line]
    assert 0 < lines[0]["train/loss/embedding"] < 2
    assert stages.record("probe").status == "done"


def test_identity_is_that_of_before_where_only_logits_are_stored(
    stages: Any, teacher: dict[str, Any]
) -> None:
    graph = stages.write({"teacher": teacher, "plain": soft(), "named": soft(outputs=["logits"])})
    assert graph.nodes["plain"].fingerprint == graph.nodes["named"].fingerprint
    assert "outputs" not in graph.nodes["plain"].identity["config"]


@pytest.mark.parametrize(
    ("soft_options", "options", "words"),
    [
        (
            {"outputs": ["embedding"]},
            {"method": "hinton"},
            "`soft` stores no logits, which are looked at; add `logits`",
        ),
        (
            {},
            EMBEDDING,
            "`embedding` looks at `embedding` of the teacher, which `soft` does not store; write `outputs:",
        ),
        ({"outputs": ["hidden1"]}, EMBEDDING, "which `soft` does not store"),
        ({"outputs": ["embedding", "embedding"]}, EMBEDDING, "an output is named twice"),
        ({"outputs": ["embedding"], "top_k": 2}, EMBEDDING, "`top_k` is about logits"),
        ({"outputs": ["logits", "embedding"]}, {"method": "fsp"}, "which are not stored; set `mode: live`"),
    ],
)
def test_what_is_not_stored_is_said_before_anything_runs(
    stages: Any,
    teacher: dict[str, Any],
    student: dict[str, Any],
    soft_options: dict[str, Any],
    options: dict[str, Any],
    words: str,
) -> None:
    plan = {
        "teacher": teacher,
        "soft": soft(**soft_options),
        "student": student | {"targets": "soft", "method": options},
    }
    with pytest.raises((PlanError, ValueError)) as caught:
        stages.write(plan)
    assert words in str(caught.value)


@pytest.mark.parametrize("mode", ["stored", "live"])
def test_replicas_are_several_teachers_whose_features_nobody_compares(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], mode: str
) -> None:
    taught = student | {"teachers": ["teacher"], "method": EMBEDDING, "mode": mode}
    with pytest.raises(
        PlanError, match=r"features of one teacher, and these are 2; name one, such as `teacher\.0`"
    ):
        stages.write({"teacher": teacher | {"replicas": 2}, "student": taught})
    stages.write({"teacher": teacher | {"replicas": 2}, "student": taught | {"teachers": ["teacher.1"]}})


def test_an_embedding_goes_beside_the_most_probable_classes(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    both = [{"method": "hinton", "temperature": 2.0}, EMBEDDING]
    plan = {"teacher": teacher, "soft": soft(outputs=["logits", "embedding"], top_k=2)}
    stages.run(plan | {"student": student | {"targets": "soft", "methods": both}})
    assert open_store(stages, "soft").top_k is not None
    assert stages.metrics("student")[0]["train/loss/embedding/embedding"] > 0


def test_targets_without_logits_cannot_be_combined(stages: Any, teacher: dict[str, Any]) -> None:
    plan = {"teacher": teacher, "soft": soft(outputs=["embedding"]), "hard": soft()}
    with pytest.raises(PlanError, match="`soft` stores no logits"):
        stages.write(plan | {"mean": {"stage": "combine_targets", "targets": ["hard", "soft"]}})
    committee = {"specialists": ["specialist"]}
    taught = {
        "stage": "distill",
        "teachers": ["teacher"],
        "student": {"name": "mlp"},
        "epochs": 1,
        "method": EMBEDDING,
    }
    with pytest.raises(ValueError, match="a committee answers with logits alone"):
        stages.write(plan | {"student": taught | {"committee": committee}})


@pytest.mark.parametrize("ending", ["npz", "safetensors", "parquet"])
def test_features_are_exported_beside_logits_and_in_their_place(
    stages: Any, teacher: dict[str, Any], tmp_path: Any, ending: str
) -> None:
    stages.run(
        {
            "teacher": teacher,
            "soft": soft(outputs=["logits", "embedding"]),
            "alone": soft(outputs=["embedding"]),
        }
    )
    for name in ("soft", "alone"):
        file = export_targets(stages.folder(name).path, tmp_path / f"{name}.{ending}", stages.root)
        assert ("logits" in array_names(file)) == (name == "soft")
        targets = open_store(stages, name)
        expected = targets.features(["embedding"], torch.arange(len(targets.ids)))["embedding"]
        assert np.array_equal(open_array(file, "embedding"), expected.numpy())


def test_stored_features_are_computed_again(stages: Any, teacher: dict[str, Any]) -> None:
    outputs = {"both": ["logits", "embedding", "hidden1"], "alone": ["embedding"]}
    plan = {name: soft(outputs=names, views=2, **SHIFTED) for name, names in outputs.items()}
    stages.run({"teacher": teacher, "other": teacher | {"seed": 3}} | plan)
    for name in outputs:
        folder = stages.folder(name).path
        results = verify_targets(folder, stages.root, rows=30)
        assert len(results) == len(outputs[name])
        assert all(each.passed for each in results.values())
        assert results[f"{folder.name} embedding"].worst_divergence < 2**-10
    targets, other = open_store(stages, "alone"), stages.model("other").model
    rows = torch.arange(20)
    with torch.no_grad():
        strange = Tapped(other, ["embedding"])(inputs_of(stages, targets.ids[rows])).features["embedding"]
    assert not compare_features(targets, "embedding", rows, 0, strange).passed
    honest = targets.features(["embedding"], rows)["embedding"]
    honest[7, 2] += 0.01 * honest[7].abs().max()
    found = compare_features(targets, "embedding", rows, 0, honest)
    assert (found.passed, found.worst_sample_id) == (False, int(targets.ids[7]))


@pytest.mark.parametrize("ending", ["npz", "safetensors", "parquet", "npy"])
def test_an_embedding_from_a_file_teaches_as_the_teacher_that_gave_it(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], tmp_path: Any, ending: str
) -> None:
    blind = student | {"transfer": {"labelled": False}, "method": EMBEDDING}
    plan = {"teacher": teacher, "soft": soft(outputs=["embedding"]), "own": blind | {"targets": "soft"}}
    stages.run(plan)
    suffix = "npz" if ending == "npy" else ending
    file = export_targets(stages.folder("soft").path, tmp_path / f"soft.{suffix}", stages.root)
    outside = {"stage": "external_targets", "file": str(file), "gives": "embedding"}
    if ending == "npy":
        for key in ("ids", "embedding"):
            np.save(tmp_path / f"{key}.npy", np.load(file)[key])
        outside |= {"file": str(tmp_path / "embedding.npy"), "ids": str(tmp_path / "ids.npy")}
    stages.run(plan | {"file": outside, "taught": blind | {"targets": "file"}})
    rows = torch.arange(10)
    mine, theirs = (
        open_store(stages, name).features(["embedding"], rows)["embedding"] for name in ("soft", "file")
    )
    assert torch.equal(mine, theirs)
    assert weights_apart(stages, "own", "taught") == 0
    assert "targets/errors" not in stages.record("file").metrics


def test_an_embedding_from_a_file_has_no_classes(stages: Any, student: dict[str, Any], tmp_path: Any) -> None:
    ids = np.load(stages.file)["ids"]
    np.savez(tmp_path / "wide.npz", ids=ids, embedding=np.full((150, 7), 0.5))
    outside = {"stage": "external_targets", "file": str(tmp_path / "wide.npz"), "gives": "embedding"}
    with pytest.raises(ValueError, match="an embedding has no classes; leave `classes` out"):
        stages.write({"soft": outside | {"classes": ["a", "b", "c"]}})
    with pytest.raises(PlanError, match="`soft` stores no logits"):
        stages.write({"soft": outside, "student": student | {"targets": "soft"}})
    method = EMBEDDING | {"teacher_feature": "hidden1"}
    with pytest.raises(PlanError, match="looks at `hidden1` of the teacher, which `soft` does not store"):
        stages.write({"soft": outside, "student": student | {"targets": "soft", "method": method}})
    blind = student | {"targets": "soft", "method": EMBEDDING | {"student_feature": "stage9"}}
    graph = stages.write({"soft": outside, "student": blind})
    with pytest.raises(PlanError, match="no feature `stage9`"):
        check_features(graph, stages.plan)


PLAN = """\
name: sizes
task: {name: mnist}
stages:
  teacher: {stage: train, model: {name: cnn, widths: [8, 16]}, epochs: 2}
  soft: {stage: predict_targets, teacher: teacher, outputs: [logits, embedding]}
  student:
    {stage: distill, student: {name: cnn, widths: [4, 8]}, targets: soft, method: {method: embedding}, epochs: 2}
"""


def test_a_dry_run_tells_what_a_sample_takes_and_whether_the_teacher_has_it(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def dry(text: str) -> Any:
        (tmp_path / "plan.yaml").write_text(text)
        arguments = ["run", str(tmp_path / "plan.yaml"), "--dry-run", "--runs", str(tmp_path / "runs")]
        return CliRunner().invoke(main, arguments)

    assert dry(PLAN).exit_code == 0
    # 10 logits and the two halves of their level, 16 maps of 7 x 7, and two rows' ids and views.
    told = (
        "note: `soft` stores 1,616 bytes per sample: `logits` 24, `embedding` 1,568, and 12 each for its id"
    )
    assert told in caplog.text
    wrong = dry(
        PLAN.replace("[logits, embedding]", "[logits, embeding]").replace(
            "targets: soft", "teachers: [teacher]"
        )
    )
    assert wrong.exit_code == 2
    assert "stages.soft.outputs: " in wrong.output
    assert "has no feature `embeding`; did you mean `embedding`?" in wrong.output
