"""Reservations of groups that are gone: nobody else gives their room back while the driver lives.

Ray Train reserves the room of a group as a placement group, and has a process that frees it when the group's controller
dies. That process hears of a placement group only once all workers have started (ray 2.60): of a controller that is
killed before, the room stays taken, and the next attempt waits for it for ever.
"""

import logging
import time

import ray
from ray.util.placement_group import placement_group_table, remove_placement_group

from raydistill.execution.ray_backend.private import placement_group

# In which a living group puts its workers where it has reserved, and Ray Train cleans up.
SETTLE_SECONDS = 5.0
LOOK_SECONDS = 0.5

log = logging.getLogger(__name__)


def free_abandoned() -> None:
    """Give back what this driver's placement groups reserve without anybody using it; waits to see that nobody does."""
    deadline, abandoned = time.monotonic() + SETTLE_SECONDS, _unused()
    while abandoned and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
        abandoned &= _unused()
    for name in abandoned:
        log.warning("gave back the room of a group whose controller is gone (placement group %s)", name)
        remove_placement_group(placement_group(name))


def _unused() -> set[str]:
    """Ids of placement groups, made by this driver's processes for workers of a group, in which nothing runs."""
    job = ray.get_runtime_context().get_job_id()  # an id ends with that of the job that made it
    there, free = ray.cluster_resources(), ray.available_resources()
    return {
        name
        for name, entry in placement_group_table().items()
        if name.endswith(job)
        and entry["state"] != "REMOVED"
        and any(
            bundle.keys() & {"CPU", "GPU"} for bundle in entry["bundles"].values()
        )  # not for a trial's actor
        and there.get(f"bundle_group_{name}") == free.get(f"bundle_group_{name}")
    }
