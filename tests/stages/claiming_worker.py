"""Starts workers of a stage that divides its work by claims, each in a process of its own, forked from this one, which
has imported torch already.

Each line of standard input is `{"rank": …, "request": path}`; the answer is the worker's process id. Its outcome is
written beside the request, as `outcome-RANK.json`. A file `brake` there holds seconds to sleep before each batch.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from raydistill.execution.request import StageRequest
from raydistill.execution.run_stage import run_stage
from raydistill.runs.files import write_json
from raydistill.stages import predict_targets  # noqa: F401 - imported once, before the forks


def work(rank: int, path: Path) -> None:
    request = StageRequest(**json.loads(path.read_text()))
    brake = path.with_name("brake")

    def asked_before_each_batch() -> bool:
        if brake.exists():
            time.sleep(float(brake.read_text()))
        return False

    outcome = run_stage(request, should_stop=asked_before_each_batch, rank=rank, world=request.shape.workers)
    write_json(path.with_name(f"outcome-{rank}.json"), [outcome.status, outcome.error])


def serve() -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # killed ones are gone at once
    for line in sys.stdin:
        order = json.loads(line)
        if (pid := os.fork()) == 0:
            work(order["rank"], Path(order["request"]))
            os._exit(0)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
