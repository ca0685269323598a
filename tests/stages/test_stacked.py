"""Replicas of a stage in one process, against the same plan with each by itself."""

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from watched import Watched

from raydistill.execution import run_stack
from raydistill.execution.local_backend import LocalBackend
from raydistill.execution.request import Outcome
from raydistill.execution.scheduler import run_stages
from raydistill.runs.folder import CHECKPOINT
from raydistill.runs.plan_run import NodeState
from raydistill.training.stacking import Stack

COUNT = 3
SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}
MLP = {"name": "mlp", "widths": [16]}
TRAIN = {"stage": "train", "epochs": 4, "batch_size": 16, "model": MLP, "optimizer": SGD, "replicas": COUNT}
NAMES = [f"teacher.{index}" for index in range(COUNT)]


class WatchedLocalBackend(Watched, LocalBackend):
    """One that is watched."""


def run(
    stages: Any, written: dict[str, Any], backend: LocalBackend | None = None, **given: Any
) -> dict[str, NodeState]:
    graph = stages.write(written)
    return run_stages(
        graph, backend or WatchedLocalBackend(), task=stages.plan.task, root=stages.root, **given
    )


def train(stages: Any, stack: str = "on", **changes: Any) -> WatchedLocalBackend:
    backend = WatchedLocalBackend()
    states = run(stages, {"teacher": TRAIN | changes | {"stack": stack}}, backend)
    assert {state.status for state in states.values()} <= {"done", "cached"}
    return backend


def log(stages: Any, name: str) -> str:
    return (stages.folder(name).path / "log.txt").read_text()


def assert_same(one: Any, other: Any, names: Sequence[str] = NAMES) -> None:
    for name in names:
        own, wanted = one.model(name).plain.state_dict(), other.model(name).plain.state_dict()
        torch.testing.assert_close(own, wanted, rtol=1e-3, atol=1e-4)
        metrics = other.record(name).metrics
        assert one.record(name).metrics == pytest.approx(metrics, rel=1e-3, abs=1e-4)
        assert one.record(name).fingerprint == other.record(name).fingerprint
        lines = zip(one.metrics(name), other.metrics(name), strict=True)
        assert all(line == pytest.approx(expected, rel=1e-2, abs=1e-3) for line, expected in lines)


@pytest.fixture
def both(stages: Any) -> tuple[Any, Any]:
    return stages, stages.elsewhere("alone")


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "adam": {"optimizer": {"name": "adam", "learning_rate": 0.002}, "schedule": {"name": "cosine"}},
    "clipped and averaged": {"clip_norm": 0.5, "ema": {"decay": 0.9}, "label_smoothing": 0.1},
    "augmented": {"augment": [{"name": "shift", "pixels": 1}, {"name": "mixup"}]},
    "balanced": {"sampler": "balanced"},
    "weighed": {"class_weights": "balanced"},
    "batch norm": {"model": {"name": "cnn", "widths": [4, 8], "batch_norm": True}},
}


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS.keys())
def test_replicas_that_are_stacked_are_those_of_one_by_one(
    both: tuple[Any, Any], changes: dict[str, Any]
) -> None:
    stacked, alone = both
    assert train(stacked, **changes).started == [NAMES]
    assert train(alone, "off", **changes).started == [[name] for name in NAMES]
    assert_same(stacked, alone)
    assert [stacked.record(name).stacked for name in NAMES] == [COUNT] * COUNT
    assert [alone.record(name).stacked for name in NAMES] == [None] * COUNT
    assert not (stacked.folder("teacher.1").path / CHECKPOINT).exists()


def test_students_of_stored_targets_are_stacked(both: tuple[Any, Any]) -> None:
    student = {
        "stage": "distill", "teachers": ["teacher"], "student": MLP, "epochs": 3, "batch_size": 16,
        "optimizer": SGD, "replicas": COUNT,
    }  # fmt: skip
    names = [f"student.{index}" for index in range(COUNT)]
    for stages, stack in zip(both, ("on", "off"), strict=True):
        teacher = TRAIN | {"replicas": 1, "epochs": 2}
        run(stages, {"teacher": teacher, "student": student | {"stack": stack}})
    assert_same(*both, names)
    assert both[0].record("student.0").stacked == COUNT


