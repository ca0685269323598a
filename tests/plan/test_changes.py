"""Numbers that change while a stage trains: which may, what a config is like from then on, and every mistake."""

from collections.abc import Callable

import pytest

from raydistill.kinds.changes import beginnings, during
from raydistill.plan.order import Graph

PLAN = """\
name: changing
task: {name: mnist}
stages:
  teacher: {stage: train, model: {name: mlp, widths: [8]}, epochs: 2, optimizer: {name: adamw}}
  student:
    stage: distill
    student: {name: mlp, widths: [4]}
    teachers: [teacher]
    epochs: 9
    method: {method: hinton, temperature: 4, soft_weight: 1, hard_weight: 0}
"""
SEVERAL = "stages.student.methods=[{method: hinton, temperature: 2}, {method: triplet_logits, margin: 3}]"
GraphOf = Callable[..., Graph]


def test_the_numbers_with_a_fraction_of_optimizer_and_methods_may_change(graph_of: GraphOf) -> None:
    nodes = graph_of(PLAN).nodes
    assert nodes["teacher"].config.changeable() == {
        "optimizer.learning_rate": 1e-3,
        "optimizer.weight_decay": 0,
    }
    assert nodes["student"].config.changeable() == {
        "optimizer.learning_rate": 0.05,
        "optimizer.weight_decay": 0,
        "optimizer.momentum": 0.9,
        "method.weight": 1,
        "method.temperature": 4,
        "method.soft_weight": 1,
        "method.hard_weight": 0,
    }
    plan = PLAN.replace("    method: {method: hinton, temperature: 4, soft_weight: 1, hard_weight: 0}\n", "")
    several = graph_of(plan, SEVERAL).nodes["student"].config.changeable()
    assert several["methods.0.temperature"] == 2
    assert several["methods.1.margin"] == 3


def test_a_change_holds_from_the_end_of_its_epoch_until_the_next_one(graph_of: GraphOf) -> None:
    first = "{after: 2, set: {method.temperature: 3, optimizer.learning_rate: 0.1}}"
    changes = f"stages.student.changes=[{first}, {{after: 5, set: {{method.temperature: 2}}}}]"
    config = graph_of(PLAN, changes).nodes["student"].config
    found = [during(config, epoch) for epoch in range(9)]
    assert [each.method.temperature for each in found] == [4, 4, 3, 3, 3, 2, 2, 2, 2]
    assert [each.optimizer.learning_rate for each in found] == [0.05, 0.05, *[0.1] * 7]
    assert all(each.replace(method=config.method, optimizer=config.optimizer) == config for each in found)


def test_a_training_without_the_new_options_keeps_its_fingerprint(graph_of: GraphOf) -> None:
    identity = graph_of(PLAN).nodes["student"].identity
    assert not {"until", "changes"} & set(identity["config"])


def test_beginnings_are_the_stages_that_one_would_write_by_hand(graph_of: GraphOf) -> None:
    def fingerprint(*options: str) -> str:
        return (
            graph_of(PLAN, *(f"stages.student.{option}" for option in options)).nodes["student"].fingerprint
        )

    early, late = "{after: 2, set: {method.temperature: 3}}", "{after: 5, set: {method.temperature: 2}}"
    whole = graph_of(PLAN, f"stages.student.changes=[{early}, {late}]").nodes["student"]
    assert list(beginnings(whole.identity, 9)) == [
        *(fingerprint(f"until={last}", f"changes=[{early}, {late}]") for last in (8, 7, 6)),
        *(fingerprint(f"until={last}", f"changes=[{early}]") for last in (5, 4, 3)),
        *(fingerprint(f"until={last}") for last in (2, 1)),
    ]
    cut = graph_of(PLAN, "stages.student.until=3").nodes["student"]
    assert list(beginnings(cut.identity, 3)) == [fingerprint("until=2"), fingerprint("until=1")]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("until=9", "until: the training has 9 epochs; end before that, or leave it out"),
        ("until=0", "until: should be at least 1, not `0`"),
        ("changes=[]", "changes: should have at least 1 entry, not `[]`"),
        ("changes=[{after: 2, set: {}}]", "changes.0.set: should have at least 1 entry, not `{}`"),
        ("changes=[{after: 0, set: {method.weight: 2}}]", "changes.0.after: should be at least 1, not `0`"),
        (
            "changes=[{after: 9, set: {method.weight: 2}}]",
            "changes.0.after: epoch 9 is not followed by another: training ends after 9",
        ),
        (
            "changes=[{after: 3, set: {method.weight: 2}}, {after: 3, set: {method.weight: 1}}]",
            "changes.1.after: changes stand in order, each after a later epoch than the one before",
        ),
        (
            "changes=[{after: 3, set: {method.temprature: 2}}]",
            "changes.0.set.method.temprature: `method.temprature` is no number that may change while a stage trains;"
            " did you mean `method.temperature`?",
        ),
        (
            "changes=[{after: 3, set: {epochs: 20}}]",
            "changes.0.set.epochs: `epochs` is no number that may change while a stage trains; known:"
            " `method.hard_weight`, `method.soft_weight`, `method.temperature`, `method.weight`,"
            " `optimizer.learning_rate`, `optimizer.momentum`, `optimizer.weight_decay`",
        ),
        (
            "changes=[{after: 3, set: {method.temperature: warm}}]",
            "changes.0.set.method.temperature: should be a number, not `warm`",
        ),
        (
            "changes=[{after: 3, set: {method.weight: 5}}, {after: 4, set: {method.weight: 0}}]",
            "changes.1.set.method.weight: a weight of 0 would leave out what training reaches until then; write a"
            " small number",
        ),
        (
            "changes=[{after: 3, set: {method.hard_weight: 0.5}}]",
            "changes.0.set.method.hard_weight: it is 0 until then, and what it weighs is left out from the start; begin"
            " with a small number",
        ),
        (
            "changes=[{after: 3, set: {method.temperature: -5}}]",
            "changes.0.set.method.temperature: should be at least 0.001, not `-5.0`",
        ),
        (
            "changes=[{after: 3, set: {optimizer.momentum: 1}}]",
            "changes.0.set.optimizer.momentum: should be below 1, not `1.0`",
        ),
        (
            "changes=[{after: 3, sett: {optimizer.momentum: 1}}]",
            "changes.0.sett: unknown key `sett`; did you mean `set`?",
        ),
    ],
)
def test_a_change_that_cannot_be_is_one_line_that_names_the_place(
    option: str, message: str, refusal: Callable[..., str]
) -> None:
    written = f"stages.student.{option}"
    assert refusal(PLAN, written) == f"--set {written}: stages.student.{message}"


def test_a_mistake_in_the_file_names_its_line(refusal: Callable[..., str]) -> None:
    text = PLAN + "    changes:\n    - after: 3\n      set:\n        optimizer.learning_rate: -1\n"
    assert refusal(text).startswith(
        "plan.yaml:14: stages.student.changes.0.set.optimizer.learning_rate: should be"
    )


def test_what_top_k_targets_do_not_allow_is_not_allowed_later_either(refusal: Callable[..., str]) -> None:
    targets = "  targets: {stage: predict_targets, teacher: teacher, top_k: 3}\n  student:"
    text = PLAN.replace("  student:", targets, 1).replace("teachers: [teacher]", "targets: targets")
    change = "stages.student.changes=[{after: 3, set: {method.temperature: 0.5}}]"
    assert "a tail below T = 1 would be a sum over all classes, but `targets` stores only some" in refusal(
        text, change
    )
