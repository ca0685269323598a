"""A stage on several workers: data-parallel under Ray Train, from a call of its own so that it can be cancelled.

A worker that dies restarts the group from the stage's own checkpoint. A stage that fails by its own error ends the
group at once: Ray Train retries whatever a worker raises, but not what a callback in its controller raises.
"""

import os
from typing import Any

from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from raydistill.execution.ray_backend.failures import describe_loss, record_failure
from raydistill.execution.ray_backend.private import train_callback
from raydistill.execution.ray_backend.worker import PeerLost, StageFailed, enter_folder, run_rank
from raydistill.runs.record import summary_of

UserCallback: Any = train_callback()

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # 7 s in place of 15 s for the shortest group
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def fit_group(arguments: dict[str, Any]) -> dict[str, Any]:
    """Run a stage on `workers` workers and return the outcome of rank 0, or of the rank that failed, as a dict."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    resources = arguments["resources"]
    trainer = TorchTrainer(
        run_rank,
        train_loop_config=arguments,
        scaling_config=ScalingConfig(
            num_workers=arguments["workers"],
            use_gpu=arguments["uses_gpus"],
            resources_per_worker=resources,
            label_selector=arguments["label_selector"],
        ),
        run_config=RunConfig(
            name=arguments["request"]["attempt"],  # a name used twice would resume
            storage_path=arguments["scratch"],
            # Ray Train restarts a group from within, 6 s after a worker died: our own retry would start it anew, 16 s.
            failure_config=FailureConfig(max_failures=arguments["request"]["resources"]["retries"]),
            callbacks=[EndWhenStageFails(arguments)],
        ),
        # NCCL refuses two ranks on one GPU.
        torch_config=TorchConfig(backend="nccl" if resources.get("GPU", 0) >= 1 else "gloo"),
    )
    try:
        outcome: dict[str, Any] = trainer.fit().return_value
    except ControllerError as error:
        if not isinstance(error.controller_failure, StageFailed):
            return {"status": "lost", "error": f"Ray Train gave up: {summary_of(error.controller_failure)}"}
        outcome = error.controller_failure.args[0]
    except WorkerGroupError as error:
        why = _why(arguments["request"], error)
        record_failure(arguments["request"], why)
        return {"status": "failed", "error": why}
    return outcome


class EndWhenStageFails(UserCallback):
    """Lives in Ray Train's controller: raising there ends the group for good."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._arguments = arguments

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """End the group when every rank that raised did so by the stage's own error."""
        errors = list(worker_exceptions.values())
        if all(isinstance(error, StageFailed) for error in errors):
            self._silence_other_ranks()
            raise errors[0]

    def _silence_other_ranks(self) -> None:
        """The end of the group looks like an error of their own to the other ranks: they may not record it."""
        enter_folder(self._arguments["working_folder"])
        from raydistill.runs.context import claim_attempt
        from raydistill.runs.folder import StageFolder
        from raydistill.runs.mirror import open_storage

        request = self._arguments["request"]
        claim_attempt(
            StageFolder(open_storage(request["root"]) / request["folder"]), f"{request['attempt']}-ended"
        )


def _why(request: dict[str, Any], error: WorkerGroupError) -> str:
    """What a rank died of, rather than that another one missed it."""
    failures = sorted(error.worker_failures.values(), key=lambda failure: isinstance(failure, PeerLost))
    cause = getattr(failures[0], "health_check_failure", failures[0])
    restarts = request["resources"]["retries"]
    return f"{describe_loss(request['name'], cause)} (after {restarts} restart{'s' * (restarts != 1)})"
