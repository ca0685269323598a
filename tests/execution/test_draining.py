"""Nodes that say that they will go: stages that run there go on elsewhere, and nobody is blamed."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from raydistill.execution.ray_backend import running
from raydistill.execution.ray_backend.attempts import unless_asked
from raydistill.execution.ray_backend.running import RunningStages
from raydistill.execution.request import Outcome, StageRequest
from raydistill.runs.placement import write_place


class Health:
    """Of a Ray cluster that is well."""

    def hold(self) -> bool:
        return True


class Attempt:
    """Runs until it has made way."""

    is_asked_to_stop = False
    refs = ()

    def __init__(self, root: Path, name: str, node: str) -> None:
        self.request = StageRequest(
            name,
            "train",
            "0" * 12,
            f"stages/{name}",
            str(root),
            {},
            {},
            {},
            {},
            attempt=name,
            resources={"workers": 1},
        )
        self.request.place.mkdir(parents=True)
        write_place(self.request.place, name, 0, node)
        self.asked = 0

    def make_way(self) -> None:
        self.asked += 1

    def has_ended(self, ready: Collection[Any]) -> bool:
        return bool(self.asked)

    def outcome(self) -> Outcome:
        return unless_asked(self, Outcome("stopped", 3.0))  # type: ignore[arg-type]


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> RunningStages:
    monkeypatch.setattr(running, "DRAIN_SECONDS", 0.0)
    return RunningStages("", Health(), can_grow=False)  # type: ignore[arg-type]


def test_a_stage_makes_way_once_when_its_node_says_that_it_will_go(
    tmp_path: Path, stages: RunningStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    going = set[str]()
    monkeypatch.setattr(running, "draining_nodes", lambda: set(going))
    first, second = Attempt(tmp_path, "first", "a"), Attempt(tmp_path, "second", "b")
    stages._running |= {"first": first, "second": second}  # type: ignore[dict-item]
    for there in ([], ["a"], ["a", "c"]):
        going.update(there)
        stages._make_way()
    assert (first.asked, second.asked) == (1, 0)
    outcome = stages._outcome_of(first)  # type: ignore[arg-type]
    assert (outcome.status, outcome.preempted, outcome.seconds) == ("lost", True, 3.0)
    assert "is about to go" in str(outcome.error)


def test_an_attempt_that_was_asked_to_stop_has_stopped(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, "only", "a")
    assert attempt.outcome().preempted, "its own process was told to end"
    attempt.is_asked_to_stop = True
    assert attempt.outcome() == Outcome("stopped", 3.0)
    assert unless_asked(attempt, Outcome("done")) == Outcome("done")  # type: ignore[arg-type]
