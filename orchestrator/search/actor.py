"""A Ray Tune actor that runs one trial after another: torch is imported once, training goes on while Tune thinks.

A trial that needs several workers at once only has its driver here.

Our other modules are imported inside the functions, after `enter_folder`, as in `execution/ray_backend/worker.py`.
"""

import json
import os
import queue
import threading
import time
from contextlib import suppress
from typing import Any

import ray
from ray import tune

from raydistill.execution.ray_backend.resources import Resources
from raydistill.execution.ray_backend.worker import StopFile, enter_folder

METRIC, EPOCH, EPOCHS, RESULT = "metric", "epoch", "epochs", "result"


class TrialStop(threading.Event):
    """Set for one trial by Tune, or for all by a file."""

    def __init__(self, root: str, name: str) -> None:
        super().__init__()
        self._file = StopFile(root, name)

    def is_set(self) -> bool:
        """Whether the trial is to write its checkpoint and end."""
        return super().is_set() or self._file()


class TrialActor(tune.Trainable):
    """A `step` is one or more epochs of the metric's stage; the last one carries the trial's result.

    A thread trains and this one reports, so that a trial which Tune gives up can write its checkpoint. A report costs
    the driver some 10 ms: where nobody decides by it, those of `seconds_between` come together.
    """

    def setup(
        self,
        config: dict[str, Any],
        working_folder: str = "",
        stop_file: tuple[str, str] = ("", ""),
        share: Resources | None = None,
        seconds_between: float = 0.0,
    ) -> None:
        """Called once per process, with its first trial."""
        self._seconds_between = seconds_between
        self._working_folder, self._stop_file, self._share = working_folder, stop_file, share
        if not ray.get_gpu_ids():
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a process without GPUs still sees all of them
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End one trial, begin another."""
        self._end()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for what the trial reports next."""
        news = self._news.get()
        epochs, until = news[EPOCHS], time.monotonic() + self._seconds_between
        while RESULT not in news and (seconds := until - time.monotonic()) > 0:
            with suppress(queue.Empty):
                news = self._news.get(timeout=seconds)
                epochs |= news[EPOCHS]
        return {**news, EPOCHS: epochs}

    def cleanup(self) -> None:
        """The process is no longer needed."""
        self._end()

    def _begin(self, config: dict[str, Any]) -> None:
        enter_folder(self._working_folder)  # again: Tune has gone to the trial's folder
        self._news: queue.Queue[dict[str, Any]] = queue.Queue()
        self._stop = TrialStop(*self._stop_file)
        self._thread = threading.Thread(
            target=self._train,
            args=(json.loads(config["request"]), self._share, self._stop, self._news),
            daemon=True,
        )
        self._thread.start()

    def _end(self) -> None:
        self._stop.set()
        self._thread.join()

    @staticmethod
    def _train(
        request: dict[str, Any],
        share: Resources | None,
        stop: threading.Event,
        news: "queue.Queue[dict[str, Any]]",
    ) -> None:
        last = 0

        def report(epoch: int, value: float) -> None:
            nonlocal last
            last = epoch
            news.put({EPOCH: epoch, METRIC: value, EPOCHS: {epoch: value}})

        try:
            from raydistill.search.trial import TrialRequest, run_trial

            result = dict(run_trial(TrialRequest(**request), stop=stop, report=report, share=share).__dict__)
        except Exception as error:  # an import that fails, too: or Tune would wait for ever
            message = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
            result = {"status": "failed", "error": message.splitlines()[0]}
        value = float("nan") if result.get("metric") is None else result["metric"]
        news.put({"done": True, EPOCH: last, METRIC: value, EPOCHS: {}, RESULT: result})
