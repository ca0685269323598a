"""The command that looks whether machines are fit for a plan."""

import sys
from pathlib import Path

import click

from raydistill.cli.cells import coloured, new_table, plain, print_table
from raydistill.cli.group import DONE, FAILED
from raydistill.cli.options import finds_own_modules, optional_plan_argument, runs_option, tracking_option
from raydistill.cli.submit import check_here
from raydistill.cli.watching import connect, follow_job
from raydistill.masking import mask


@click.command()
@optional_plan_argument
@click.option(
    "--address",
    metavar="HOST:PORT|URL",
    help="The Ray cluster: `auto`, HOST:6379, or its dashboard http://HEAD:8265.",
)
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a value of the plan.")
@runs_option
@tracking_option
@finds_own_modules
def doctor(
    plan_file: Path | None,
    address: str | None,
    overrides: tuple[str, ...],
    root: Path,
    tracking_uri: str | None,
) -> None:
    """Look whether this machine, or every node of a Ray cluster, is fit for a plan.

    Of a plan, data and models are looked at too, as before the first stage of a run.

    Through a dashboard's address it runs as a job, so that the nodes are looked at from inside.

    \b
    distill doctor
    distill doctor configs/mnist_quickstart.yaml --address auto --runs /shared/runs
    """
    if address is not None and address.startswith(("http://", "https://")):
        _doctor_as_job(plan_file, overrides, address, root, tracking_uri)
    from raydistill import with_fetched_models
    from raydistill.doctor import Examination, examine

    plan = None
    if plan_file is not None:
        plan = check_here(plan_file, overrides).plan
        plan = with_fetched_models(plan, runs=root, tracking_uri=tracking_uri)
    findings = examine(Examination(root.absolute(), plan, address, tracking_uri))
    table = new_table("check", "where", "", "found", "way out")
    for finding in findings:
        table.add_row(
            finding.check,
            plain(mask(finding.where)),
            coloured(finding.verdict),
            plain(mask(finding.text)),
            plain(mask(finding.way_out)),
        )
    print_table(table)
    sys.exit(FAILED if any(finding.verdict == "fail" for finding in findings) else DONE)


def _doctor_as_job(
    plan_file: Path | None, overrides: tuple[str, ...], address: str, root: Path, tracking_uri: str | None
) -> None:
    from raydistill import storage_name
    from raydistill.execution.submit.command import JobCommand, check_root, read_environment
    from raydistill.execution.submit.needs import find_needs
    from raydistill.execution.submit.package import Package, collect, plan_name
    from raydistill.execution.submit.sending import Submission, new_id, send

    folder = Path.cwd()
    plan, package = None, Package(folder, ())
    if plan_file is not None:
        plan = plan_name(folder, plan_file)
        needs = find_needs(folder, plan_file, check_here(plan_file, overrides).source)
        package = collect(folder, plan_file, needs=needs)
    command = JobCommand(
        check_root(storage_name(root)), plan, "doctor", overrides=overrides, tracking_uri=tracking_uri
    )
    client = connect(address)
    job_id = send(Submission(new_id("doctor"), command, package, "", read_environment(())), client)
    follow_job(client, job_id)
