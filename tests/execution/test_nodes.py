"""Asking nodes: what one that dies meanwhile answers."""

from dataclasses import replace

import pytest

from raydistill.execution.ray_backend import nodes
from raydistill.execution.ray_backend.nodes import Answer, ClusterNode, without_gone
from raydistill.execution.ray_backend.resources import Resources

NODE = ClusterNode("a", "10.0.0.1", "a", Resources(cpus=1), is_alive=True, is_own=True)
OTHERS = [replace(NODE, id=name, is_own=False) for name in ("b", "c", "d")]


def test_a_node_that_died_while_it_was_asked_has_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answered, dead, blind = OTHERS
    monkeypatch.setattr(nodes, "list_nodes", lambda: [NODE, answered, replace(dead, is_alive=False), blind])
    error = "could not answer: TaskUnschedulableError"
    answers = [Answer(answered, value="a"), Answer(dead, error=error), Answer(blind, error=error)]
    assert without_gone(answers) == [answers[0], answers[2]]


def test_where_all_have_answered_nobody_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "list_nodes", lambda: pytest.fail("asked"))
    assert without_gone([Answer(NODE, value=1)]) == [Answer(NODE, value=1)]
