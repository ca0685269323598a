"""From a plan file to the stages that a command is about."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.plan.order import Graph
    from orchestrator.plan.schema import Plan


def load_graph(
    plan_file: Path, overrides: Sequence[str] = (), only: Sequence[str] = ()
) -> "tuple[Plan, Graph]":
    """The checked plan and its ordered stages: those called `only` and what they read, or all."""
    from orchestrator.plan.load import check_plan, read_source
    from orchestrator.plan.order import order_stages

    source = read_source(plan_file, overrides)
    plan = check_plan(source)
    graph = order_stages(plan, source.error)
    if only:
        graph = graph.needed_for(graph.called(only, "--only"))
    if graph.compares_features:  # which takes torch, and with it more than a second
        from orchestrator.stages.feature_check import check_features

        check_features(graph, plan.task, source.error)
    return plan, graph
