"""Why a process is gone, in one line that says what to change; and the record that it could not write."""

import time
from typing import Any

from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from raydistill.runs.record import Record, summary_of

# What Ray's memory monitor and a kernel that killed a process leave in a message.
OUT_OF_MEMORY = ("memory monitor", "memory on the node", "running low on memory")


def describe_loss(stage: str, error: BaseException) -> str:
    """One line for the table of outcomes. `error` is Ray's, which fills a screen."""
    if is_out_of_memory(error):
        return (
            f"a process of stage `{stage}` was ended because its machine ran out of memory; set its"
            " `resources.memory` to what it needs, so that fewer stages share a machine, or lower its `batch_size`"
        )
    if isinstance(error, RayTaskError) and error.cause is not None:
        return f"a process of stage `{stage}` failed: {summary_of(error.cause)}"
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return f"a process of stage `{stage}` does not start: {str(error).strip().splitlines()[-1]}"
    if not isinstance(error, RayError):
        return f"a process of stage `{stage}` failed: {summary_of(error)}"
    return (
        f"a process of stage `{stage}` died without a word; if its machine was short of memory, set its"
        " `resources.memory`, so that fewer stages share a machine"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Ray says that it ended a process for the memory it, or its neighbours, used."""
    return isinstance(error, OutOfMemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


def record_failure(request: dict[str, Any], error: str, traceback: str | None = None) -> None:
    """No process has recorded this: those that died could not, the others only missed them.

    Whatever is left of the attempt may not publish any more.
    """
    from raydistill.runs.context import claim_attempt
    from raydistill.runs.folder import StageFolder
    from raydistill.runs.mirror import open_storage
    from raydistill.runs.placement import nodes_of, read_places

    folder = StageFolder(open_storage(request["root"]) / request["folder"])
    # Before the record is written: a process that only hangs may wake up and publish over it.
    claim_attempt(folder, f"{request['attempt']}-ended")
    workers = int(request["resources"].get("workers", 1))
    record = Record(
        kind=request["kind"],
        fingerprint=request["fingerprint"],
        status="failed",
        seconds=0.0,
        finished=time.time(),
        error=error,
        traceback=traceback,
        workers=workers,
        nodes=nodes_of(read_places(folder.path, request["attempt"], workers)),
        attempts=request["number"],
    )
    folder.write_failure(record)