def test_what_is_there_is_not_trained_again(stages: Any) -> None:
    train(stages, "off", replicas=1)
    before = stages.folder("teacher").path / "record.json"
    written = before.stat().st_mtime_ns
    assert train(stages).started == [NAMES[1:]]
    assert before.stat().st_mtime_ns == written
    assert train(stages).started == []


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The process ends at the step whose number is written here, counted over stacked steps."""
    left = [0]
    step = Stack.step

    def until_then(stack: Stack, turns: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        step(stack, turns)

    monkeypatch.setattr(Stack, "step", until_then)
    return left


@pytest.mark.parametrize("stack", ["on", "off"])
def test_what_a_kill_left_goes_on_stacked_or_alone(
    both: tuple[Any, Any], dying: list[int], monkeypatch: pytest.MonkeyPatch, stack: str
) -> None:
    """With checkpoints after every step: those of the three are of different steps where the process ends between."""
    stages, alone = both
    monkeypatch.setattr("raydistill.training.loop.CHECKPOINT_SECONDS", 0.0)
    dying[0] = 9
    with pytest.raises(KeyboardInterrupt):
        train(stages)
    assert all((stages.folder(name).path / CHECKPOINT).is_dir() for name in NAMES)
    assert [stages.folder(name).record() for name in NAMES] == [None] * COUNT
    train(stages, stack)
    train(alone, "off")
    assert_same(stages, alone)
    assert stages.record("teacher.0").stacked == COUNT, "also where only the first steps were"
    assert "resumed at step" in log(stages, "teacher.2")


def test_replicas_at_different_steps_come_to_the_same(
    both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages, alone = both
    stages.write({"teacher": TRAIN})
    for name, steps in (("teacher.0", 3), ("teacher.2", 20)):
        assert stages.attempt(name, iter([False] * (steps - 1) + [True]).__next__).status == "stopped"
    assert train(stages).started == [NAMES]
    train(alone, "off")
    assert_same(stages, alone)
    assert stages.record("teacher.0").stacked == COUNT


def test_a_stop_leaves_a_checkpoint_of_each(both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    stages, alone = both
    stop, step, made = threading.Event(), Stack.step, [0]

    def counted(stack: Stack, turns: Any) -> None:
        step(stack, turns)
        made[0] += 1
        if made[0] == 6:
            stop.set()

    monkeypatch.setattr(Stack, "step", counted)
    states = run(stages, {"teacher": TRAIN | {"stack": "on"}}, WatchedLocalBackend(stop=stop), stop=stop)
    assert {state.status for state in states.values()} == {"stopped"}
    assert all((stages.folder(name).path / CHECKPOINT).is_dir() for name in NAMES)
    train(stages)
    train(alone, "off")
    assert_same(stages, alone)


def test_one_that_fails_fails_alone(both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    stages, alone = both
    step, made = Stack.step, [0]

    def spoiled(stack: Stack, turns: Any) -> None:
        step(stack, turns)
        made[0] += 1
        if made[0] == 5:
            with torch.no_grad():
                next(stack.trainings[1].model.parameters()).fill_(torch.nan)

    monkeypatch.setattr(Stack, "step", spoiled)
    states = run(stages, {"teacher": TRAIN | {"stack": "on"}})
    assert [states[name].status for name in NAMES] == ["done", "failed", "done"]
    assert "not finite" in str(stages.record("teacher.1").error)
    assert "failed" not in log(stages, "teacher.0")
    train(alone, "off")
    assert_same(stages, alone, ["teacher.0", "teacher.2"])


def test_those_that_stop_early_leave_the_others_stacked(both: tuple[Any, Any]) -> None:
    stages, alone = both
    changes = {"early_stopping": {"patience": 1}, "epochs": 8}
    train(stages, **changes)
    train(alone, "off", **changes)
    assert_same(stages, alone)


def test_a_stacked_step_that_fails_costs_nobody_his_result(
    both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages, alone = both
    step, made = Stack.step, [0]

    def failing(stack: Stack, turns: Any) -> None:
        made[0] += 1
        if made[0] == 5:
            raise MemoryError("no room")
        step(stack, turns)

    monkeypatch.setattr(Stack, "step", failing)
    assert train(stages).started == [NAMES, *([name] for name in NAMES)]
    train(alone, "off")
    for name in NAMES:
        assert stages.record(name).payload == alone.record(name).payload
        assert "no room" in log(stages, name)


@pytest.mark.parametrize(
    ("method", "error"), [("prepare", ValueError), ("begin", ValueError), ("go_on", MemoryError)]
)
def test_what_fails_beside_others_is_tried_alone(
    both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, method: str, error: type[Exception]
) -> None:
    """Once, in the third: memory may be short where three are in one process."""
    stages, alone = both
    inner = getattr(run_stack._Member, f"_{method}")

    def failing(member: Any, *arguments: Any) -> None:
        if member.attempt.request.name == "teacher.2" and member.step == (20 if method == "go_on" else 0):
            raise error("not here")
        inner(member, *arguments)

    monkeypatch.setattr(run_stack._Member, f"_{method}", failing)
    assert train(stages).started == [NAMES, *([name] for name in NAMES)]
    train(alone, "off")
    for name in NAMES:
        assert stages.record(name).payload == alone.record(name).payload
        assert "not here" in log(stages, name)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dropout": ({"model": MLP | {"dropout": 0.2}}, "dropout"),
    "precision": ({"precision": "bfloat16"}, "bfloat16"),
    "accumulate": ({"accumulate": 2}, "several batches"),
    "timeout": ({"resources": {"timeout": "10m"}}, "timeout"),
    "off": ({"stack": "off"}, "`stack` is off"),
}


@pytest.mark.parametrize(("changes", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_stacked_is_trained_as_ever_and_says_why(
    both: tuple[Any, Any], changes: dict[str, Any], why: str
) -> None:
    stages, alone = both
    run(stages, {"teacher": TRAIN | {"stack": "on"} | changes})
    run(alone, {"teacher": TRAIN | {"stack": "off"} | changes})
    for name in NAMES:
        assert stages.record(name).payload == alone.record(name).payload
        assert stages.record(name).stacked is None
        assert stages.record(name).attempts == 1
    assert why in log(stages, "teacher.0")
    assert "not stacked" in log(stages, "teacher.1")


def test_left_to_itself_a_short_training_is_not_stacked(stages: Any) -> None:
    assert train(stages, "auto").started == [NAMES, *([name] for name in NAMES)]
    assert "too few" in log(stages, "teacher.0")
    assert stages.record("teacher.0").stacked is None


@pytest.mark.parametrize(("seconds", "stacked"), [(0.002, COUNT), (0.004, None)])
def test_left_to_itself_the_faster_way_is_taken(
    both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, seconds: float, stacked: int | None
) -> None:
    """A plain step takes a millisecond here, a stacked one `seconds`: 2 ms are less than 0.9 x 3 x 1 ms."""
    stages, alone = both
    is_stacked = [False]
    step = Stack.step

    def noted(stack: Stack, turns: Any) -> None:
        is_stacked[0] = True
        step(stack, turns)

    def timed(device: Any, make: Any) -> float:
        is_stacked[0] = False
        make()
        return seconds if is_stacked[0] else 0.001

    monkeypatch.setattr(Stack, "step", noted)
    monkeypatch.setattr(run_stack, "timed", timed)
    monkeypatch.setattr(run_stack, "FEWEST", 1)
    train(stages, "auto")
    train(alone, "off")
    assert_same(stages, alone)
    assert stages.record("teacher.2").stacked == stacked
    assert "one of 3 together" in log(stages, "teacher.0")


def test_the_lines_of_a_log_are_of_its_own_stage(stages: Any) -> None:
    train(stages)
    for name in NAMES:
        lines = log(stages, name).splitlines()
        assert sum("started" in line for line in lines) == 1
        assert sum("done in" in line for line in lines) == 1


def test_the_seconds_of_a_stack_are_shared(stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its part: together they are no more than the time that has passed."""
    began = time.perf_counter()
    train(stages)
    passed = time.perf_counter() - began
    assert 0 < sum(stages.record(name).seconds for name in NAMES) <= passed


