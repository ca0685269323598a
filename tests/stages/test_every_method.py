"""What holds for every method, through whole stages: a row per method, and nothing that asks for its name."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raydistill.kinds.method_options import MethodOptions
from raydistill.models.build import build_model

METHODS = MethodOptions.choices()

CNN = {"name": "cnn", "widths": [4, 6], "batch_norm": True}
LARGE = {"name": "cnn", "widths": [6, 6], "batch_norm": True}
POOLED = {"name": "resnet8"}  # its last maps are averaged into the classifier

# Name of the case → options of the method; the models are those above unless the case says otherwise.
CASES: dict[str, dict[str, Any]] = {
    "hinton": {"method": "hinton"},
    "labels": {"method": "labels"},
    "hinton, standardised": {"method": "hinton", "standardize": True},
    "dkd": {"method": "dkd"},
    "nkd": {"method": "nkd"},
    "dist": {"method": "dist"},
    "multi_level": {"method": "multi_level"},
    "wsld": {"method": "wsld"},
    "curriculum_temperature": {"method": "curriculum_temperature"},
    "teacher_labels": {"method": "teacher_labels"},
    "hints": {"method": "hints", "reduction": "mean"},
    "fsp": {"method": "fsp", "student": LARGE, "reduction": "mean"},
    "semckd": {"method": "semckd", "weight": 1},
    "ofd": {"method": "ofd", "weight": 0.01},
    "ofd, running": {"method": "ofd", "weight": 0.01, "teacher_bn": "running"},
    "triplet": {"method": "triplet"},
    "triplet_logits": {"method": "triplet_logits"},
    "relational": {"method": "relational"},
    "similarity_preserving": {"method": "similarity_preserving", "weight": 30},
    "similarity_preserving, maps": {
        "method": "similarity_preserving",
        "student_feature": "stage2",
        "teacher_feature": "stage2",
        "weight": 30,
    },
    "probabilistic_transfer": {"method": "probabilistic_transfer", "weight": 300},
    "correlation_congruence": {"method": "correlation_congruence"},
    "attention_transfer": {"method": "attention_transfer", "weight": 10},
    "neuron_selectivity": {"method": "neuron_selectivity", "weight": 1},
    "embedding": {"method": "embedding"},
    "embedding, maps": {
        "method": "embedding",
        "student_feature": "stage2",
        "distance": "cosine",
        "normalize": "unit",
    },
    "contrastive": {"method": "contrastive"},
    "contrastive_bank": {"method": "contrastive_bank", "negatives": 30, "dimensions": 8},
    "class_attention": {"method": "class_attention", "student": POOLED, "teacher": POOLED},
    "softmax_regression": {"method": "softmax_regression", "student": POOLED, "teacher": POOLED},
    "review": {"method": "review", "weight": 1},
    "variational_information": {"method": "variational_information"},
    "masked_generation": {"method": "masked_generation"},
    "ebkd": {"method": "ebkd"},
    "ca_mkd": {"method": "ca_mkd"},
    "ca_mkd, features": {"method": "ca_mkd", "feature_weight": 5},
    "ae_kd": {"method": "ae_kd"},
    "teacher_switching": {"method": "teacher_switching"},
}


def plan_of(case: str, teacher: dict[str, Any], student: dict[str, Any], **changes: Any) -> dict[str, Any]:
    options = dict(CASES[case])
    model, large = options.pop("student", CNN), options.pop("teacher", LARGE)
    taught = student | {"student": model, "teachers": ["teacher"], "mode": "live", "methods": [options]}
    return {"teacher": teacher | {"model": large}, "student": taught | changes}


def test_every_method_has_a_row() -> None:
    assert {case["method"] for case in CASES.values()} == set(METHODS)


@pytest.mark.parametrize("case", CASES)
def test_the_exported_student_is_the_plain_architecture_and_the_teacher_did_not_move(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], case: str
) -> None:
    plan = plan_of(case, teacher, student)
    stages.write(plan)
    assert stages.attempt("teacher").status == "done"
    before = load_file(stages.folder("teacher").path / "model.safetensors")
    outcome = stages.attempt("student")
    assert outcome.status == "done", outcome.error
    weights = load_file(stages.folder("student").path / "model.safetensors")
    options = dict(plan["student"]["student"])
    plain = build_model(options.pop("name"), options, (1, 8, 8), 3)
    plain.load_state_dict(weights)
    trained = stages.model("student")
    inputs = torch.rand(5, 1, 8, 8)
    expected = plain.eval()((inputs - trained.normalisation.mean) / trained.normalisation.std)
    torch.testing.assert_close(trained.logits(inputs), expected)
    after = load_file(stages.folder("teacher").path / "model.safetensors")
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("case", CASES)
def test_stopping_and_resuming_equals_not_stopping(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], case: str
) -> None:
    plan = plan_of(case, teacher, student)
    whole = stages.run(plan).model("student").model.state_dict()
    other = stages.elsewhere("again")
    other.write(plan)
    assert other.attempt("teacher").status == "done"
    assert other.attempt("student", iter([False] * 4 + [True]).__next__).status == "stopped"
    assert other.attempt("student").status == "done"
    resumed = other.model("student").model.state_dict()
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())
    assert other.metrics("student") == stages.metrics("student")


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("hinton")])
def test_a_method_of_no_weight_is_as_good_as_none(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], case: str
) -> None:
    hinton = {"method": "hinton"}
    plan = plan_of(case, teacher, student)
    nothing = {**plan["student"]["methods"][0], "weight": 0}
    plan["beside"] = {**plan["student"], "methods": [hinton, nothing]}
    plan["alone"] = {**plan["student"], "methods": [hinton]}
    stages.run(plan)
    alone = stages.model("alone").model.state_dict()
    assert all(
        torch.equal(value, alone[key]) for key, value in stages.model("beside").model.state_dict().items()
    )


@pytest.mark.parametrize("case", CASES)
def test_losses_are_finite_under_bfloat16_and_fall(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], case: str
) -> None:
    plan = plan_of(case, teacher, student, precision="bfloat16", epochs=8)
    stages.run(plan)
    losses = [line["train/loss"] for line in stages.metrics("student")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("case", ["embedding", "hinton"])
def test_a_student_whose_classifier_nothing_trains_is_not_doubted(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], case: str
) -> None:
    plan = plan_of(case, teacher, student, transfer={"only_classes": [0]}, epochs=1)
    warnings = stages.run(plan).folder("student").done_record().warnings
    assert bool(warnings) == (case == "hinton")  # which has seen one class alone, and says nothing else
