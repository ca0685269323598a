"""Options that several commands share."""

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from raydistill.errors import PlanError

RECEIVED = (
    "A folder from outside the storage root (--runs) builds only networks of ours and of torchvision, and calls no"
    " function that it names, unless that is of a module that you --trust."
)


def _refuse_empty(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Refuse an empty value: it comes from an unset variable of the shell, and does not mean the option's default."""
    if value == "":
        raise PlanError(
            f"{parameter.opts[0]} is empty; is a variable of the shell unset? Leave the option out for its default"
        )
    return value


def _not_local(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Refuse what is about a Ray cluster beside `--local`."""
    if value is not None and context.params.get("local"):
        raise PlanError(
            f"{parameter.opts[0]} is about a Ray cluster, and `--local` runs one stage at a time without one: leave one"
            " of them out"
        )
    return value


def _root(context: click.Context, parameter: click.Parameter, value: str) -> Path:
    value = _refuse_empty(context, parameter, value)
    if "://" not in value:
        return Path(value)
    from raydistill import open_storage

    return open_storage(value)


def _plan_file(context: click.Context, parameter: click.Parameter, value: str | None) -> Path | None:
    from raydistill import find_plan

    return None if value is None else find_plan(value)


def _plans_from(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """For the shell's completion: names of shipped plans, and the shell's own of files."""
    from raydistill import shipped_plans

    names = [CompletionItem(name) for name in shipped_plans() if name.startswith(begun)]
    return [*names, CompletionItem(begun, type="file")]


plan_argument = click.argument("plan_file", metavar="PLAN", callback=_plan_file, shell_complete=_plans_from)
"""A plan's file, or the name of a shipped one."""
optional_plan_argument = click.argument(
    "plan_file", metavar="[PLAN]", required=False, callback=_plan_file, shell_complete=_plans_from
)


def find_own_modules() -> None:
    """Let the user's own modules be found in the working folder: last, so that no file there hides a module."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def finds_own_modules(command: Callable[..., Any]) -> Callable[..., Any]:
    """For a command that is about a plan of the user's."""

    @wraps(command)
    def finding(*arguments: Any, **options: Any) -> Any:
        find_own_modules()
        return command(*arguments, **options)

    return finding


def trust_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--runs` and `--trust`, for the commands that take a model's folder: given to them as `trust`."""

    @wraps(command)
    def trusting(*arguments: Any, model: Path, root: Path, modules: tuple[str, ...], **options: Any) -> Any:
        from raydistill import Trust

        trust = Trust(root.absolute(), modules)
        if modules or trust.covers(model.absolute()):
            find_own_modules()
        return command(*arguments, model=model, trust=trust, **options)

    trusting.__doc__ = f"{command.__doc__}\n\n    {RECEIVED}\n"
    module_option = click.option(
        "--trust",
        "modules",
        multiple=True,
        metavar="MODULE",
        callback=_refuse_empty,
        help="Let a received folder call it.",
    )
    return runs_option(module_option(trusting))


runs_option = click.option(
    "--runs",
    "root",
    default="runs",
    show_default=True,
    metavar="PATH",
    callback=_root,
    help="Storage root: a folder, or s3://, gs://, az://.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON: sizes in bytes, times in seconds."
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
        plan_argument,
        click.option(
            "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a value of the plan."
        ),
        click.option("--only", multiple=True, metavar="STAGE", help="Run this stage and what it reads."),
        click.option("--force", multiple=True, metavar="STAGE", help="Run this stage again from the start."),
        click.option("--dry-run", is_flag=True, help="Print what would run, and why; start nothing."),
        click.option("--local", is_flag=True, is_eager=True, help="Run in this process, without Ray."),
        click.option(
            "--address",
            metavar="HOST:PORT",
            callback=_refuse_empty,
            help="The Ray cluster; one is started here if left out.",
        ),
        click.option(
            "--max-cpus",
            type=click.FloatRange(min=0, min_open=True),
            metavar="NUMBER",
            callback=_not_local,
            help="Hold no more CPUs of the Ray cluster at once.",
        ),
        click.option(
            "--max-gpus",
            type=click.FloatRange(min=0),
            metavar="NUMBER",
            callback=_not_local,
            help="Hold no more GPUs of the Ray cluster at once; 0 for none.",
        ),
        runs_option,
        tracking_option,
        untracked_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command
