"""A driver of its own, run by a test: runs counting stages over a storage root, and prints how each ended as JSON."""

import json
import sys
from pathlib import Path

import counting_stages

from raydistill.execution import scheduler
from raydistill.execution.local_backend import LocalBackend
from raydistill.runs import lease


def main(root: str, stages: str, patience: str) -> None:
    """Run them all."""
    for owner, name, value in counting_stages.replacements():
        setattr(owner, name, value)
    lease.PATIENCE, lease.BEAT_SECONDS, scheduler.RECHECK_SECONDS = float(patience), 0.05, 0.05
    plan, graph = counting_stages.graph_of(json.loads(stages))
    states = scheduler.run_stages(graph, LocalBackend(), task=plan.task, root=Path(root))
    print(json.dumps({name: state.status for name, state in states.items()}))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
