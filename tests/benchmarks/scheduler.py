"""What 2,000 stages cost: to read and order their plan, and to schedule them when they do nothing, `results.json` and
progress lines included.

    python tests/benchmarks/scheduler.py

Plans are read whose stages are independent, and whose stages each learn from the stored targets of the one before.

Of those that are run, half read one of the other half; 4 run at a time. The goal is at most 2 ms per stage. The second
run finds all results. Time on the processor stands beside the time on the clock, which on a busy machine says little.
Stages' own files are not counted: the back end answers `done` at once, and leaves a record. Last, the most memory that
the driver had.
"""

import contextlib
import io
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from raydistill import run_plan
from raydistill.execution.makespan import Room
from raydistill.execution.ray_backend.resources import WHOLE, Resources
from raydistill.execution.request import Outcome, StageRequest
from raydistill.execution.survey import PlanSurvey
from raydistill.plan.load import load_plan
from raydistill.plan.order import Graph, Node, order_stages
from raydistill.plan.resources import ResourcesConfig
from raydistill.plan.schema import Plan
from raydistill.run_plan import RunOptions

COUNT, SLOTS = 1000, 4


class Instant:
    """Runs nothing, `SLOTS` at a time; counts the time that it takes to leave the records."""

    def __init__(self) -> None:
        self.running: list[StageRequest] = []
        self.seconds = 0.0

    def check_feasible(self, nodes: Sequence[Node]) -> None: ...

    def room(self) -> Room:
        return Room((Resources(cpus=SLOTS * WHOLE),))

    def has_gpu_for(self, resources: ResourcesConfig) -> bool:
        return False

    def want(self, waiting: Iterable[Node]) -> None: ...

    def placements(self) -> dict[str, Any]:
        return {}

    def try_start(self, request: StageRequest) -> bool:
        if len(self.running) == SLOTS:
            return False
        self.running.append(request)
        return True

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        started, request = time.perf_counter(), self.running.pop(0)
        record = {"kind": request.kind, "fingerprint": request.fingerprint, "status": "done"}
        content = json.dumps(record | {"seconds": 0.0, "finished": 0.0, "metrics": {"test/accuracy": 0.5}})
        (Path(request.root) / request.folder / "record.json").write_text(content)
        self.seconds += time.perf_counter() - started
        return [(request.name, Outcome("done", 0.001))]

    def stop(self) -> list[tuple[str, Outcome]]:
        return []

    def close(self) -> None: ...


class NoTracking:
    """Stands in for the mirror to MLflow."""

    def __init__(self, *arguments: Any) -> None: ...
    def start(self) -> None: ...
    def check(self) -> None: ...
    def hurry(self) -> None: ...
    def finish(self, seconds: float, rest: str = "next time") -> None: ...
    def description(self) -> dict[str, Any]:
        return {"tracking_uri": "nowhere"}


def large_graph() -> tuple[Plan, Graph]:
    """As many teachers as students, which all read the first teacher."""
    common = {"replicas": COUNT, "epochs": 1}
    model = {"name": "mlp", "widths": [4]}
    teacher = {"stage": "train", "model": model, **common}
    student = {"stage": "distill", "student": model, "teachers": ["teacher.0"], "mode": "live", **common}
    stages = {"teacher": teacher, "student": student}
    plan = Plan.model_validate({"name": "large", "task": {"name": "mnist"}, "stages": stages})
    return plan, order_stages(plan)


def milliseconds_per_stage(plan: Plan, graph: Graph, root: Path) -> tuple[float, float]:
    """On the clock and on the processor, of one whole run without report and tracking."""
    backend = Instant()
    run_plan.Mirror = NoTracking  # type: ignore[assignment, misc]
    run_plan.write_report_of = lambda *arguments: None
    run_plan.build_backend = lambda *arguments: backend
    run_plan.survey_plan = lambda *arguments: PlanSurvey()
    started, started_work = time.perf_counter(), time.process_time()
    with contextlib.redirect_stderr(io.StringIO()):
        results = run_plan.run_plan(plan, graph, RunOptions(root, is_reported=False))
    seconds = time.perf_counter() - started - backend.seconds
    work = time.process_time() - started_work
    assert results["status"] == "done"
    return 1000 * seconds / len(graph.nodes), 1000 * work / len(graph.nodes)


def milliseconds_to_plan(stages: int, folder: Path, *, is_chain: bool) -> tuple[float, float]:
    """Per stage, to read and check a plan file, and to order its stages; on the processor."""
    model = "{name: mlp, widths: [4]}"
    lines = [f"  s0: {{stage: train, epochs: 1, model: {model}}}"]
    for index in range(1, stages):
        first = f"  s{index}: {{stage: train, epochs: 1, seed: {index}, model: {model}}}"
        later = f"  s{index}: {{stage: distill, epochs: 1, student: {model}, teachers: [s{index - 1}]}}"
        lines.append(later if is_chain else first)
    file = folder / "plan.yaml"
    file.write_text("\n".join(("name: large", "task: mnist", "stages:", *lines, "")))
    started = time.process_time()
    plan = load_plan(file)
    read = time.process_time()
    order_stages(plan)
    ordered = time.process_time()
    return 1000 * (read - started) / stages, 1000 * (ordered - read) / stages


def main(folder: str | None = None) -> None:
    """Print both numbers; the storage root is made in `folder`."""
    with tempfile.TemporaryDirectory(dir=folder) as root:
        for is_chain in (False, True):
            read, ordered = milliseconds_to_plan(2 * COUNT, Path(root), is_chain=is_chain)
            what = "a chain" if is_chain else "independent"
            print(f"{what}: {read:.2f} ms per stage to read, {ordered:.2f} ms to order")
    plan, graph = large_graph()
    with tempfile.TemporaryDirectory(dir=folder) as root:
        for name in ("first run", "second run"):
            clock, work = milliseconds_per_stage(plan, graph, Path(root))
            print(f"{name}: {clock:.2f} ms per stage, {work:.2f} ms of work, {len(graph.nodes)} stages")
    print(f"driver: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at its peak")


if __name__ == "__main__":
    main(*sys.argv[1:])
