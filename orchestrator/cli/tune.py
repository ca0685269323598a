"""The command that searches."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raydistill.cli.group import EXIT_CODES
from raydistill.cli.json_output import echo_json, kept_clean
from raydistill.cli.options import finds_own_modules, json_option, plan_options
from raydistill.cli.then import followed_by, then_option, without_then

if TYPE_CHECKING:
    from raydistill import SearchProblem


@click.command()
@plan_options
@json_option
@then_option
@click.option("--yes", is_flag=True, help="Do not ask before a large grid.")
@finds_own_modules
def tune(
    plan_file: Path,
    overrides: tuple[str, ...],
    only: tuple[str, ...],
    force: tuple[str, ...],
    dry_run: bool,
    local: bool,
    address: str | None,
    max_cpus: float | None,
    max_gpus: float | None,
    root: Path,
    tracking_uri: str | None,
    as_json: bool,
    then: str | None,
    yes: bool,
) -> None:
    """Search the options that a plan's `search` names, and write the best plan.

    Run it again to go on after an interruption, or with more `samples`.

    \b
    distill tune configs/search/mnist_temperature.yaml
    distill tune plan.yaml --set search.samples=100 --dry-run
    """
    import raydistill
    from raydistill.search_tables import print_preview, print_results

    if dry_run:
        with kept_clean(as_json):
            problem = load_search(plan_file, overrides, only, force, root, tracking_uri)
            preview = raydistill.preview_search(problem, runs=root, only=only)
        if as_json:
            echo_json(preview.to_dict())
        else:
            print_preview(preview)
        return
    with followed_by(then, plan_file) as ending:
        with kept_clean(as_json):
            problem = load_search(plan_file, overrides, only, force, root, tracking_uri)
            confirm_grid(problem, yes)
            search = raydistill.tune(
                problem,
                runs=root,
                only=only,
                force=force,
                local=local,
                address=address,
                tracking_uri=tracking_uri,
                every_point=True,
                command=shlex.join(["distill", *without_then(sys.argv[1:])]),
                max_cpus=max_cpus,
                max_gpus=max_gpus,
            )
        ending.status, ending.folder = search.status, search.folder
        if as_json:
            from raydistill.storage_tables import search_values

            echo_json(search_values(search))
        else:
            print_results(search)
        sys.exit(EXIT_CODES[search.status])


def load_search(
    plan_file: Path,
    overrides: Sequence[str],
    only: Sequence[str],
    force: Sequence[str],
    root: Path | str = "runs",
    tracking_uri: str | None = None,
) -> "SearchProblem":
    """What a plan's `search` asks for; `PlanError` also where a stage that is named on the command line is not."""
    from raydistill import build_search, load_plan

    return build_search(
        load_plan(plan_file, overrides), runs=root, only=only, force=force, tracking_uri=tracking_uri
    )


def confirm_grid(problem: "SearchProblem", yes: bool) -> bool:
    """A large grid is asked about, with its count. Whether `--yes` was said, or has been now."""
    if yes or not problem.has_many_points:
        return yes
    if not sys.stdin.isatty():
        problem.check_number_of_points()
    return click.confirm(f"The grid has {problem.config.trials:,} points. Try them all?", abort=True)
