"""From a checked plan to a job on the Ray cluster."""

import getpass
import re
import socket
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raydistill.errors import PlanError
from raydistill.execution.ray_backend.resources import resources_of_machine
from raydistill.execution.submit.client import JobsClient
from raydistill.execution.submit.command import JobCommand
from raydistill.execution.submit.package import Package, copy_own, write_zip
from raydistill.execution.user_code import user_modules
from raydistill.plan.model import names_registered_models
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan


@dataclass(frozen=True)
class Submission:
    """A job before it is sent. `requirements` are what `installer`, `pip` or `uv`, adds to what the nodes have."""

    id: str
    command: JobCommand
    package: Package
    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    requirements: tuple[str, ...] = ()
    installer: str = "pip"


def send(submission: Submission, client: JobsClient) -> str:
    """Pack, upload what the Ray cluster does not have yet, and start; returns the job's id."""
    with tempfile.TemporaryDirectory(prefix="distill-submit-") as scratch:
        archive = Path(scratch) / "project.zip"
        write_zip(submission.package, archive)
        runtime_env: dict[str, Any] = {
            "working_dir": str(archive),
            "py_modules": [str(copy_own(Path(scratch)))],
            "env_vars": {**submission.environment, **submission.command.environment},
        }
        if submission.requirements:
            runtime_env[submission.installer] = list(submission.requirements)
        return client.submit(submission.command.to_shell(), submission.id, runtime_env, _metadata(submission))


def check_room(plan: Plan, client: JobsClient) -> None:
    """`PlanError` for a stage that no machine of the Ray cluster can ever run; with data or models elsewhere the job
    looks."""
    from raydistill.execution.ray_backend.running import check_feasible

    if names_registered_models(plan.stages.values()):  # which are fetched before anything is ordered
        return
    machines = [resources_of_machine(resources) for resources in client.machines()]
    try:
        nodes = list(order_stages(plan).nodes.values())
    except (OSError, ValueError):
        return
    if machines:
        check_feasible(nodes, machines)


def try_packing(package: Package) -> None:
    """Pack and throw away: `PlanError` for what is too large to send."""
    with tempfile.TemporaryDirectory(prefix="distill-submit-") as scratch:
        write_zip(package, Path(scratch) / "project.zip")


def new_id(name: str) -> str:
    """An id that says what runs and since when."""
    word = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60] or "job"
    return f"{word}-{time.strftime('%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"


def choose_installer(pip: Sequence[str], uv: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Which of the two installs, and what."""
    if pip and uv:
        raise PlanError(
            "`--pip` and `--uv` cannot be mixed: Ray makes one environment; name all with one of them"
        )
    return ("uv", tuple(uv)) if uv else ("pip", tuple(pip))


def modules_not_sent(plan: Plan, package: Package) -> list[str]:
    """Those of them that the package does not hold: the nodes must have them installed."""
    return [
        name
        for name in user_modules(plan)
        if not package.holds(package.folder / (top := name.partition(".")[0]))
        and not package.holds(package.folder / f"{top}.py")
    ]


def _metadata(submission: Submission) -> dict[str, str]:
    return {
        "raydistill": version("raydistill"),
        "plan": submission.name,
        "runs": submission.command.root,
        "submitted_by": f"{_user()}@{socket.gethostname()}",
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's number without a name
        return "unknown"
