"""What the commands about jobs share: the Ray cluster's client, and following a job to its end."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from raydistill.cli.cells import duration
from raydistill.cli.group import INTERRUPTED

if TYPE_CHECKING:
    from raydistill.execution.submit.client import Job, JobsClient


head_option = click.option(
    "--address",
    metavar="URL",
    help="The Ray cluster's dashboard, http://HEAD:8265; RAY_API_SERVER_ADDRESS, or this machine's, if left out.",
)


def connect(address: str | None) -> "JobsClient":
    """The cluster's client, after a word about versions that differ."""
    from raydistill.execution.submit.client import JobsClient, check_versions

    client = JobsClient(address)
    if remark := check_versions(client.versions):
        click.echo(f"note: {remark}", err=True)
    return client


def follow_job(client: "JobsClient", job_id: str) -> None:
    """Print a job's log to its end, and end with its exit code."""
    from raydistill.execution.submit.following import follow

    end_with(client, job_id, lambda: follow(client, job_id, write))


def end_with(client: "JobsClient", job_id: str, watch: "Callable[[], Job]") -> None:
    """End as the job ends. An interrupt leaves it alone, or stops it if the person at the terminal says so."""
    from raydistill.execution.submit.following import exit_code, stop_job

    try:
        job = watch()
    except KeyboardInterrupt:
        click.echo("", err=True)
        if _wants_to_stop(job_id):
            click.echo(f"job `{job_id}`: {ending(stop_job(client, job_id))}", err=True)
        else:
            options = f"{job_id} --address {client.address}"
            click.echo(
                f"job `{job_id}` goes on: `distill jobs logs -f {options}` follows it, `distill jobs stop {options}`"
                " stops it",
                err=True,
            )
        sys.exit(INTERRUPTED)
    click.echo(f"job `{job_id}`: {ending(job)}", err=True)
    sys.exit(exit_code(job))


def write(text: str) -> None:
    """Part of a log, as it is."""
    sys.stdout.write(text)
    sys.stdout.flush()


def ending(job: "Job") -> str:
    """How a job ended, in words."""
    took = f" after {duration(job.seconds)}" if job.seconds is not None else ""
    how = {"SUCCEEDED": "succeeded", "FAILED": "failed", "STOPPED": "stopped"}.get(
        job.status, job.status.lower()
    )
    code = f" with exit code {job.exit_code}" if job.exit_code else ""
    return f"{how}{code}{took}{_hint(job)}"


def _hint(job: "Job") -> str:
    """The way out for the two mistakes of a head node that a job cannot name itself."""
    if job.status != "FAILED":
        return ""
    if job.exit_code == 127 or "No module named" in job.message:
        return (
            "; a job runs the first `python` on the PATH that the head was started with: start it from an environment"
            " that has raydistill's dependencies"
        )
    if job.exit_code is None and job.message:
        return f": {job.message.strip().splitlines()[-1]}"
    return ""


def _wants_to_stop(job_id: str) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    try:
        answer = click.prompt(
            f"job `{job_id}` is running: detach from it, or stop it?",
            type=click.Choice(["detach", "stop"]),
            default="detach",
            err=True,
        )
    except (click.Abort, KeyboardInterrupt):
        return False
    return bool(answer == "stop")
