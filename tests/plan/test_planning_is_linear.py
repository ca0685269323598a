"""Planning twice as many stages is twice the work, whatever way they hang together.

Work is counted in steps of the interpreter, so that a busy machine changes nothing.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from raydistill.errors import PlanError
from raydistill.plan.load import check_plan, read_source
from raydistill.plan.order import order_stages

FEW, MANY = 20, 100
MODEL = "{name: mlp, widths: [4]}"


def independent(index: int) -> str:
    return f"{{stage: train, epochs: 1, seed: {index}, model: {MODEL}}}"


def chain(index: int) -> str:
    return f"{{stage: distill, epochs: 1, student: {MODEL}, teachers: [s{index - 1}]}}"


def own_views(index: int) -> str:
    return f"views: 1, augment: [{{name: flip}}], view_seed: {index}"


def students_of_one_teacher(index: int) -> str:
    return f"{{stage: distill, epochs: 1, {own_views(index)}, student: {MODEL}, teachers: [s0]}}"


def changes_of_changes(index: int) -> str:
    return f"{{stage: adjust_class_bias, model: s{index - 1}, classes: [1]}}"


def combinations_of_two_before(index: int) -> str:
    if index < 3:
        return f"{{stage: predict_targets, teacher: s0, {own_views(index)}}}"
    return f"{{stage: combine_targets, targets: [s{index - 1}, s{index - 2}]}}"


def others_taken_over(index: int) -> str:
    return f"{{<<: *first, seed: {index}, model: {MODEL}}}"


SHAPES = [
    independent,
    chain,
    students_of_one_teacher,
    changes_of_changes,
    combinations_of_two_before,
    others_taken_over,
]


def plan_text(stages: int, shape: Callable[[int], str]) -> str:
    first = f"  s0: &first {independent(0)}"
    rest = (f"  s{index}: {shape(index)}" for index in range(1, stages))
    return "\n".join(("name: many", "task: mnist", "stages:", first, *rest, ""))


def steps_of(work: Callable[[], Any]) -> int:
    """Instructions of the interpreter."""
    steps = 0

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        steps += event == "opcode"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        work()
    finally:
        sys.settrace(before)
    return steps


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stage_costs_the_same_in_a_large_plan(shape: Callable[[int], str], tmp_path: Path) -> None:
    def plan(stages: int) -> None:
        file = tmp_path / "plan.yaml"
        file.write_text(plan_text(stages, shape))
        source = read_source(file)
        order_stages(check_plan(source))

    plan(1)  # what is computed once per process
    alone, few, many = (steps_of(lambda: plan(stages)) for stages in (1, FEW, MANY))  # noqa: B023
    assert (many - alone) / (MANY - 1) < 1.1 * (few - alone) / (FEW - 1)


def test_to_put_independent_stages_in_order_costs_the_same_each_in_a_large_plan(tmp_path: Path) -> None:
    def steps(stages: int) -> int:
        file = tmp_path / "plan.yaml"
        file.write_text(plan_text(stages, independent))
        plan = check_plan(read_source(file))
        return steps_of(lambda: order_stages(plan))

    steps(1)
    assert steps(300) / 300 < 1.05 * steps(30) / 30


def test_many_mistakes_cost_as_much_each_as_few(tmp_path: Path) -> None:
    def refuse(mistakes: int) -> None:
        file = tmp_path / "plan.yaml"
        file.write_text(plan_text(1, independent).replace("[4]", f"[{'four, ' * mistakes}]"))
        with pytest.raises(PlanError, match="four"):
            check_plan(read_source(file))

    refuse(1)
    few, many = steps_of(lambda: refuse(FEW)), steps_of(lambda: refuse(MANY))
    assert many < 1.25 * few * MANY / FEW


def test_two_thousand_stages_of_which_each_reads_the_one_before_are_one_plan(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(plan_text(2000, changes_of_changes))
    source = read_source(file)
    graph = order_stages(check_plan(source))
    assert list(graph.nodes) == [f"s{index}" for index in range(2000)]
    assert graph.model_of("s1999") == graph.model_of("s0") is not None
