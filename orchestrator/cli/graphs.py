"""From a plan file to the stages that a command is about."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from raydistill.plan.load import Source
    from raydistill.plan.order import Graph
    from raydistill.plan.schema import Plan


def load_graph(
    plan_file: Path, overrides: Sequence[str] = (), only: Sequence[str] = ()
) -> "tuple[Plan, Graph]":
    """The checked plan and its ordered stages: those called `only` and what they read, or all."""
    _, plan, graph = load_source_graph(plan_file, overrides, only)
    return plan, graph


def load_source_graph(
    plan_file: Path, overrides: Sequence[str] = (), only: Sequence[str] = ()
) -> "tuple[Source, Plan, Graph]":
    """The same, and before them the plan as it is written."""
    from raydistill.plan.advice import advice, shared_folders
    from raydistill.plan.load import check_plan, read_source
    from raydistill.plan.order import order_stages
    from raydistill.plan.places import remarks_on_places

    source = read_source(plan_file, overrides)
    plan = check_plan(source)
    graph = order_stages(plan, source.error)
    for line in remarks_on_places(source):
        click.echo(f"note: {line}", err=True)
    for line in (*advice(plan, source.error), *shared_folders(graph)):
        click.echo(f"warning: {line}", err=True)
    if only:
        graph = graph.needed_for(graph.called(only, "--only"))
    if graph.compares_features:  # which takes torch, and with it more than a second
        from raydistill.stages.model_probe import check_features

        check_features(graph, plan.task, source.error)
    return source, plan, graph
