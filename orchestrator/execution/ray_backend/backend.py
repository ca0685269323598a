"""The back end that a scheduler sees. Ray is imported and started when the first stage needs it, not before.

Nothing here imports ray or the rest of the execution layer: a run whose stages are all cached never pays for Ray, and
Ray reads part of its environment once, while it is being imported.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from raydistill.errors import PlanError
from raydistill.execution.ray_backend.connection import connect, is_local, leave
from raydistill.runs.mirror import open_storage, storage_name

if TYPE_CHECKING:
    from raydistill.execution.makespan import Room
    from raydistill.execution.ray_backend.cluster_health import GuardedCalls
    from raydistill.execution.ray_backend.resources import Limit, Resources
    from raydistill.execution.ray_backend.running import RunningStages
    from raydistill.execution.ray_backend.storage import SharedStorage
    from raydistill.execution.request import Outcome, StageRequest
    from raydistill.plan.order import Node
    from raydistill.plan.resources import ResourcesConfig
    from raydistill.runs.placement import Placement


class RayBackend:
    """Runs stages on a Ray cluster: the one at `address`, or one of this machine's own with `cpus` CPUs.

    Without an `address`, `RAY_ADDRESS` names the Ray cluster (as inside a Ray job); without that too, one is started
    here and ended by `close`. A Ray that this process has already joined is used as it is, and left running.

    `on_report` hears the name of a stage and what it reports. Of several back ends on one Ray cluster, each keeps to
    its `share`. What runs at a time holds no more than the `limit`. Where it `can_grow`, the Ray cluster's autoscaler
    is asked for what there is no room for.
    """

    def __init__(
        self,
        address: str | None = None,
        cpus: int | None = None,
        *,
        on_report: "Callable[[str, Mapping[str, float]], None] | None" = None,
        share: "Resources | None" = None,
        limit: "Limit | None" = None,
        can_grow: bool = True,
    ) -> None:
        self._address = address
        self._cpus = cpus
        self._on_report = on_report
        self._share, self._limit, self._can_grow = share, limit, can_grow
        self._stages: RunningStages | None = None
        self._guarded: GuardedCalls | None = None
        self._storage: SharedStorage | None = None
        self._owns_ray = False

    def check_feasible(self, nodes: Sequence["Node"]) -> None:
        """`PlanError` when a node asks for more than the Ray cluster's machines have."""
        if nodes:
            stages, guarded = self._connected()
            guarded(stages.check_feasible, nodes)

    def room(self) -> "Room":
        """The Ray cluster's machines as they are now, and the limit."""
        stages, guarded = self._connected()
        return guarded(stages.room)

    def want(self, waiting: Iterable["Node"]) -> None:
        """Let a Ray cluster that can grow do so."""
        stages, guarded = self._connected()
        guarded(stages.want, waiting)

    def try_start(self, request: "StageRequest", *others: "StageRequest") -> bool:
        """Start a stage if the Ray cluster has room for it beside what runs, and others in the same process; False
        leaves them waiting.

        `PlanError`, before the first one starts, when a node does not see the storage root; `ClusterLost` when the Ray
        cluster is gone.
        """
        stages, guarded = self._connected()
        return guarded(self._try_start, stages, request, *others)

    def has_gpu_for(self, resources: "ResourcesConfig") -> bool:
        """Whether a stage of this shape gets a GPU of the Ray cluster."""
        stages, guarded = self._connected()
        return guarded(stages.has_gpu_for, resources)

    def places(self, resources: "ResourcesConfig") -> int:
        """How many stages of this shape the Ray cluster has room for beside what runs."""
        stages, guarded = self._connected()
        return guarded(stages.places, resources)

    def wait(self, seconds: float) -> list[tuple[str, "Outcome"]]:
        """Names and outcomes of attempts that ended; returns at once when there are some, else after `seconds`."""
        if self._stages is None or self._guarded is None:
            time.sleep(seconds)
            return []
        self._guarded(self._grow, self._stages)
        return self._guarded(self._stages.wait, seconds)

    def placements(self) -> "Mapping[str, Placement]":
        """Of the attempts that run: whether Ray has found them room, whether their processes have begun, and where."""
        if self._stages is None or self._guarded is None:
            return {}
        return self._guarded(self._stages.placements)

    def stop(self) -> list[tuple[str, "Outcome"]]:
        """Ask running stages to write a checkpoint and stop; end those that do not."""
        if self._stages is None or self._guarded is None:
            return []
        return self._guarded(self._stages.stop)

    def close(self) -> None:
        """End all workers, and the Ray cluster if it was started or joined here. Those of one that is gone end without
        us."""
        if self._stages is None or self._guarded is None:
            return
        # A call that Ray still owes us blocks the thread of all others: nothing more can be asked for.
        is_lost = self._guarded.health.is_lost
        if not is_lost:
            self._guarded(self._stages.close)
        self._guarded.end()
        self._stages = self._storage = self._guarded = None
        if self._owns_ray:
            leave(is_lost=is_lost)

    def _try_start(self, stages: "RunningStages", request: "StageRequest", *others: "StageRequest") -> bool:
        if not stages.has_ray():
            return False
        return stages.try_start(request, *others, avoided=self._check_storage(request.root))

    def _grow(self, stages: "RunningStages") -> None:
        if (root := stages.short_of_workers()) is not None and stages.has_ray():
            stages.grow(self._check_storage(root))

    def _check_storage(self, root: str) -> frozenset[str]:
        from raydistill.execution.ray_backend.storage import SharedStorage

        if self._storage is None:
            self._storage = SharedStorage()
        return self._storage.check(storage_name(open_storage(root).resolve()))

    def _connected(self) -> "tuple[RunningStages, GuardedCalls]":
        if self._stages is None or self._guarded is None:
            folder = working_folder()  # before Ray starts, which takes seconds and never looks at it
            self._owns_ray = connect(self._address, self._cpus)
            from raydistill.execution.ray_backend.cluster_health import GuardedCalls, health_of
            from raydistill.execution.ray_backend.resources import NO_LIMIT
            from raydistill.execution.ray_backend.running import RunningStages

            health = health_of(is_own=self._owns_ray and is_local(self._address))
            self._guarded = GuardedCalls(health)
            self._stages = RunningStages(
                folder,
                health,
                on_report=self._on_report,
                share=self._share,
                limit=self._limit or NO_LIMIT,
                can_grow=self._can_grow,
            )
        return self._stages, self._guarded


def working_folder() -> str:
    """The folder that the command works in; `PlanError` where it has been deleted under it."""
    try:
        return os.getcwd()  # noqa: PTH109 - a plain string for workers
    except FileNotFoundError:
        raise PlanError(
            "the working folder was deleted; go to one that is there and run the command again (several Ray nodes of"
            " one machine must not share a temporary folder: one of them deletes the files of jobs that others run)"
        ) from None
