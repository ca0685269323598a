"""The back end that a scheduler sees. Ray is imported and started when the first stage needs it, not before.

Nothing here imports ray or the rest of the execution layer: a run whose stages are all cached never pays for Ray, and
Ray reads part of its environment once, while it is being imported.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raydistill.execution.ray_backend.connection import connect, leave

if TYPE_CHECKING:
    from raydistill.execution.ray_backend.resources import Resources
    from raydistill.execution.ray_backend.running import RunningStages
    from raydistill.execution.ray_backend.storage import SharedStorage
    from raydistill.execution.request import Outcome, StageRequest
    from raydistill.plan.order import Node


class RayBackend:
    """Runs stages on a Ray cluster: the one at `address`, or one of this machine's own with `cpus` CPUs.

    Without an `address`, `RAY_ADDRESS` names the Ray cluster (as inside a Ray job); without that too, one is started
    here and ended by `close`. A Ray that this process has already joined is used as it is, and left running.

    `on_report` hears the name of a stage and what it reports. Of several back ends on one Ray cluster, each keeps to
    its `share`.
    """

    def __init__(
        self,
        address: str | None = None,
        cpus: int | None = None,
        *,
        on_report: "Callable[[str, Mapping[str, float]], None] | None" = None,
        share: "Resources | None" = None,
    ) -> None:
        self._address = address
        self._cpus = cpus
        self._on_report = on_report
        self._share = share
        self._stages: RunningStages | None = None
        self._storage: SharedStorage | None = None
        self._owns_ray = False

    def check_feasible(self, nodes: Sequence["Node"]) -> None:
        """`PlanError` when a node asks for more than the Ray cluster's machines have."""
        if nodes:
            self._connected().check_feasible(nodes)

    def try_start(self, request: "StageRequest") -> bool:
        """Start a stage if the Ray cluster has room for it beside what runs; False leaves it waiting.

        `PlanError`, before the first one starts, when a node does not see the storage root; `StageError` when the Ray
        cluster is gone.
        """
        stages = self._connected()
        if not stages.has_ray():
            return False
        return stages.try_start(request, avoided=self._check_storage(request.root))

    def wait(self, seconds: float) -> list[tuple[str, "Outcome"]]:
        """Names and outcomes of attempts that ended; returns at once when there are some, else after `seconds`."""
        if self._stages is None:
            time.sleep(seconds)
            return []
        return self._stages.wait(seconds)

    def stop(self) -> list[tuple[str, "Outcome"]]:
        """Ask running stages to write a checkpoint and stop; end those that do not."""
        return [] if self._stages is None else self._stages.stop()

    def close(self) -> None:
        """End all workers, and the Ray cluster if it was started or joined here."""
        if self._stages is None:
            return
        self._stages.close()
        self._stages = self._storage = None
        if self._owns_ray:
            leave()

    def _check_storage(self, root: str) -> frozenset[str]:
        from raydistill.execution.ray_backend.storage import SharedStorage

        if self._storage is None:
            self._storage = SharedStorage()
        return self._storage.check(Path(root).resolve())

    def _connected(self) -> "RunningStages":
        if self._stages is None:
            self._owns_ray = connect(self._address, self._cpus)
            from raydistill.execution.ray_backend.running import RunningStages

            folder = os.getcwd()  # noqa: PTH109 - a plain string for workers
            self._stages = RunningStages(folder, on_report=self._on_report, share=self._share)
        return self._stages
