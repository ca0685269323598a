"""What people write short is the same plan: one form is checked, stored and fingerprinted."""

from collections.abc import Callable

import pytest

from raydistill.plan.load import check_plan, read_source
from raydistill.plan.order import Graph, order_stages
from raydistill.plan.schema import Plan
from raydistill.plan.short_forms import written_out
from raydistill.plan.written import parse_source
from raydistill.runs.plan_run import plan_text

PLAN = """\
name: probe
task: {name: mnist}
stages:
  teacher: {stage: train, model: {name: mlp}, epochs: 3%s}
  student: {stage: distill, student: {name: mlp}, teachers: [teacher], epochs: 2%s}
"""


def fingerprints(graph: Graph) -> dict[str, str]:
    return {name: node.fingerprint for name, node in graph.nodes.items()}


@pytest.mark.parametrize(
    ("short", "written"),
    [
        ("augment: flip", "augment: [{name: flip}]"),
        ("augment: [flip, {name: shift, pixels: 3}]", "augment: [{name: flip}, {name: shift, pixels: 3}]"),
        ("augment: {name: shift, pixels: 3}", "augment: [{name: shift, pixels: 3}]"),
        ("optimizer: adamw", "optimizer: {name: adamw}"),
        ("optimizer: {learning_rate: 1e-3}", "optimizer: {name: sgd, learning_rate: 1e-3}"),
        ("schedule: cosine", "schedule: {name: cosine}"),
        ("model: lenet5", "model: {name: lenet5}"),
        ("initial: other, grow: net2net", "initial: other, grow: {name: net2net}"),
        ("initial: other, grow: {noise: 0.1}", "initial: other, grow: {name: net2net, noise: 0.1}"),
    ],
)
def test_a_short_form_of_a_training_is_the_same_stage(
    short: str, written: str, graph_of: Callable[..., Graph]
) -> None:
    def graph(text: str) -> Graph:
        plan = PLAN % (f", {text}", "")
        plan = plan.replace("model: {name: mlp}, ", "", 1) if "model:" in text else plan
        return graph_of(plan + "  other: {stage: train, model: {name: mlp, widths: [3]}, epochs: 1}\n")

    assert fingerprints(graph(short)) == fingerprints(graph(written))


@pytest.mark.parametrize(
    ("short", "written"),
    [
        ("method: fsp", "method: {method: fsp}"),
        ("method: {temperature: 3}", "method: {method: hinton, temperature: 3}"),
        ("methods: [labels, {method: semckd}]", "methods: [{method: labels}, {method: semckd}]"),
    ],
)
def test_a_short_form_of_a_method_is_the_same_stage(
    short: str, written: str, write_plan: Callable[..., object]
) -> None:
    def stages(text: str) -> object:
        return Plan.model_validate(
            read_source(write_plan(PLAN % ("", f", mode: live, {text}"))).values
        ).stages

    assert stages(short) == stages(written)


def test_the_form_that_is_stored_is_the_long_one(write_plan: Callable[..., object]) -> None:
    short = (
        "name: probe\ntask: mnist\nstages:\n  teacher: {stage: train, model: mlp, epochs: 3, augment: flip}\n"
    )
    plan = check_plan(read_source(write_plan(short)))
    text = plan_text(plan)
    assert "task:\n  name: mnist\n" in text
    assert "augment:\n    - name: flip\n" in text
    again = check_plan(parse_source(text, "written.yaml"))
    assert fingerprints(order_stages(again)) == fingerprints(order_stages(plan))


def test_the_default_of_a_stage_decides_which_optimizer_is_meant() -> None:
    stage = {
        "stage": "distill_with_generator",
        "teacher": "t",
        "student": "mlp",
        "optimizer": {"learning_rate": 1},
    }
    written = written_out({"stages": {"s": stage}}, Plan)["stages"]["s"]
    assert written["optimizer"] == {"name": "adamw", "learning_rate": 1}
    assert written["student"] == {"name": "mlp"}


def test_an_override_goes_into_a_short_form(graph_of: Callable[..., Graph]) -> None:
    short, overrides = (
        PLAN % (", optimizer: adamw, augment: shift", ""),
        [
            "stages.teacher.optimizer.learning_rate=1e-2",
            "stages.teacher.augment.0.pixels=1",
            "stages.student.student=lenet5",
            "stages.student.optimizer.momentum=0.5",
        ],
    )
    student = graph_of(short, *overrides).nodes["student"].config
    teacher = graph_of(short, *overrides).nodes["teacher"].config
    assert (teacher.optimizer.name, teacher.optimizer.learning_rate) == ("adamw", 0.01)
    assert teacher.augment[0].pixels == 1
    assert (student.student.name, student.optimizer.name, student.optimizer.momentum) == (
        "lenet5",
        "sgd",
        0.5,
    )


def test_the_words_of_a_search_may_be_plain(
    graph_of: Callable[..., Graph], write_plan: Callable[..., object]
) -> None:
    search = "search: {space: {student.seed: {choice: [0, 1]}}, searcher: grid, scheduler: none}\n"
    search = read_source(write_plan(PLAN % ("", "") + search)).values["search"]
    assert (search["searcher"], search["scheduler"]) == ({"name": "grid"}, {"name": "none"})
