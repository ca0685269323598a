"""Samples without a label: they are taught by teachers alone, and judge nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
import torch.nn.functional as F

from raydistill.errors import PlanError
from raydistill.methods.losses import hard_loss
from raydistill.tasks.labels import UNLABELLED
from raydistill.tasks.survey import survey_task
from raydistill.tasks.tensors import Tensors
from raydistill.training.data import Batch

HINTON = {"method": "hinton", "temperature": 2.0}


def without_labels(file: Path, part: float = 0.5) -> np.ndarray:
    """Take the labels of the last rows of a file away; returns which rows have one."""
    arrays = dict(np.load(file))
    is_labelled = np.arange(len(arrays["labels"])) < (1 - part) * len(arrays["labels"])
    arrays["labels"] = np.where(is_labelled, arrays["labels"], UNLABELLED)
    np.savez(file, **arrays)
    return is_labelled


def batch_of(labels: torch.Tensor, **values: Any) -> Batch:
    rows = torch.arange(len(labels))
    return Batch(torch.zeros(len(labels), 1), labels, rows, rows, **values)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_hard_loss_is_the_mean_over_the_labelled(smoothing: float, mixed: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 3, requires_grad=True)
    labels, partners = torch.tensor([0, -1, 2, 1, -1, 1]), torch.tensor([1, 1, -1, 0, -1, 2])
    weights = torch.rand(6)
    has_label = (labels >= 0) & (partners >= 0) if mixed else labels >= 0
    terms = []
    for row in has_label.nonzero()[:, 0].tolist():
        logs = F.log_softmax(logits[row].double(), dim=0)
        target = torch.zeros(3).double()
        for label, weight in (
            ((labels, weights[row]), (partners, 1 - weights[row])) if mixed else ((labels, 1),)
        ):
            target[label[row]] += weight
        terms.append(-((1 - smoothing) * target + smoothing / 3) @ logs)
    expected = torch.stack(terms).mean()
    counts = has_label * (6 / has_label.sum())
    mixture = {"partner_labels": partners, "weights": weights} if mixed else {}
    loss = hard_loss(logits, batch_of(labels, label_weights=counts, **mixture), smoothing)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    own = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    slow = torch.autograd.grad(expected, logits)[0]
    torch.testing.assert_close(own, slow)
    assert not own[~has_label].any()


def test_a_batch_without_labels_has_a_loss_and_gradients_of_zero() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    loss = hard_loss(logits, batch_of(torch.full((4,), UNLABELLED), label_weights=torch.zeros(4)), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_baseline_is_that_of_the_labelled_samples_alone(stages: Any, teacher: dict[str, Any]) -> None:
    is_labelled = without_labels(stages.file)
    stages.run({"teacher": teacher})
    arrays = np.load(stages.file)
    fewer = stages.elsewhere("fewer")
    fewer.file = stages.file.with_name("fewer.npz")
    np.savez(fewer.file, **{name: arrays[name][is_labelled] for name in arrays})
    fewer.run({"teacher": teacher})
    assert fewer.record("teacher").metrics == stages.record("teacher").metrics
    assert torch.equal(fewer.logits("teacher"), stages.logits("teacher")[torch.from_numpy(is_labelled)])


@pytest.mark.parametrize("mode", ["stored", "live"])
def test_a_student_hears_its_teacher_on_what_has_no_label(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], mode: str
) -> None:
    without_labels(stages.file)
    taught = student | {"teachers": ["teacher"], "mode": mode, "method": HINTON}
    stages.run(
        {
            "teacher": teacher,
            "all": taught,
            "labelled": taught | {"transfer": {"unlabelled": False}},
            "soft": taught | {"method": HINTON | {"hard_weight": 0.0}},
            "unseen": taught | {"method": HINTON | {"hard_weight": 0.0}, "transfer": {"labelled": False}},
        }
    )
    assert not torch.equal(stages.logits("all"), stages.logits("labelled"))
    assert torch.equal(stages.logits("soft"), stages.logits("unseen"))
    lines = [line for line in stages.metrics("all") if "train/accuracy" in line]
    assert all(0 < line["train/accuracy"] <= 1 + 1e-6 for line in lines)
    data = Tensors(file=stages.file).load()
    assert stages.record("all").metrics["test/accuracy"] > 0
    assert min(data.validation.labels.min(), data.test.labels.min()) >= 0
    if mode == "stored":
        rows = stages.record("teacher.targets").metrics["targets/rows"]
        assert rows == len(data.train)
        assert stages.record("teacher.targets").metrics["targets/errors"] <= int(
            (data.train.labels >= 0).sum()
        )


def test_two_halves_of_a_batch_have_the_mean_of_the_whole(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    """What two workers make of their parts, added up by their shares, is what one makes of the batch."""
    from raydistill.kinds.augmentations import AugmentationOptions
    from raydistill.kinds.training import TransferConfig
    from raydistill.training.data import Views, build_transfer_set, split_batch

    without_labels(stages.file)
    data = Tensors(file=stages.file).load()
    mixing = [AugmentationOptions.choose({"name": name, "alpha": 0.5}) for name in ("mixup", "cutmix")]
    for steps in ((), *((step,) for step in mixing), tuple(mixing)):
        transfer = build_transfer_set(data, TransferConfig(), Views(steps, 1), "cpu", with_unlabelled=True)
        whole = transfer.epoch_order(0, 0)[:25]
        model = torch.nn.Linear(64, 3)

        def loss_of(rows: torch.Tensor, share: float, transfer=transfer, model=model, whole=whole) -> float:
            (batch,) = transfer.batches([rows], 0, [share], wholes=[whole])
            return share * hard_loss(model(batch.inputs.flatten(1)), batch, 0.1).item()

        parts = [split_batch(whole, rank, 3) for rank in range(3)]
        together = sum(loss_of(*part) for part in parts) / 3
        assert together == pytest.approx(loss_of(whole, 1.0), rel=1e-5)
        assert loss_of(whole, 1.0) > 0


def test_stopping_and_going_on_changes_nothing(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    without_labels(stages.file)
    plan = {"teacher": teacher, "student": student | {"teachers": ["teacher"], "mode": "live", "epochs": 3}}
    stages.run(plan)
    other = stages.elsewhere("other")
    other.write(plan)
    assert other.attempt("teacher").status == "done"
    questions = iter(range(5, -10, -1))
    assert other.attempt("student", should_stop=lambda: next(questions) == 0).status == "stopped"
    assert other.attempt("student").status == "done"
    assert (
        other.record("student").payload["model.safetensors"]
        == stages.record("student").payload["model.safetensors"]
    )
    assert other.metrics("student") == stages.metrics("student")


@pytest.mark.parametrize("method", ["triplet", "triplet_logits"])
def test_a_method_that_needs_every_label_says_so(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], method: str
) -> None:
    taught = student | {"teachers": ["teacher"], "mode": "live", "methods": [{"method": method}, HINTON]}
    stages.write({"teacher": teacher, "student": taught})
    without_labels(stages.file)
    with pytest.raises(PlanError, match=f"`{method}` looks at the label of every sample.*unlabelled: false"):
        stages.write({"teacher": teacher, "student": taught})
    stages.write({"teacher": teacher, "student": taught | {"transfer": {"unlabelled": False}}})


def test_nothing_said_and_everything_taken_are_one_plan(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    taught = student | {"teachers": ["teacher"]}
    found = [
        stages.write({"teacher": teacher, "student": taught | extra}).nodes["student"].fingerprint
        for extra in ({}, {"transfer": {"unlabelled": True}}, {"transfer": {"unlabelled": False}})
    ]
    assert found[0] == found[1] != found[2]


def test_the_survey_counts_what_has_a_label_and_what_has_none(stages: Any) -> None:
    is_labelled = without_labels(stages.file)
    survey = survey_task(Tensors(file=stages.file))
    assert sum(map(sum, survey.counts.values())) == is_labelled.sum()
    assert any(
        f"{(~is_labelled).sum()} training samples have no label" in finding.text
        for finding in survey.findings
    )


def test_empty_cells_are_no_labels(tmp_path: Path) -> None:
    labels = [0, 1, None, 1, 0, None, 1, 0, 1, 0]
    inputs = [[float(row), 1.0] for row in range(10)]
    for kind in (pyarrow.int64(), pyarrow.float64(), pyarrow.uint8()):
        table = pyarrow.table({"inputs": inputs, "labels": pyarrow.array(labels, type=kind)})
        pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
        task = Tensors(file=tmp_path / "data.parquet")
        assert (task.num_classes, task.unlabelled) == (2, 2)
        assert sorted(task.load().train.ids[task.load().train.labels < 0].tolist()) == [2, 5]


def test_a_test_sample_without_a_label_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    split = np.array(["train"] * 8 + ["test"] * 2)
    np.savez(file, inputs=np.eye(10, dtype=np.float32), labels=np.array([0, 1] * 4 + [0, -1]), split=split)
    with pytest.raises(ValueError, match="sample 9 of `test` has no label"):
        Tensors(file=file).load()


def test_no_label_at_all_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    np.savez(file, inputs=np.eye(10, dtype=np.float32), labels=np.full(10, -1))
    with pytest.raises(ValueError, match="has no label, -1 throughout"):
        _ = Tensors(file=file).num_classes
