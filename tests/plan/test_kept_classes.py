"""Plans with targets of which only some classes are stored: nobody may look at the others."""

from typing import Any

import pytest

from raydistill.errors import PlanError
from raydistill.plan.order import Graph, order_stages
from raydistill.plan.schema import Plan

MODEL = {"name": "mlp", "widths": [4]}
TEACHER = {"stage": "train", "replicas": 2, "model": MODEL, "epochs": 1}
STUDENT = {"stage": "distill", "student": MODEL, "epochs": 1}


def order(**stages: dict[str, Any]) -> Graph:
    values = {"name": "p", "task": {"name": "mnist"}, "stages": {"teacher": TEACHER, **stages}}
    return order_stages(Plan.model_validate(values))


def predicting(top_k: int | None = 3, teacher: int = 0) -> dict[str, Any]:
    targets = {"stage": "predict_targets", "teacher": f"teacher.{teacher}"}
    return targets if top_k is None else targets | {"top_k": top_k}


def combining(**changes: Any) -> dict[str, Any]:
    return {"stage": "combine_targets", "targets": ["whole", "some"], **changes}


def message_of(**stages: dict[str, Any]) -> str:
    with pytest.raises(PlanError) as caught:
        order(**stages)
    return str(caught.value)


def test_the_number_of_kept_classes_is_part_of_the_fingerprint_only_where_it_is_set() -> None:
    nodes = order(a=predicting(None), b=predicting(3), c=predicting(4)).nodes
    assert len({nodes[name].fingerprint for name in "abc"}) == 3
    assert "top_k" not in nodes["a"].identity["config"]
    assert nodes["b"].identity["config"]["top_k"] == 3


def test_a_student_and_a_mean_may_read_them() -> None:
    graph = order(
        whole=predicting(None),
        some=predicting(10, teacher=1),
        both=combining(weights=[1, 2]),
        student=STUDENT | {"targets": "both"},
        other=STUDENT
        | {"targets": "some", "methods": [{"method": "hinton", "temperature": 1}, {"method": "labels"}]},
    )
    assert graph.nodes["student"].reads == ("both",)


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [(11, "stages.a.top_k: there are 10 classes; keep fewer, or leave `top_k` out")],
)
def test_more_classes_than_there_are_cannot_be_kept(top_k: int, expected: str) -> None:
    assert message_of(a=predicting(top_k)) == expected


@pytest.mark.parametrize(
    ("method", "place", "reason"),
    [
        (
            {"method": "triplet_logits"},
            "method.method",
            "`triplet_logits` looks at the logits of all classes",
        ),
        ({"method": "ebkd"}, "method.method", "`ebkd` looks at the logits of all classes"),
        ({"method": "ca_mkd"}, "method.method", "`ca_mkd` looks at the logits of all classes"),
        ({"method": "hinton", "temperature": 0.5}, "method.temperature", "a tail below T = 1"),
    ],
)
def test_a_method_that_looks_at_all_classes_is_refused_also_behind_a_mean(
    method: dict[str, Any], place: str, reason: str
) -> None:
    targets = {"whole": predicting(None), "some": predicting(3, teacher=1), "both": combining()}
    for name in ("some", "both"):
        message = message_of(**targets, student=STUDENT | {"targets": name, "method": method})
        assert message.startswith(f"stages.student.{place}: {reason}")
        assert "but `some` stores only some (`top_k`)" in message
    order(whole=targets["whole"], student=STUDENT | {"targets": "whole", "method": method})


def test_of_several_methods_the_one_that_looks_at_all_classes_is_named() -> None:
    methods = [{"method": "hinton"}, {"method": "triplet_logits"}]
    message = message_of(some=predicting(), student=STUDENT | {"targets": "some", "methods": methods})
    assert message.startswith("stages.student.methods.1.method: `triplet_logits`")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rule": "geometric"}, "stages.both.rule: a geometric mean looks at the logits of all classes"),
        (
            {"weights": "entropy"},
            "stages.both.weights: the entropy is that of the probabilities of all classes",
        ),
    ],
)
def test_a_mean_that_looks_at_all_classes_is_refused(changes: dict[str, Any], expected: str) -> None:
    dense = predicting(None)
    message = message_of(whole=dense, some=predicting(3, teacher=1), both=combining(**changes))
    assert message.startswith(expected)
    order(whole=dense, some=predicting(None, teacher=1), both=combining(**changes))


def test_a_committee_reads_its_generalist_whole() -> None:
    clusters = {"stage": "confusion_clusters", "generalist": "teacher.0", "clusters": 2}
    specialists = {
        "stage": "train_specialists",
        "generalist": "teacher.0",
        "clusters": "clusters",
        "epochs": 1,
    }
    committee = {
        "stage": "combine_targets",
        "targets": ["some"],
        "committee": {"specialists": ["specialists"]},
    }
    message = message_of(clusters=clusters, specialists=specialists, some=predicting(), both=committee)
    assert message.startswith(
        "stages.both.committee: a committee looks at the generalist's logits of all classes"
    )
