"""Commands about Ray clusters: send a plan there, watch the jobs, and look whether the machines are fit for it."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.graphs import load_graph
from orchestrator.cli.group import DONE, FAILED, INTERRUPTED
from orchestrator.cli.options import runs_option, tracking_option
from orchestrator.errors import PlanError

if TYPE_CHECKING:
    from orchestrator.execution.submit.client import Job, JobsClient
    from orchestrator.execution.submit.sending import Submission
    from orchestrator.plan.schema import Plan

head_option = click.option(
    "--address",
    metavar="URL",
    help="The Ray cluster's dashboard, http://HEAD:8265; RAY_API_SERVER_ADDRESS, or this machine's, if left out.",
)


@click.command()
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.argument("more", nargs=-1, metavar="[-- OPTION...]")
@click.option("--tune", "searches", is_flag=True, help="Send `distill tune`, in place of `distill run`.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a value of the plan.")
@click.option("--only", multiple=True, metavar="STAGE", help="Run this stage and what it reads.")
@click.option("--force", multiple=True, metavar="STAGE", help="Run this stage again from the start.")
@head_option
@click.option(
    "--runs", "root", type=click.Path(path_type=Path), help="Storage root: absolute, seen by every node."
)
@tracking_option
@click.option(
    "--exclude", multiple=True, metavar="PATTERN", help="Leave files out, as a line of .gitignore would."
)
@click.option("--include", multiple=True, metavar="PATTERN", help="Send files that would be left out.")
@click.option(
    "--env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable of the job, or pass this shell's on."
)
@click.option("--pip", multiple=True, metavar="REQUIREMENT", help="Install on top of what the nodes have.")
@click.option("--uv", multiple=True, metavar="REQUIREMENT", help="The same, with uv.")
@click.option("--submission-id", metavar="ID", help="Name the job.")
@click.option("--follow", is_flag=True, help="Print the job's log as it grows; end with its exit code.")
@click.option("--wait/--no-wait", default=False, help="End when the job ends, with its exit code.")
@click.option("--dry-run", is_flag=True, help="Print what would be sent and run; send nothing.")
def submit(
    plan_file: Path,
    more: tuple[str, ...],
    searches: bool,
    overrides: tuple[str, ...],
    only: tuple[str, ...],
    force: tuple[str, ...],
    address: str | None,
    root: Path | None,
    tracking_uri: str | None,
    exclude: tuple[str, ...],
    include: tuple[str, ...],
    env: tuple[str, ...],
    pip: tuple[str, ...],
    uv: tuple[str, ...],
    submission_id: str | None,
    follow: bool,
    wait: bool,
    dry_run: bool,
) -> None:
    """Check a plan here, and run it as a job on a Ray cluster.

    The working folder travels with it, without data, results, hidden files and what .gitignore and .rayignore name.
    Options behind `--` are passed on as they are.

    \b
    distill submit configs/mnist_quickstart.yaml --address http://head:8265 --runs /shared/runs --follow
    distill submit plan.yaml --runs /shared/runs --set stages.student.epochs=10 --env HF_TOKEN
    """
    from orchestrator.execution.submit.command import (
        JobCommand,
        check_root,
        check_submission_id,
        read_environment,
    )
    from orchestrator.execution.submit.package import collect, plan_name
    from orchestrator.execution.submit.sending import Submission, choose_installer, new_id

    plan, source = _check_here(plan_file, overrides, only, force)
    folder = Path.cwd()
    installer, requirements = choose_installer(pip, uv)
    command = JobCommand(
        root=check_root(root),
        plan=plan_name(folder, plan_file),
        command="tune" if searches else "run",
        overrides=overrides,
        only=only,
        force=force,
        tracking_uri=tracking_uri,
        more=more,
    )
    submission = Submission(
        id=check_submission_id(submission_id) if submission_id else new_id(plan.name),
        command=command,
        package=collect(folder, plan_file, exclude, include),
        name=plan.name,
        environment=read_environment(env),
        requirements=requirements,
        installer=installer,
    )
    _announce(submission, plan, source)
    if dry_run:
        return
    job_id, client = _send(submission, address)
    if follow:
        _follow(client, job_id)
    if wait:
        _end_with(client, job_id, lambda: _waited(client, job_id))


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
    client = _client(address)
    table = _table("job", "plan", "status", "started", "took", "exit", "by")
    for job in client.jobs():
        table.add_row(
            job.id,
            job.metadata.get("plan", ""),
            _coloured(job.status),
            _moment(job.started),
            _duration(job.seconds),
            "" if job.exit_code is None else str(job.exit_code),
            job.metadata.get("submitted_by", ""),
        )
    _print(table)


@jobs.command()
@click.argument("job_id", metavar="ID")
@head_option
def status(job_id: str, address: str | None) -> None:
    """What became of a job."""
    client = _client(address)
    job = client.job(job_id)
    table = _table("job", job.id)
    rows = {
        "status": _coloured(job.status) + ("" if job.exit_code is None else f", exit code {job.exit_code}"),
        "plan": job.metadata.get("plan", ""),
        "runs": job.metadata.get("runs", ""),
        "started": _moment(job.started),
        "took": _duration(job.seconds),
        "by": job.metadata.get("submitted_by", ""),
        "command": _plain(job.entrypoint),
        "dashboard": client.page(job.id),
        "message": _plain(job.message.strip().splitlines()[-1] if job.message.strip() else ""),
    }
    for name, text in rows.items():
        if text:
            table.add_row(name, text)
    _print(table)


@jobs.command()
@click.argument("job_id", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Go on to the job's end; end with its exit code.")
@head_option
def logs(job_id: str, follow: bool, address: str | None) -> None:
    """What a job has written."""
    client = _client(address)
    client.job(job_id)
    if follow:
        _follow(client, job_id)
    _write(client.logs(job_id))


@jobs.command()
@click.argument("job_id", metavar="ID")
@head_option
def stop(job_id: str, address: str | None) -> None:
    """Stop a job: its stages write their checkpoints, and the plan's next run continues from there."""
    from orchestrator.execution.submit.following import stop_job

    client = _client(address)
    before = client.job(job_id)
    if before.has_ended:
        click.echo(f"job `{job_id}` had ended: {_ending(before)}")
        return
    click.echo(f"job `{job_id}`: {_ending(stop_job(client, job_id))}")


