"""Commands about jobs that were submitted."""

from typing import TYPE_CHECKING, Any

import click

from raydistill.cli.cells import coloured, duration, moment, new_table, plain, print_table
from raydistill.cli.json_output import echo_json
from raydistill.cli.options import json_option
from raydistill.cli.watching import connect, ending, follow_job, head_option, write

if TYPE_CHECKING:
    from raydistill.execution.submit.client import Job, JobsClient


@click.group()
def jobs() -> None:
    """List, watch and stop the jobs of a Ray cluster.

    \b
    distill jobs list --address http://head:8265
    distill jobs logs mnist-quickstart-1121-104500-3f2a -f
    """


@jobs.command("list")
@json_option
@head_option
def list_jobs(as_json: bool, address: str | None) -> None:
    """All jobs that the Ray cluster remembers, the newest first."""
    client = connect(address)
    if as_json:
        echo_json([job_values(client, job) for job in client.jobs()])
        return
    table = new_table("job", "plan", "status", "started", "took", "exit", "by")
    for job in client.jobs():
        table.add_row(
            job.id,
            job.metadata.get("plan", ""),
            coloured(job.status),
            moment(job.started),
            duration(job.seconds),
            "" if job.exit_code is None else str(job.exit_code),
            job.metadata.get("submitted_by", ""),
        )
    print_table(table)


@jobs.command()
@click.argument("job_id", metavar="ID")
@json_option
@head_option
def status(job_id: str, as_json: bool, address: str | None) -> None:
    """What became of a job."""
    client = connect(address)
    job = client.job(job_id)
    if as_json:
        echo_json(job_values(client, job))
        return
    table = new_table("job", job.id)
    rows = {
        "status": coloured(job.status) + ("" if job.exit_code is None else f", exit code {job.exit_code}"),
        "plan": job.metadata.get("plan", ""),
        "runs": job.metadata.get("runs", ""),
        "started": moment(job.started),
        "took": duration(job.seconds),
        "by": job.metadata.get("submitted_by", ""),
        "command": plain(job.entrypoint),
        "dashboard": client.page(job.id),
        "message": plain(job.message.strip().splitlines()[-1] if job.message.strip() else ""),
    }
    for name, text in rows.items():
        if text:
            table.add_row(name, text)
    print_table(table)


@jobs.command()
@click.argument("job_id", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Go on to the job's end; end with its exit code.")
@head_option
def logs(job_id: str, follow: bool, address: str | None) -> None:
    """What a job has written."""
    client = connect(address)
    client.job(job_id)
    if follow:
        follow_job(client, job_id)
    write(client.logs(job_id))


@jobs.command()
@click.argument("job_id", metavar="ID")
@json_option
@head_option
def stop(job_id: str, as_json: bool, address: str | None) -> None:
    """Stop a job: its stages write their checkpoints, and the plan's next run continues from there."""
    from raydistill.execution.submit.following import stop_job

    client = connect(address)
    before = client.job(job_id)
    job = before if before.has_ended else stop_job(client, job_id)
    if as_json:
        echo_json(job_values(client, job))
    else:
        click.echo(f"job `{job_id}`{' had ended' * before.has_ended}: {ending(job)}")


def job_values(client: "JobsClient", job: "Job") -> dict[str, Any]:
    """A job for programs: `status` in Ray's words, times in seconds since 1970."""
    return {
        "id": job.id,
        "status": job.status,
        "exit_code": job.exit_code,
        "plan": job.metadata.get("plan"),
        "runs": job.metadata.get("runs"),
        "submitted_by": job.metadata.get("submitted_by"),
        "started": job.started,
        "ended": job.ended,
        "seconds": job.seconds,
        "command": job.entrypoint,
        "dashboard": client.page(job.id),
        "message": job.message,
    }
