"""The call that a group's Ray Train runs in.

It has a file of its own, for what it imports: a driver that launches groups need not load Ray Train, and the process
that it runs in loads modules of ours only after `enter_folder`.
"""

from typing import Any

from raydistill.execution.ray_backend.worker import enter_folder


def run_group(arguments: dict[str, Any]) -> dict[str, Any]:
    """Run Ray Train from this process, so that the driver need not import it; returns the outcome as a dict."""
    enter_folder(arguments["working_folder"])
    from raydistill.execution.ray_backend.group import fit_group

    return fit_group(arguments)
