"""Stages that leave a line per call and a small file, instead of training: for tests of what runs, and how often.

A file `<stage>.<word>` in the storage root changes what the stage does: `fails`, `warns`, `prints`, `waits` (while it
is there), `interrupts` (the driver, like Ctrl-C).
"""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raydistill import run_plan
from raydistill.errors import StageError, StageStopped
from raydistill.execution import local_backend, run_stage
from raydistill.execution.survey import PlanSurvey
from raydistill.plan.order import Graph, order_stages
from raydistill.plan.schema import Plan
from raydistill.runs.context import StageContext

CALLS = "calls.txt"
OUTPUT = "output.txt"
PROGRESS = "progress.txt"


def replacements() -> Iterator[tuple[Any, str, Any]]:
    """What to set where, so that every stage is `count` and torch is not imported."""
    yield run_stage, "load_object", lambda path: count
    yield run_stage, "_set_threads", lambda request: None
    yield local_backend, "_device", lambda request: "cpu"
    yield run_plan, "survey_plan", lambda *arguments: PlanSurvey()


def count(config: Any, context: StageContext) -> dict[str, float]:
    """Leave a line; then what the files in the root say; then a payload made of the inputs' payloads."""
    with (context.root / CALLS).open("a") as stream:
        stream.write(f"{context.name}\n")
    told = lambda word: context.root / f"{context.name}.{word}"  # noqa: E731
    continued = (context.folder.path / PROGRESS).exists()
    if told("fails").exists():
        raise StageError(f"{context.name} has a fault [/of] its own")
    if told("warns").exists():
        context.warn(f"{context.name} is [/of] no use")
    if told("prints").exists():
        print("a line of the user's own")  # noqa: T201 - as code of theirs does
    if told("interrupts").exists():
        os.kill(os.getpid(), signal.SIGINT)
    while told("waits").exists() or told("interrupts").exists():
        if context.should_stop():
            (context.folder.path / PROGRESS).write_text("half of it")
            raise StageStopped("stopped half-way")
        time.sleep(0.01)
    texts = [context.input(name).payload(OUTPUT).read_text() for name in context.reads]
    context.path(OUTPUT).write_text(f"{context.name}({', '.join(texts)})")
    context.parameters = 7
    return {"test/accuracy": 0.5 + 0.1 * config.seed, "continued": float(continued)}


def calls(root: Path) -> list[str]:
    """The stages that were called, in order."""
    path = root / CALLS
    return path.read_text().split() if path.exists() else []


def plan_of(stages: Mapping[str, Mapping[str, Any]]) -> Plan:
    """Models that learn from one another: `{"student": {"reads": ["teacher"], "epochs": 2}}`."""
    model = {"name": "mlp", "widths": [4]}
    written = {}
    for seed, (name, options) in enumerate(stages.items()):
        config: dict[str, Any] = {"epochs": 1, "seed": seed, **options}
        reads = config.pop("reads", [])
        kind = {"stage": "distill", "mode": "live", "student": model, "teachers": reads}
        written[name] = config | (kind if reads else {"stage": "train", "model": model})
    return Plan.model_validate({"name": "p", "task": {"name": "mnist"}, "stages": written})


def graph_of(stages: Mapping[str, Mapping[str, Any]]) -> tuple[Plan, Graph]:
    """The plan and its graph."""
    plan = plan_of(stages)
    return plan, order_stages(plan)
