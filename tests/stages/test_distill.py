"""`distill`: the same student whether its targets were stored or made live, and what a chain of them means."""

from typing import Any

import pytest
import torch
from torch import Tensor

from raydistill.execution.run_stage import run_stage
from raydistill.runs.view import open_stage
from raydistill.stages import distill
from raydistill.training import model_files

SOFT = {"method": "hinton", "temperature": 2.0, "soft_weight": 1.0, "hard_weight": 0.0}
HARD = {"method": "hinton", "soft_weight": 0.0, "hard_weight": 1.0}
STEPS = [{"name": "shift", "pixels": 1}, {"name": "flip"}]


def weights(stages: Any, name: str) -> str:
    """Checksum of a model's weights."""
    checksum: str = stages.record(name).payload["model.safetensors"]
    return checksum


def distance(stages: Any, one: str, other: str) -> float:
    """Root mean square difference of two models' logits."""
    return (stages.logits(one) - stages.logits(other)).square().mean().sqrt().item()


@pytest.mark.parametrize("mode", ["stored", "live"])
@pytest.mark.parametrize("method", [HARD, {"method": "labels"}])
@pytest.mark.parametrize("loss", [{}, {"binary_cross_entropy": {}, "class_weights": [1, 2, 3]}])
def test_without_soft_weight_a_student_is_bit_for_bit_a_supervised_one(
    stages: Any,
    teacher: dict[str, Any],
    student: dict[str, Any],
    mode: str,
    method: dict[str, Any],
    loss: dict[str, Any],
) -> None:
    model = {"name": "mlp", "widths": [8], "dropout": 0.5}
    shared = {"epochs": 2, "batch_size": 16, "seed": 3, "label_smoothing": 0.1} | loss
    stages.run(
        {
            "teacher": teacher,
            "plain": {"stage": "train", "model": model, **shared},
            "student": student
            | {"student": model, "teachers": ["teacher"], "mode": mode, "method": method}
            | shared,
        }
    )
    assert weights(stages, "student") == weights(stages, "plain")
    plain, taught = stages.metrics("plain"), stages.metrics("student")
    assert all(line.pop("validation/agreement") for line in taught if "validation/loss" in line)
    assert plain == taught


@pytest.mark.parametrize("mode", ["stored", "live"])
@pytest.mark.parametrize("combine", [{}, {"rule": "geometric"}, {"weights": [3, 1]}])
def test_agreement_is_how_often_a_student_answers_as_its_teachers_together(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], mode: str, combine: dict[str, Any]
) -> None:
    stages.run(
        {
            "teacher": teacher | {"replicas": 2},
            "student": student | {"teachers": ["teacher"], "combine": combine} | {"mode": mode},
        }
    )
    for split in ("validation", "test"):
        first, second, own = (
            open_stage(stages.folder(name).path).predictions(split)
            for name in ("teacher.0", "teacher.1", "student")
        )
        weights = (0.75, 0.25) if "weights" in combine else (0.5, 0.5)
        views = [each.logits if "rule" in combine else each.probabilities() for each in (first, second)]
        together = (weights[0] * views[0] + weights[1] * views[1]).argmax(axis=1)
        same = sum(int(a) == int(b) for a, b in zip(together, own.predicted(), strict=True)) / len(own.ids)
        assert stages.record("student").metrics[f"{split}/agreement"] == pytest.approx(same)


def test_agreement_is_not_told_where_teachers_weigh_anew_for_every_sample(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    combine = {"weights": "entropy"}
    stages.run(
        {
            "teacher": teacher | {"replicas": 2},
            "student": student | {"teachers": ["teacher"], "combine": combine},
        }
    )
    assert "test/agreement" not in stages.record("student").metrics
    assert "test/balanced_accuracy" in stages.record("student").metrics


@pytest.mark.parametrize(
    "combine", [{}, {"rule": "geometric"}, {"weights": [3, 1]}, {"weights": "entropy", "scale": 0.5}]
)
def test_stored_and_live_teachers_make_the_same_student(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], combine: dict[str, Any]
) -> None:
    shared = student | {"teachers": ["teacher"], "combine": combine, "method": SOFT}
    stages.run(
        {
            "teacher": teacher | {"replicas": 2},
            "stored": shared,
            "live": shared | {"mode": "live"},
            "other": shared | {"method": HARD},
        }
    )
    # float16 keeps 11 bits of a logit.
    assert distance(stages, "stored", "live") < 1e-3
    assert distance(stages, "stored", "other") > 0.05


@pytest.mark.parametrize("steps", [STEPS, [{"name": "mixup", "alpha": 0.5}], [{"name": "cutmix"}]])
def test_stored_and_live_teachers_make_the_same_student_on_replayed_views(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], steps: list[dict[str, Any]]
) -> None:
    shared = student | {"teachers": ["teacher"], "augment": steps, "seed": 5, "epochs": 3, "method": SOFT}
    stages.run(
        {
            "teacher": teacher,
            "stored": shared | {"views": 3, "view_seed": 5},
            "live": shared | {"mode": "live"},
            "clean": shared | {"augment": []},
        }
    )
    assert distance(stages, "stored", "live") < 1e-3
    assert distance(stages, "stored", "clean") > 0.02


