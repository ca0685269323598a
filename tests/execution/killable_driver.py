"""Runs `distill` in processes that a test may kill. They are forked from this one, which imports torch only once.

A line of JSON on stdin holds the arguments, the seconds to sleep in every training step, and variables of the
environment; the answers are the process's id, and when it has ended its exit code (the signal's number, negative, if
one ended it).
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pandas  # noqa: F401 - imported late by pyarrow, and the next one by torch's optimizers: together 3 s
import torch
import torch._dynamo

from raydistill import run_plan
from raydistill.cli import main as distill
from raydistill.kinds.stages import STAGES
from raydistill.lookup import load_object
from raydistill.runs import remote_stage
from raydistill.training import loop

CHECKPOINT_SECONDS = 0.1


class NoTracking:
    """Stands in for the mirror to MLflow."""

    def __init__(self, *arguments: Any) -> None: ...
    def start(self) -> None: ...
    def check(self) -> None: ...
    def hurry(self) -> None: ...
    def finish(self, seconds: float, rest: str = "next time") -> None: ...
    def description(self) -> dict[str, Any]:
        return {"tracking_uri": "nowhere"}


def serve() -> None:
    """One process after the other. Each is reaped when the next line comes, so that its id stays its own."""
    for kind in STAGES:
        load_object(kind.implementation)
    pid = 0
    for line in sys.stdin:
        if pid:
            os.waitpid(pid, 0)
        pid = os.fork()
        if not pid:
            run(**json.loads(line))
        answer(pid)
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        answer(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status)


def run(arguments: list[str], output: str, brake: float, environment: dict[str, str] | None = None) -> None:
    """Be `distill`, and end with its exit code."""
    os.environ.update(environment or {})
    remote_stage.SECONDS_BETWEEN = CHECKPOINT_SECONDS
    terminal = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(terminal, 1)
    os.dup2(terminal, 2)
    plain = loop.seed_generators

    def slowly(seed: int, device: torch.device) -> None:
        time.sleep(brake)
        plain(seed, device)

    loop.seed_generators = slowly
    loop.CHECKPOINT_SECONDS = CHECKPOINT_SECONDS
    run_plan.Mirror = NoTracking  # type: ignore[assignment, misc]
    run_plan.write_report_of = lambda *arguments: None
    code = 1
    try:
        distill(arguments, prog_name="distill")
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def answer(number: int) -> None:
    """To the test."""
    print(number, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    serve()
    os._exit(0)  # at once: the interpreter takes seconds to take torch down
