"""The command that sends a plan to a Ray cluster."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from raydistill.cli.options import finds_own_modules, plan_argument, tracking_option, untracked_option
from raydistill.cli.tune import confirm_grid, load_search
from raydistill.cli.watching import connect, end_with, follow_job, head_option
from raydistill.errors import PlanError
from raydistill.masking import mask

if TYPE_CHECKING:
    from raydistill.execution.submit.client import Job, JobsClient
    from raydistill.execution.submit.sending import Submission
    from raydistill.plan.schema import Plan
    from raydistill.plan.written import Source
    from raydistill.search.problem import SearchProblem


@click.command()
@plan_argument
@click.argument("more", nargs=-1, metavar="[-- OPTION...]")
@click.option("--tune", "searches", is_flag=True, help="Send `distill tune`, in place of `distill run`.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a value of the plan.")
@click.option("--only", multiple=True, metavar="STAGE", help="Run this stage and what it reads.")
@click.option("--force", multiple=True, metavar="STAGE", help="Run this stage again from the start.")
@head_option
@click.option(
    "--runs",
    "root",
    metavar="PATH",
    help="Storage root: absolute, seen by every node, or s3://, gs://, az://.",
)
@tracking_option
@untracked_option
@click.option(
    "--exclude", multiple=True, metavar="PATTERN", help="Leave files out, as a line of .gitignore would."
)
@click.option("--include", multiple=True, metavar="PATTERN", help="Send these files too.")
@click.option("--whole-folder", is_flag=True, help="Send the working folder, not only what the plan needs.")
@click.option(
    "--env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable of the job, or pass this shell's on."
)
@click.option("--pip", multiple=True, metavar="REQUIREMENT", help="Install on top of what the nodes have.")
@click.option("--uv", multiple=True, metavar="REQUIREMENT", help="The same, with uv.")
@click.option("--submission-id", metavar="ID", help="Name the job.")
@click.option("--follow", is_flag=True, help="Print the job's log as it grows; end with its exit code.")
@click.option("--wait/--no-wait", default=False, help="End when the job ends, with its exit code.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print what would be sent and run; send nothing.",
)
@click.option("-v", "--verbose", is_flag=True, help="List every file that is sent.")
@finds_own_modules
def submit(
    plan_file: Path,
    more: tuple[str, ...],
    searches: bool,
    overrides: tuple[str, ...],
    only: tuple[str, ...],
    force: tuple[str, ...],
    address: str | None,
    root: str | None,
    tracking_uri: str | None,
    exclude: tuple[str, ...],
    include: tuple[str, ...],
    whole_folder: bool,
    env: tuple[str, ...],
    pip: tuple[str, ...],
    uv: tuple[str, ...],
    submission_id: str | None,
    follow: bool,
    wait: bool,
    dry_run: bool,
    verbose: bool,
) -> None:
    """Check a plan here, and run it as a job on a Ray cluster.

    What the plan needs of the working folder travels with it: the packages of its modules and of what these import,
    and the files that are named. Not data, weights, hidden files, what looks private, and what .gitignore and
    .rayignore name; where the plan needs that, it is an error, and `--include` sends it.
    Options behind `--` are passed on as they are.

    \b
    distill submit configs/mnist_quickstart.yaml --address http://head:8265 --runs /shared/runs --follow
    distill submit plan.yaml --runs /shared/runs --set stages.student.epochs=10 --env HF_TOKEN
    """
    from raydistill.execution.submit.command import (
        JobCommand,
        check_root,
        check_submission_id,
        read_environment,
        split_tracking_uri,
    )
    from raydistill.execution.submit.needs import find_needs
    from raydistill.execution.submit.package import collect, plan_name
    from raydistill.execution.submit.sending import (
        Submission,
        check_room,
        choose_installer,
        new_id,
        try_packing,
    )
    from raydistill.runs.search_run import SearchRun

    plan, source, problem = check_here(plan_file, overrides, only, force, searches)
    if problem and not dry_run and "--yes" not in more and confirm_grid(problem, yes=False):
        more = (*more, "--yes")  # nobody can be asked where the job runs
    passed_on, more = split_tracking_uri(more)
    folder = Path.cwd()
    installer, requirements = choose_installer(pip, uv)
    command = JobCommand(
        root=check_root(root),
        plan=plan_name(folder, plan_file),
        command="tune" if searches else "run",
        overrides=overrides,
        only=only,
        force=force,
        tracking_uri=tracking_uri or passed_on,
        more=more,
    )
    submission = Submission(
        id=check_submission_id(submission_id) if submission_id else new_id(plan.name),
        command=command,
        package=collect(
            folder, plan_file, exclude, include, find_needs(folder, plan_file, source, whole_folder)
        ),
        name=plan.name,
        environment=read_environment(env),
        requirements=requirements,
        installer=installer,
    )
    _announce(submission, plan, verbose)
    if dry_run:
        try_packing(submission.package)
        if address is not None:
            check_room(plan, connect(address))
        return
    results: Path | str = "searches" if searches else f"plans/{plan.name}"
    if problem:
        results = SearchRun(Path(), plan.name, problem.fingerprint).folder
    job_id, client = _send(submission, plan, address, results)
    if follow:
        follow_job(client, job_id)
    if wait:
        end_with(client, job_id, lambda: _waited(client, job_id))


class Checked(NamedTuple):
    """A plan, its source, and its search if there is one that could be checked here."""

    plan: "Plan"
    source: "Source"
    problem: "SearchProblem | None"


def check_here(
    plan_file: Path,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    force: Sequence[str] = (),
    searches: bool = False,
) -> Checked:
    """The plan, with the errors that the command itself has. Data may be on the nodes alone: then the job looks."""
    from raydistill import load_plan, order
    from raydistill.plan.load import read_source
    from raydistill.plan.model import names_registered_models
    from raydistill.plan.schema import Plan

    source = read_source(plan_file, overrides)
    problem = None
    try:
        plan = load_plan(plan_file, overrides)
        if names_registered_models(plan.stages.values()):
            click.echo(
                "note: the plan begins from a model in MLflow, which the job fetches and checks", err=True
            )
        elif searches:
            problem = load_search(plan_file, overrides, only, force)
            plan = problem.plan
        else:
            order(plan, only).called(force, "--force")
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
    return Checked(plan, source, problem)


def _announce(submission: "Submission", plan: "Plan", verbose: bool) -> None:
    """Say what is sent, and what could be wrong with it."""
    from raydistill.execution.submit.command import points_home
    from raydistill.execution.submit.package import counted, own_size, size
    from raydistill.execution.submit.sending import modules_not_sent

    files, count = own_size()
    click.echo(f"sends {submission.package.summary()}")
    if verbose:
        click.echo("\n".join(f"  {file.name}" for file in submission.package.files))
    click.echo(f"and raydistill itself: {counted(files)}, {size(count)}")
    click.echo(f"runs {submission.command.to_shell()}")
    for remark in submission.package.left_out:
        click.echo(f"note: {remark}", err=True)
    for name in modules_not_sent(plan, submission.package):
        click.echo(
            f"note: `{name}` is not among the files; the nodes must have it installed (`--pip`)", err=True
        )
    uri = submission.command.tracking_uri or submission.environment.get("MLFLOW_TRACKING_URI")
    if points_home(uri):
        click.echo(
            f"note: the job reads `{mask(str(uri))}` as an address of the head node, not of this machine",
            err=True,
        )


def _send(
    submission: "Submission", plan: "Plan", address: str | None, results: Path | str
) -> "tuple[str, JobsClient]":
    from raydistill.execution.submit.sending import check_room, send

    client = connect(address)
    check_room(plan, client)
    job_id = send(submission, client)
    uri = submission.command.tracking_uri or submission.environment.get("MLFLOW_TRACKING_URI")
    root = submission.command.root
    lines = {
        "dashboard": client.page(job_id),
        "mlflow": mask(uri) if uri else f"distill ui --runs {root}   (on a machine that sees it)",
        "results": f"{root}/{results}",
        "follow": f"distill jobs logs {job_id} -f --address {client.address}",
    }
    click.echo(f"job {job_id}")
    if plan.tracking == "none":
        del lines["mlflow"]
    for name, text in lines.items():
        click.echo(f"  {name:<10}{text}")
    return job_id, client


def _waited(client: "JobsClient", job_id: str) -> "Job":
    from raydistill.execution.submit.following import wait_for_end

    return wait_for_end(client, job_id)
