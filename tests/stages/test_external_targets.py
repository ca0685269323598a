"""Soft targets from a file: what a student learns is what the file says, and a file that does not fit is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_tensors

from raydistill.errors import PlanError, StoreError
from raydistill.execution.local_backend import LocalBackend
from raydistill.execution.survey import survey_plan
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan
from raydistill.stages.verify_targets import verify_targets
from raydistill.targets.reader import open_targets
from raydistill.tasks.hashing import text_id

HINTON = {"method": "hinton", "temperature": 2.0}


def predictions(stages: Any) -> dict[str, Any]:
    """Random logits for every sample of the file, in another order."""
    draw = np.random.default_rng(1)
    ids = draw.permutation(np.load(stages.file)["ids"])
    return {"ids": ids, "logits": draw.normal(size=(len(ids), 3), scale=3).astype(np.float32)}


def external(file: Path, **options: Any) -> dict[str, Any]:
    return {"targets": {"stage": "external_targets", "file": str(file), **options}}


def stored(stages: Any) -> tuple[np.ndarray, np.ndarray]:
    targets = open_targets(stages.folder("targets").path, root=stages.root, expect=None)
    return targets.ids.numpy(), targets.read(torch.arange(len(targets.ids))).logits[:, 0].numpy()


def expected(given: dict[str, Any], ids: np.ndarray) -> np.ndarray:
    row = {number: index for index, number in enumerate(given["ids"].tolist())}
    found: np.ndarray = given["logits"][[row[number] for number in ids.tolist()]]
    return found


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    found: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return found


def survey(stages: Any, plan: dict[str, Any], level: str = "error") -> list[str]:
    graph = stages.write(plan)
    found = survey_plan(graph, list(graph.nodes.values()), LocalBackend(), stages.plan.task, stages.root)
    return [str(remark) for remark in found.remarks if remark.level == level]


@pytest.mark.parametrize(
    "form", ["npz", "compressed", "columns first", "npy", "txt", "safetensors", "parquet"]
)
def test_each_sample_has_its_row(form: str, stages: Any, tmp_path: Path) -> None:
    given, options = predictions(stages), {}
    file = tmp_path / f"given.{form if form in ('safetensors', 'parquet') else 'npz'}"
    if form == "npz":
        np.savez(file, **given)
    elif form == "compressed":
        np.savez_compressed(file, **given)
    elif form == "columns first":
        np.savez(file, ids=given["ids"], logits=np.asfortranarray(given["logits"]))
    elif form == "safetensors":
        save_file(given, file)
    elif form == "parquet":
        pq.write_table(pa.table({"ids": given["ids"], "logits": list(given["logits"])}), file)
    else:
        file, beside = tmp_path / "given.npy", tmp_path / f"ids.{form}"
        np.save(file, given["logits"])
        np.save(beside, given["ids"]) if form == "npy" else np.savetxt(beside, given["ids"], fmt="%d")
        options = {"ids": str(beside)}
    stages.run(external(file, **options))
    ids, logits = stored(stages)
    np.testing.assert_allclose(logits, expected(given, ids), atol=2**-7)
    assert not list(stages.folder("targets").path.glob("arranged*"))


def test_the_student_is_the_one_of_the_teacher_that_wrote_the_file(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], tmp_path: Path
) -> None:
    learner = student | {"targets": "targets", "method": HINTON}
    predicted = {"targets": {"stage": "predict_targets", "teacher": "teacher"}}
    stages.run({"teacher": teacher, **predicted, "student": learner})
    ours = load_file(stages.folder("student").path / "model.safetensors")
    ids = np.load(stages.file)["ids"]
    file = tmp_path / "given.npz"
    order, _ = stored(stages)
    asked = np.array([np.flatnonzero(ids == number)[0] for number in order])
    inputs = torch.from_numpy(np.load(stages.file)["inputs"])[asked]
    np.savez(file, ids=order, logits=stages.model("teacher").logits(inputs).numpy())
    stages.run({**external(file), "student": learner})
    theirs = load_file(stages.folder("student").path / "model.safetensors")
    for name, tensor in ours.items():
        assert torch.equal(theirs[name], tensor)


def test_stopping_and_resuming_equals_not_stopping(
    stages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raydistill.stages.external_targets.ROW_ELEMENTS", 3 * 7)  # seven rows at a time
    given, file = predictions(stages), tmp_path / "p.npz"
    np.savez(file, **given)
    stages.write(external(file))
    assert stages.attempt("targets", iter([False] * 3 + [True]).__next__).status == "stopped"
    assert stages.attempt("targets").status == "done"
    ids, logits = stored(stages)
    np.testing.assert_allclose(centred(logits), centred(expected(given, ids)), atol=2e-2)
    whole = stages.elsewhere("whole").run(external(file))
    assert stages.folder("targets").done_record().payload == whole.folder("targets").done_record().payload


def centred(logits: np.ndarray) -> np.ndarray:
    found: np.ndarray = logits - logits.max(axis=1, keepdims=True)
    return found


def test_bfloat16_is_read_as_it_is(stages: Any, tmp_path: Path) -> None:
    given = predictions(stages)
    logits = torch.from_numpy(given["logits"]).bfloat16()
    save_tensors({"ids": torch.from_numpy(given["ids"]), "logits": logits}, tmp_path / "a.safetensors")
    stages.run(external(tmp_path / "a.safetensors"))
    ids, found = stored(stages)
    rows = expected({"ids": given["ids"], "logits": logits.float().numpy()}, ids)
    np.testing.assert_allclose(found, rows, atol=2**-7)


@pytest.mark.parametrize("gives", ["probabilities", "log_probabilities"])
def test_probabilities_teach_what_their_logits_would(gives: str, stages: Any, tmp_path: Path) -> None:
    given = predictions(stages)
    shares = softmax(given["logits"])
    shares[0] = [1, 0, 0]
    with np.errstate(divide="ignore"):
        np.savez(
            tmp_path / "p.npz",
            ids=given["ids"],
            **{gives: shares if gives == "probabilities" else np.log(shares)},
        )
    stages.run(external(tmp_path / "p.npz"))
    ids, logits = stored(stages)
    np.testing.assert_allclose(
        softmax(logits), expected({"ids": given["ids"], "logits": shares}, ids), atol=5e-3
    )


def test_the_most_probable_classes_leave_the_rest_to_the_others(stages: Any, tmp_path: Path) -> None:
    ids = np.load(stages.file)["ids"]
    indices = np.tile(np.array([[2]]), (len(ids), 1))
    np.savez(tmp_path / "k.npz", ids=ids, probabilities=np.full((len(ids), 1), 0.6), indices=indices)
    stages.run(external(tmp_path / "k.npz", indices="indices"))
    _, logits = stored(stages)
    np.testing.assert_allclose(softmax(logits), np.tile([0.2, 0.2, 0.6], (len(logits), 1)), atol=1e-3)


@pytest.mark.parametrize("depth", ["path", "below the split", "file name", "whole path"])
def test_pictures_are_known_by_their_paths_or_file_names(depth: str, stages: Any, tmp_path: Path) -> None:
    draw, paths = np.random.default_rng(0), []
    for index in range(24):
        part, label = "val" if index < 6 else "train", "ab"[index % 2]
        path = tmp_path / "pictures" / part / label / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(255, size=(8, 8, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    names = {
        "path": [str(path.relative_to(tmp_path / "pictures")) for path in paths],
        "below the split": [f"{path.parent.name}/{path.name}" for path in paths],
        "file name": [path.name for path in paths],
        "whole path": [str(path) for path in paths],
    }[depth]
    logits = draw.normal(size=(24, 2))
    np.savez(tmp_path / "a.npz", ids=np.array([*names, "other.png"]), logits=np.vstack([logits, [[0, 0]]]))
    task = {"name": "image_folder", "folder": str(tmp_path / "pictures"), "image_size": 8, "workers": 0}
    plan = {"name": "p", "task": task, "stages": external(tmp_path / "a.npz")}
    stages.plan = Plan.model_validate(plan)
    stages.graph = order_stages(stages.plan)
    assert stages.attempt("targets").status == "done"
    ids, found = stored(stages)
    assert stages.record("targets").metrics["targets/unknown"] == 1
    row = {text_id(str(path.relative_to(tmp_path / "pictures"))): index for index, path in enumerate(paths)}
    np.testing.assert_allclose(found, logits[[row[number] for number in ids.tolist()]], atol=2**-7)


def test_targets_of_several_files_combine_like_teachers(stages: Any, student: Any, tmp_path: Path) -> None:
    given = predictions(stages)
    np.savez(tmp_path / "a.npz", **given)
    np.savez(tmp_path / "b.npz", ids=given["ids"], logits=-given["logits"])
    a, b = external(tmp_path / "a.npz")["targets"], external(tmp_path / "b.npz")["targets"]
    both = {"stage": "combine_targets", "targets": ["a", "b"]}
    stages.run({"a": a, "b": b, "both": both, "student": student | {"targets": "both", "method": HINTON}})


def test_verify_says_that_no_model_can_compute_them_again(stages: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **predictions(stages))
    stages.run(external(tmp_path / "a.npz"))
    with pytest.raises(StoreError, match="came from a file: no model here can compute them again"):
        verify_targets(stages.folder("targets").path, stages.root, 5)


def test_another_file_is_another_stage_and_its_place_is_not(stages: Any, tmp_path: Path) -> None:
    given = predictions(stages)
    for name, logits in (("a", given["logits"]), ("b", given["logits"]), ("c", -given["logits"])):
        np.save(tmp_path / f"{name}.npy", logits)
    np.save(tmp_path / "ids.npy", given["ids"])
    ids = str(tmp_path / "ids.npy")
    a, b, c = (
        stages.write(external(tmp_path / f"{name}.npy", ids=ids)).nodes["targets"].fingerprint
        for name in "abc"
    )
    assert a == b != c


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ids": np.arange(5000, 5150)}, "(100%"),
        ({"keep": 60}, "has no row for"),
        ({"double": True}, "stand more than once"),
        ({"logits": np.zeros((150, 4))}, "there are 3 classes"),
        ({"nan": True}, "not finite"),
        ({"logits": np.full((150, 3), 1 / 3)}, "look like probabilities"),
        ({"truncated": True}, "damaged"),
        ({"flipped": True}, "cannot be read"),
    ],
)
def test_a_file_that_does_not_fit_is_named_before_work(
    change: dict[str, Any], said: str, stages: Any, tmp_path: Path
) -> None:
    given, file = predictions(stages), tmp_path / "bad.npz"
    given |= {key: change[key] for key in ("ids", "logits") if key in change}
    if "keep" in change:
        given = {key: value[: change["keep"]] for key, value in given.items()}
    if "double" in change:
        given = {key: np.concatenate([value, value]) for key, value in given.items()}
    if "nan" in change:
        given["logits"][7, 1] = np.nan
    np.savez(file, **given)
    if "truncated" in change:
        file.write_bytes(file.read_bytes()[:-200])
    if "flipped" in change:
        content = bytearray(file.read_bytes())
        content[content.index(given["logits"].tobytes()[:16])] ^= 1
        file.write_bytes(content)
    (error,) = survey(stages, external(file))
    assert said in error
    assert "bad.npz" in error
    assert "\n" not in error
    assert stages.attempt("targets").status == "failed"


def test_a_sound_file_passes_the_survey(stages: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **predictions(stages))
    assert survey(stages, external(tmp_path / "a.npz")) == []


def names_of(stages: Any) -> list[str]:
    stages.write({"teacher": {"stage": "train", "epochs": 1, "model": {"name": "mlp"}}})
    return list(stages.plan.task.class_names)


def test_classes_in_another_order_are_asked_about(stages: Any, tmp_path: Path) -> None:
    arrays = np.load(stages.file)
    right = 5 * np.eye(3)[arrays["labels"]]
    for name, logits in (("right", right), ("rolled", np.roll(right, 1, axis=1))):
        np.savez(tmp_path / f"{name}.npz", ids=arrays["ids"], logits=logits)
    assert survey(stages, external(tmp_path / "right.npz"), "warning") == []
    (warning,) = survey(stages, external(tmp_path / "rolled.npz"), "warning")
    assert "agrees with 0.0% of the labels" in warning


def test_columns_are_put_in_the_task_s_order_by_their_names(stages: Any, tmp_path: Path) -> None:
    given = predictions(stages)
    np.savez(tmp_path / "a.npz", **given)
    names = names_of(stages)
    stages.run(external(tmp_path / "a.npz", classes=[names[2], names[0], names[1]]))
    ids, logits = stored(stages)
    np.testing.assert_allclose(logits, expected(given, ids)[:, [1, 2, 0]], atol=2**-7)


def test_classes_of_the_teacher_sum_to_the_task_s_at_the_temperature(stages: Any, tmp_path: Path) -> None:
    ids = np.load(stages.file)["ids"]
    logits = np.random.default_rng(2).normal(size=(len(ids), 5), scale=3).astype(np.float32)
    np.savez(tmp_path / "a.npz", ids=ids, logits=logits)
    one, two, three = names_of(stages)
    classes = {"names": list("abcde"), "map": {one: ["d"], two: ["a", "c"], three: ["b"]}, "temperature": 2.0}
    stages.run(external(tmp_path / "a.npz", classes=classes))
    order, found = stored(stages)
    rows = expected({"ids": ids, "logits": logits}, order)
    for row, ours in zip(softmax(rows / 2), softmax(found / 2), strict=True):
        sums = np.array([row[3], row[0] + row[2], row[1]])
        np.testing.assert_allclose(ours, sums / sums.sum(), atol=5e-3)
    dropped = softmax(rows / 2)[:, 4].mean()
    assert stages.record("targets").metrics["targets/unmapped"] == pytest.approx(dropped, rel=1e-4)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (["x", "x", "y"], "`x` 2 times"),
        (["x", "y", "z"], "are left empty"),
    ],
)
def test_a_bad_map_is_said_before_anything_is_loaded(
    classes: Any, said: str, stages: Any, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **predictions(stages))
    with pytest.raises(PlanError, match=said):
        stages.write(external(tmp_path / "a.npz", classes=classes))


def test_teachers_of_different_classes_teach_each_what_it_knows(
    stages: Any, student: Any, tmp_path: Path
) -> None:
    one, two, _ = names_of(stages)
    ids = np.load(stages.file)["ids"]
    whole = softmax(np.random.default_rng(4).normal(size=(len(ids), 3), scale=2))
    parts = {
        name: (np.log(np.stack([whole[:, label], 1 - whole[:, label]], axis=1)), [own, "rest"])
        for label, (name, own) in enumerate((("a", one), ("b", two)))
    }
    plan = {}
    for name, (logs, names) in parts.items():
        np.savez(tmp_path / f"{name}.npz", ids=ids, logits=logs.astype(np.float32))
        classes = {"names": names, "others": ["rest"]}
        plan[name] = {"stage": "external_targets", "file": str(tmp_path / f"{name}.npz"), "classes": classes}
    plan["targets"] = {"stage": "combine_targets", "targets": ["a", "b"], "rule": "kl_fusion"}
    stages.run({**plan, "student": student | {"targets": "targets", "method": HINTON}})
    order, logits = stored(stages)
    np.testing.assert_allclose(softmax(logits), expected({"ids": ids, "logits": whole}, order), atol=4e-3)
    metrics = stages.record("targets").metrics
    assert metrics["targets/kl/0"] == pytest.approx(0, abs=1e-4)
    assert metrics["targets/kl/1"] == pytest.approx(0, abs=1e-4)
    mean = {**plan, "targets": {**plan["targets"], "rule": "arithmetic"}}
    stages.run(mean)
    targets = open_targets(stages.folder("targets").path, root=stages.root, expect=None)
    blurred = targets.read(torch.arange(len(order))).logits.softmax(dim=2).mean(dim=1).numpy()
    assert abs(blurred - expected({"ids": ids, "logits": whole}, order)).max() > 0.05


@pytest.mark.parametrize("weights", ["entropy", [1.0, 0.0]])
def test_a_fusion_takes_no_weights_that_it_has_no_meaning_for(weights: Any, stages: Any) -> None:
    combination = {"stage": "combine_targets", "targets": ["a", "b"], "rule": "kl_fusion", "weights": weights}
    with pytest.raises(ValueError, match="a fusion weighs each teacher alike"):
        stages.write({"targets": combination})