def test_stages_that_differ_by_more_than_their_seed_are_not_stacked(stages: Any) -> None:
    backend = WatchedLocalBackend()
    one = TRAIN | {"stack": "on", "replicas": 2}
    run(stages, {"a": one, "b": one | {"epochs": 3}}, backend)
    assert sorted(map(sorted, backend.started)) == [["a.0", "a.1"], ["b.0", "b.1"]]


def test_outcomes_stand_in_the_order_of_the_requests(stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stages.write({"teacher": TRAIN | {"stack": "on"}})
    outcomes = run_stack.run_stack([stages.request(name) for name in NAMES])
    assert [outcome.status for outcome in outcomes] == ["done"] * COUNT
    stages = stages.elsewhere("broken")
    stages.write({"teacher": TRAIN | {"stack": "on", "model": MLP | {"dropout": 0.1}}})
    outcomes = run_stack.run_stack([stages.request(name) for name in NAMES])
    assert [outcome.status for outcome in outcomes] == ["apart"] * COUNT
    assert isinstance(outcomes[1], Outcome)
    assert "dropout" in str(outcomes[1].error)


@pytest.mark.parametrize("asked", range(0, 30, 3))
def test_whoever_is_asked_to_stop_has_stopped_at_whatever_moment(both: tuple[Any, Any], asked: int) -> None:
    """Before any of them, while the others join, or in the steps of all: nobody is to be begun by himself."""
    stages, alone = both
    stages.write({"teacher": TRAIN | {"stack": "on"}})
    looks = iter(range(10_000))
    outcomes = run_stack.run_stack(
        [stages.request(name) for name in NAMES], should_stop=lambda attempt: next(looks) >= asked
    )
    assert {outcome.status for outcome in outcomes} == {"stopped"}
    train(stages)
    train(alone, "off")
    assert_same(stages, alone)
