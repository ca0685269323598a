"""Commands about jobs that were submitted."""

import click

from raydistill.cli.cells import coloured, duration, moment, new_table, plain, print_table
from raydistill.cli.watching import connect, ending, follow_job, head_option, write


@click.group()
def jobs() -> None:
    """List, watch and stop the jobs of a Ray cluster.

    \b
    distill jobs list --address http://head:8265
    distill jobs logs mnist-quickstart-1121-104500-3f2a -f
    """


@jobs.command("list")
@head_option
def list_jobs(address: str | None) -> None:
    """All jobs that the Ray cluster remembers, the newest first."""
    client = connect(address)
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
@head_option
def status(job_id: str, address: str | None) -> None:
    """What became of a job."""
    client = connect(address)
    job = client.job(job_id)
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
@head_option
def stop(job_id: str, address: str | None) -> None:
    """Stop a job: its stages write their checkpoints, and the plan's next run continues from there."""
    from raydistill.execution.submit.following import stop_job

    client = connect(address)
    before = client.job(job_id)
    if before.has_ended:
        click.echo(f"job `{job_id}` had ended: {ending(before)}")
        return
    click.echo(f"job `{job_id}`: {ending(stop_job(client, job_id))}")
