"""Options that several commands share."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from raydistill.errors import PlanError


def _refuse_empty(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """An unset variable of the shell is not what the option's default stands for."""
    if value == "":
        raise PlanError(
            f"{parameter.opts[0]} is empty; is a variable of the shell unset? Leave the option out for its default"
        )
    return value


def _root(context: click.Context, parameter: click.Parameter, value: str) -> Path:
    return Path(_refuse_empty(context, parameter, value))


runs_option = click.option(
    "--runs", "root", default="runs", show_default=True, metavar="PATH", callback=_root, help="Storage root."
)
tracking_option = click.option(
    "--tracking-uri", metavar="URI", callback=_refuse_empty, help="MLflow store; RUNS/mlflow.db if left out."
)


def untracked_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--no-tracking` is `--set tracking=none`."""

    @wraps(command)
    def overriding(*arguments: Any, overrides: tuple[str, ...], no_tracking: bool, **options: Any) -> Any:
        if no_tracking and options["tracking_uri"]:
            raise PlanError("`--no-tracking` and `--tracking-uri` exclude each other; leave one out")
        more = ("tracking=none",) if no_tracking else ()
        return command(*arguments, overrides=(*overrides, *more), **options)

    return click.option("--no-tracking", is_flag=True, help="Run without MLflow.")(overriding)


def plan_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that are the same wherever a plan is taken."""
    options: list[Callable[..., Any]] = [
        click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path)),
        click.option(
            "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a value of the plan."
        ),
        click.option("--only", multiple=True, metavar="STAGE", help="Run this stage and what it reads."),
        click.option("--force", multiple=True, metavar="STAGE", help="Run this stage again from the start."),
        click.option("--dry-run", is_flag=True, help="Print what would run, and why; start nothing."),
        click.option("--local", is_flag=True, help="Run in this process, without Ray."),
        click.option(
            "--address",
            metavar="HOST:PORT",
            callback=_refuse_empty,
            help="The Ray cluster; one is started here if left out.",
        ),
        runs_option,
        tracking_option,
        untracked_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command