@click.command()
@click.argument("plan_file", metavar="[PLAN]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--address",
    metavar="HOST:PORT|URL",
    help="The Ray cluster: `auto`, HOST:6379, or its dashboard http://HEAD:8265.",
)
@runs_option
@tracking_option
def doctor(plan_file: Path | None, address: str | None, root: Path, tracking_uri: str | None) -> None:
    """Look whether this machine, or every node of a Ray cluster, is fit for a plan.

    Through a dashboard's address it runs as a job, so that the nodes are looked at from inside.

    \b
    distill doctor
    distill doctor configs/mnist_quickstart.yaml --address auto --runs /shared/runs
    """
    if address is not None and address.startswith(("http://", "https://")):
        _doctor_as_job(plan_file, address, root, tracking_uri)
    from orchestrator.execution.doctor import Examination, examine

    plan = None if plan_file is None else _check_here(plan_file, (), (), ())[0]
    findings = examine(Examination(root.absolute(), plan, address, tracking_uri))
    table = _table("check", "where", "", "found", "way out")
    for finding in findings:
        table.add_row(
            finding.check,
            _plain(finding.where),
            _coloured(finding.verdict),
            _plain(finding.text),
            _plain(finding.way_out),
        )
    _print(table)
    sys.exit(FAILED if any(finding.verdict == "fail" for finding in findings) else DONE)


def _check_here(
    plan_file: Path, overrides: Sequence[str], only: Sequence[str], force: Sequence[str]
) -> "tuple[Plan, Any]":
    """The plan, with the errors that `run` has. Data may be on the nodes alone: then the job looks for it."""
    from orchestrator.plan.load import read_source
    from orchestrator.plan.schema import Plan

    source = read_source(plan_file, overrides)
    try:
        plan, graph = load_graph(plan_file, overrides, only)
        graph.called(force, "--force")
    except PlanError:
        try:
            plan = Plan.model_validate(source.values)
            missing = plan.task.missing_files()
        except (OSError, ValueError):
            missing = None
        if missing is None:
            raise
        click.echo(
            f"note: {missing}\nnote: the data is not here; the nodes are expected to have it", err=True
        )
    return plan, source


