"""What runs in the processes that Ray starts: a stage worker, and one rank of a group under Ray Train.

Our other modules are imported inside the functions, after `enter_folder`: Ray puts the driver's working folder first
on the path, where a user's own `json.py` or `torch.py` would hide the real one.
"""

import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

LOOK_SECONDS = 1.0
STOP = "stop"

# How the libraries under `torch.distributed` say that another worker is gone: gloo by the path of its source file in
# the message, NCCL and the rendezvous store by the type of the error.
OF_LOST_PEERS = (
    "/gloo/",
    "DistBackendError",
    "DistNetworkError",
    "DistStoreError",
    "Connection closed by peer",
)


class StageFailed(Exception):  # noqa: N818 - carries an outcome through Ray Train
    """A stage failed by its own error on one rank; its argument is the outcome as a dict."""


class PeerLost(Exception):  # noqa: N818
    """A rank could not go on because another one is gone."""


class StageWorker:
    """A process that runs one stage at a time and stays warm for the next. It has two threads: `stop` is heard."""

    def __init__(self, working_folder: str) -> None:
        # Ray starts workers in a folder of its own, and each would write there what a plan's relative paths name.
        enter_folder(working_folder)
        self._device = "cuda" if ray.get_gpu_ids() else "cpu"
        if self._device == "cpu":
            # A worker without GPUs still sees all of them, and torch would hold some memory of the first.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        import torch  # noqa: F401 - seconds, paid before the first stage

        from raydistill.execution.termination import Termination

        self._termination = Termination()
        self._stopped: set[str] = set()

    def run(self, request: dict[str, Any], rank: int = 0) -> dict[str, Any]:
        """Run a `StageRequest`, as one of its workers; returns the `Outcome`, both as dicts."""
        from raydistill.execution.request import StageRequest
        from raydistill.execution.run_stage import run_stage

        stage = StageRequest(**request)
        with self._termination.work():
            outcome = run_stage(
                stage,
                should_stop=lambda: self._should_stop(stage.attempt),
                rank=rank,
                world=stage.shape.workers,
                device=self._device,
                node_id=ray.get_runtime_context().get_node_id(),
            )
        return outcome.__dict__

    def run_stack(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Run stages that train as one batched model; the outcome of each."""
        from raydistill.execution.request import StageRequest
        from raydistill.execution.run_stack import run_stack

        with self._termination.work():
            outcomes = run_stack(
                [StageRequest(**request) for request in requests],
                should_stop=self._should_stop,
                device=self._device,
                node_id=ray.get_runtime_context().get_node_id(),
            )
        return [outcome.__dict__ for outcome in outcomes]

    def stop(self, attempt: str) -> None:
        """Ask the attempt to write a checkpoint and stop, whether or not it has begun."""
        self._stopped.add(attempt)

    def _should_stop(self, attempt: str) -> bool:
        return attempt in self._stopped or self._termination.is_announced()


def run_rank(arguments: dict[str, Any]) -> dict[str, Any]:
    """One rank of a group, called by Ray Train once `torch.distributed` is set up; returns the outcome as a dict.

    A failure is raised, or the other ranks would wait for this one for ever.
    """
    enter_folder(arguments["working_folder"])
    try:
        outcome = _run_rank(arguments)
    except Exception as error:  # whatever it is, three restarts would meet it again
        raise StageFailed({"status": "failed", "error": f"{type(error).__name__}: {error}"}) from error
    if outcome["status"] == "failed":
        raise PeerLost(outcome["error"]) if _blames_a_peer(outcome["error"]) else StageFailed(outcome)
    return outcome


def _run_rank(arguments: dict[str, Any]) -> dict[str, Any]:
    from ray.train import get_context
    from ray.train.torch import get_device

    from raydistill.execution.request import StageRequest
    from raydistill.execution.run_stage import run_stage

    context = get_context()
    outcome = run_stage(
        StageRequest(**arguments["request"]),
        should_stop=StopFile(arguments["request"]["root"], arguments["stop_file"]),
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        device=str(get_device()) if arguments["uses_gpus"] else "cpu",
        node_id=ray.get_runtime_context().get_node_id(),
    )
    return outcome.__dict__


class StopFile:
    """Whether a file has appeared below a storage root; looks at most once per `LOOK_SECONDS`."""

    def __init__(self, root: str, name: str) -> None:
        from raydistill.runs.mirror import open_storage

        self._path = open_storage(root) / name
        self._looked = 0.0
        self._is_there = False

    def __call__(self) -> bool:
        if not self._is_there and time.monotonic() - self._looked >= LOOK_SECONDS:
            from raydistill.errors import StoreError
            from raydistill.runs.mirror import bring

            self._looked = time.monotonic()
            with suppress(StoreError):  # no way to ask now; the next look tells
                bring(self._path)
            self._is_there = self._path.exists()
        return self._is_there


def enter_folder(folder: str) -> None:
    """Work where the driver works: its relative paths and modules mean the same here, but hide none of ours."""
    # Last on the path: a user's `random.py` beside his plan must not hide the library's from ours.
    sys.path[:] = [entry for entry in sys.path if entry not in ("", folder)]
    sys.path.append(folder)
    if Path(folder).is_dir():
        os.chdir(folder)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")


def _blames_a_peer(error: str) -> bool:
    return any(word in error for word in OF_LOST_PEERS)
