"""Sending the rest when the command has ended: a process of its own, with what it needs as JSON on stdin, so that no
login stands on a command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

LOG = "tracking.log"
SENDER = "raydistill.tracking.send_rest"

_left_behind: list[subprocess.Popen[str]] = []
"""Nobody waits for them; without this list Python would complain about that."""


def start_module(
    module: str, request: Any, output: int | IO[str] = subprocess.DEVNULL
) -> "subprocess.Popen[str]":
    """Run a module of ours in a process of its own, which reads a request as JSON from stdin."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        text=True,
        start_new_session=True,  # an interrupt at the terminal is not meant for it
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(request))
    process.stdin.close()
    return process


def send_later(folder: Path, root: Path, uri: str) -> int:
    """Start a process that sends the rest of a run as soon as nobody else mirrors it; returns its id."""
    request = {"folder": str(folder), "root": str(root), "uri": uri}
    with (folder / LOG).open("w", encoding="utf-8") as output:
        process = start_module(SENDER, request, output)
    _left_behind.append(process)
    return process.pid