def _announce(submission: "Submission", plan: "Plan", source: Any) -> None:
    """Say what is sent, and what could be wrong with it."""
    from orchestrator.execution.submit.command import points_home
    from orchestrator.execution.submit.package import counted, own_size, size
    from orchestrator.execution.submit.sending import check_paths, modules_not_sent

    check_paths(source, submission.package)
    files, count = own_size()
    click.echo(f"sends {submission.package.summary()}")
    click.echo(f"and raydistill itself: {counted(files)}, {size(count)}")
    click.echo(f"runs {submission.command.to_shell()}")
    for name in modules_not_sent(plan, submission.package):
        click.echo(
            f"note: `{name}` is not among the files; the nodes must have it installed (`--pip`)", err=True
        )
    uri = submission.command.tracking_uri or submission.environment.get("MLFLOW_TRACKING_URI")
    if points_home(uri):
        click.echo(
            f"note: the job reads `{uri}` as an address of the head node, not of this machine", err=True
        )


def _send(submission: "Submission", address: str | None) -> "tuple[str, JobsClient]":
    from orchestrator.execution.submit.sending import send

    client = _client(address)
    job_id = send(submission, client)
    uri = submission.command.tracking_uri or submission.environment.get("MLFLOW_TRACKING_URI")
    root = submission.command.root
    lines = {
        "dashboard": client.page(job_id),
        "mlflow": uri or f"distill ui --runs {root}   (on a machine that sees it)",
        "results": f"{root}/plans/{submission.name}",
        "follow": f"distill jobs logs {job_id} -f --address {client.address}",
    }
    click.echo(f"job {job_id}")
    for name, text in lines.items():
        click.echo(f"  {name:<10}{text}")
    return job_id, client


def _doctor_as_job(plan_file: Path | None, address: str, root: Path, tracking_uri: str | None) -> None:
    from orchestrator.execution.submit.command import JobCommand, check_root, read_environment
    from orchestrator.execution.submit.package import Package, collect, plan_name
    from orchestrator.execution.submit.sending import Submission, new_id, send

    folder = Path.cwd()
    plan = None if plan_file is None else plan_name(folder, plan_file)
    if plan_file is not None:
        _check_here(plan_file, (), (), ())
    command = JobCommand(check_root(root), plan, "doctor", tracking_uri=tracking_uri)
    package = Package(folder, ()) if plan_file is None else collect(folder, plan_file, (), ())
    client = _client(address)
    job_id = send(Submission(new_id("doctor"), command, package, "", read_environment(())), client)
    _follow(client, job_id)


def _client(address: str | None) -> "JobsClient":
    """The cluster's client, after a word about versions that differ."""
    from orchestrator.execution.submit.client import JobsClient, check_versions

    client = JobsClient(address)
    if remark := check_versions(client.versions):
        click.echo(f"note: {remark}", err=True)
    return client


def _follow(client: "JobsClient", job_id: str) -> None:
    from orchestrator.execution.submit.following import follow

    _end_with(client, job_id, lambda: follow(client, job_id, _write))


def _waited(client: "JobsClient", job_id: str) -> "Job":
    from orchestrator.execution.submit.following import wait_for_end

    return wait_for_end(client, job_id)


def _end_with(client: "JobsClient", job_id: str, watch: "Callable[[], Job]") -> None:
    """End as the job ends. An interrupt leaves it alone, or stops it if the person at the terminal says so."""
    from orchestrator.execution.submit.following import exit_code, stop_job

    try:
        job = watch()
    except KeyboardInterrupt:
        click.echo("", err=True)
        if _wants_to_stop(job_id):
            click.echo(f"job `{job_id}`: {_ending(stop_job(client, job_id))}", err=True)
        else:
            options = f"{job_id} --address {client.address}"
            click.echo(
                f"job `{job_id}` goes on: `distill jobs logs -f {options}` follows it, `distill jobs stop {options}`"
                " stops it",
                err=True,
            )
        sys.exit(INTERRUPTED)
    click.echo(f"job `{job_id}`: {_ending(job)}", err=True)
    sys.exit(exit_code(job))


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


def _ending(job: "Job") -> str:
    took = f" after {_duration(job.seconds)}" if job.seconds is not None else ""
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


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _print(table: Any) -> None:
    from orchestrator.terminal import console

    console().print(table)


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


COLOURS = {"SUCCEEDED": "green", "FAILED": "bold red", "STOPPED": "yellow", "RUNNING": "bold blue"} | {
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
}


def _coloured(word: str) -> str:
    return f"[{COLOURS[word]}]{word.lower()}[/]" if word in COLOURS else word.lower()


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _moment(seconds: float | None) -> str:
    import datetime

    return "" if seconds is None else datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes = int(seconds) // 60
    return (
        f"{seconds:.1f} s"
        if minutes < 2
        else f"{minutes // 60} h {minutes % 60:02d} min {int(seconds) % 60:02d} s"
    )
