"""The `distill` command. Arguments are parsed first; heavy parts are imported inside the commands."""

import logging

import click

from raydistill.cli.doctor import doctor
from raydistill.cli.explain import explain
from raydistill.cli.group import Group
from raydistill.cli.jobs import jobs
from raydistill.cli.models import cost, evaluate, export, export_targets, predict, serve, verify
from raydistill.cli.plans import new, plans
from raydistill.cli.run import report, run
from raydistill.cli.storage import clean, compare, list_stored, show
from raydistill.cli.streams import PlainFormatter
from raydistill.cli.submit import submit
from raydistill.cli.tracking import sync, ui
from raydistill.cli.tune import tune


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="raydistill", prog_name="distill")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def main(verbose: bool) -> None:
    """Knowledge distillation on Ray: one plan file in, a small trained student out.

    \b
    distill run configs/mnist_quickstart.yaml
    distill run configs/mnist_quickstart.yaml --dry-run
    distill ui
    """
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter("%(message)s"))
    handler.setLevel(logging.INFO if verbose else logging.WARNING)  # stages log more, to their own files
    logging.basicConfig(handlers=[handler])
    logging.getLogger("raydistill").setLevel(handler.level)


for command in (
    new,
    plans,
    run,
    tune,
    submit,
    jobs,
    doctor,
    report,
    list_stored,
    show,
    compare,
    clean,
    evaluate,
    predict,
    serve,
    export,
    export_targets,
    cost,
    verify,
    sync,
    explain,
    ui,
):
    main.add_command(command)
