"""A driver of its own, run by a test: starts the requests in the JSON file it is given, prints one line of JSON."""

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from raydistill.execution.ray_backend import RayBackend
from raydistill.execution.request import StageRequest


def own_handler(signum: int, frame: object) -> None:
    """What a command line would do about SIGTERM."""


def main(requests: list[StageRequest]) -> None:
    """Start what fits, and wait for that."""
    signal.signal(signal.SIGTERM, own_handler)
    backend = RayBackend(cpus=4)
    assert "ray" not in sys.modules  # its environment is set before it is imported
    started = [request.name for request in requests if backend.try_start(request)]
    import ray

    gpu_is_shared_out = waited_for(lambda: not ray.available_resources().get("GPU"))
    errors: dict[str, str | None] = {}
    while len(errors) < len(started):
        errors |= {name: outcome.error for name, outcome in backend.wait(1.0)}
    has_own_handler = signal.getsignal(signal.SIGTERM) is own_handler
    backend.close()
    print(  # noqa: T201
        json.dumps(
            {
                "started": started,
                "gpu_is_shared_out": gpu_is_shared_out,
                "errors": errors,
                "has_own_handler": has_own_handler,
            }
        )
    )


def waited_for(claim: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether the claim came true in time."""
    deadline = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


if __name__ == "__main__":
    main([StageRequest(**values) for values in json.loads(Path(sys.argv[1]).read_text())])
