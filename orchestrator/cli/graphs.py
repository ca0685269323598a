"""From a plan file to the stages that a command is about."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raydistill.plan.order import Graph
    from raydistill.plan.schema import Plan


def load_graph(
    plan_file: Path, overrides: Sequence[str] = (), only: Sequence[str] = ()
) -> "tuple[Plan, Graph]":
    """The checked plan and its ordered stages: those called `only` and what they read, or all."""
    from raydistill import load_plan, order

    plan = load_plan(plan_file, overrides)
    return plan, order(plan, only)
