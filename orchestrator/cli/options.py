"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

runs_option = click.option(
    "--runs", "root", default="runs", show_default=True, type=click.Path(path_type=Path), help="Storage root."
)
tracking_option = click.option(
    "--tracking-uri", metavar="URI", help="MLflow store; RUNS/mlflow.db if left out."
)


def plan_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that are the same wherever a plan is taken."""
    options = [
        click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path)),
        click.option(
            "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a value of the plan."
        ),
        click.option("--only", multiple=True, metavar="STAGE", help="Run this stage and what it reads."),
        click.option("--force", multiple=True, metavar="STAGE", help="Run this stage again from the start."),
        click.option("--dry-run", is_flag=True, help="Print what would run, and why; start nothing."),
        click.option("--local", is_flag=True, help="Run in this process, without Ray."),
        click.option(
            "--address", metavar="HOST:PORT", help="The Ray cluster; one is started here if left out."
        ),
        runs_option,
        tracking_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command