def test_several_teachers_are_not_one_of_them(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    stages.run(
        {
            "teacher": teacher | {"replicas": 2},
            "of_both": student | {"teachers": ["teacher"], "method": SOFT},
            "of_first": student | {"teachers": ["teacher.0"], "method": SOFT},
            "of_first_alone": student
            | {"teachers": ["teacher"], "combine": {"weights": [1, 0]}, "method": SOFT},
        }
    )
    assert distance(stages, "of_both", "of_first") > 0.01
    assert distance(stages, "of_first_alone", "of_first") < 1e-5


def test_a_live_teacher_with_batch_norm_does_not_move(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[model_files.TrainedModel] = []

    def load_and_remember(*arguments: Any) -> model_files.TrainedModel:
        loaded.append(model_files.load(*arguments))
        return loaded[-1]

    fake = type("ModelFiles", (), {"load": staticmethod(load_and_remember)})
    monkeypatch.setattr(distill, "model_files", fake)
    network = {"name": "cnn", "widths": [4], "batch_norm": True}
    stages.run(
        {
            "teacher": teacher | {"model": network},
            "student": student | {"student": network, "teachers": ["teacher"], "mode": "live"},
        }
    )
    (live,) = loaded
    assert not any(module.training for module in live.model.modules())
    assert all(p.grad is None and not p.requires_grad for p in live.model.parameters())
    stored = stages.model("teacher").model.state_dict()
    assert any("running_mean" in key for key in stored)
    assert all(torch.equal(value, stored[key]) for key, value in live.model.state_dict().items())


def chain(teacher: dict[str, Any], student: dict[str, Any], method: dict[str, Any]) -> dict[str, Any]:
    first = student | {"student": {"name": "mlp", "widths": [10]}, "teachers": ["teacher"], "method": method}
    return {
        "teacher": teacher,
        "assistant": first,
        "student": student | {"teachers": ["assistant"], "method": method},
        "direct": student | {"teachers": ["teacher"], "method": method},
    }


def test_a_students_teacher_is_the_assistant_and_not_the_teacher_above(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    stages.run(chain(teacher, student, SOFT))
    (targets,) = stages.graph.nodes["student"].reads
    assert stages.graph.nodes[targets].reads == ("assistant",)
    assert distance(stages, "student", "direct") > 0.01


def test_a_chain_without_soft_weights_is_supervised_training(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    stages.run(chain(teacher, student, HARD))
    assert weights(stages, "student") == weights(stages, "direct")


def test_a_stopped_student_finishes_as_if_nothing_had_happened(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    plan = {
        "teacher": teacher,
        "student": student | {"teachers": ["teacher"], "augment": STEPS, "views": 2, "epochs": 4},
    }
    whole = stages.elsewhere("undisturbed").run(plan)
    stages.write(plan)
    for name in ("teacher", "teacher.targets"):
        assert stages.attempt(name).status == "done"
    calls = iter(range(1000))
    assert stages.attempt("student", should_stop=lambda: next(calls) == 9).status == "stopped"
    assert stages.attempt("student").status == "done"
    assert weights(stages, "student") == weights(whole, "student")
    assert stages.metrics("student") == whole.metrics("student")


def test_a_student_on_part_of_the_samples_finds_their_targets(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    transfer = {"fraction": 0.5, "omit_classes": [1]}
    stages.run(
        {
            "teacher": teacher,
            "targets": {"stage": "predict_targets", "teacher": "teacher"},
            "of_whole": student | {"targets": "targets", "transfer": transfer},
            "of_part": student | {"teachers": ["teacher"], "transfer": transfer},
        }
    )
    assert distance(stages, "of_whole", "of_part") < 1e-5


def test_an_unlabelled_transfer_set_is_enough_for_soft_targets(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    shared = student | {"teachers": ["teacher"], "method": SOFT}
    stages.run({"teacher": teacher, "with": shared, "without": shared | {"transfer": {"labelled": False}}})
    assert weights(stages, "with") == weights(stages, "without")


def test_targets_of_another_view_seed_are_refused(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    views = {"augment": STEPS, "views": 2, "view_seed": 1}
    plan = {
        "teacher": teacher,
        "targets": {"stage": "predict_targets", "teacher": "teacher", **views},
        "student": student | {"targets": "targets", **views},
    }
    for name in list(stages.write(plan).nodes)[:2]:
        assert stages.attempt(name).status == "done"
    request = stages.request("student")
    request.config["view_seed"] = 2  # the plan would have been refused
    outcome = run_stage(request)
    assert outcome.status == "failed"
    assert "view_seed" in (outcome.error or "")


def soft_cross_entropy(student: Tensor, teacher: Tensor) -> float:
    return -(teacher.softmax(1) * student.log_softmax(1)).sum(dim=1).mean().item()


def test_a_student_comes_closer_to_its_teacher(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    fast = {"optimizer": {"name": "adamw", "learning_rate": 0.01}, "method": SOFT}
    short = student | {"teachers": ["teacher"], **fast, "epochs": 1}
    stages.run({"teacher": teacher, "short": short, "long": short | {"epochs": 20}})
    goal = stages.logits("teacher")
    assert soft_cross_entropy(stages.logits("long"), goal) < soft_cross_entropy(stages.logits("short"), goal)
    apart = soft_cross_entropy(stages.logits("long"), goal) - soft_cross_entropy(goal, goal)
    assert 0 <= apart < 0.05
