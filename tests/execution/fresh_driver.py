"""A driver of its own, run by a test: starts the requests in the JSON file it is given, prints one line of JSON."""

import json
import signal
import sys
from pathlib import Path

from orchestrator.execution.ray_backend import RayBackend
from orchestrator.execution.request import StageRequest


def own_handler(signum: int, frame: object) -> None:
    """What a command line would do about SIGTERM."""


def main(requests: list[StageRequest]) -> None:
    """Start what fits, and wait for that."""
    signal.signal(signal.SIGTERM, own_handler)
    backend = RayBackend(cpus=4)
    started = [request.name for request in requests if backend.try_start(request)]
    errors: dict[str, str | None] = {}
    while len(errors) < len(started):
        errors |= {name: outcome.error for name, outcome in backend.wait(1.0)}
    has_own_handler = signal.getsignal(signal.SIGTERM) is own_handler
    backend.close()
    print(json.dumps({"started": started, "errors": errors, "has_own_handler": has_own_handler}))  # noqa: T201


if __name__ == "__main__":
    main([StageRequest(**values) for values in json.loads(Path(sys.argv[1]).read_text())])
