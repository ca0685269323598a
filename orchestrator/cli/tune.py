"""The command that searches."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raydistill.cli.group import DONE, FAILED, INTERRUPTED
from raydistill.cli.options import finds_own_modules, plan_options

if TYPE_CHECKING:
    from raydistill.search.problem import Problem


@click.command()
@plan_options
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
    root: Path,
    tracking_uri: str | None,
    yes: bool,
) -> None:
    """Search the options that a plan's `search` names, and write the best plan.

    Run it again to go on after an interruption, or with more `samples`.

    \b
    distill tune configs/search/mnist_temperature.yaml
    distill tune plan.yaml --set search.samples=100 --dry-run
    """
    problem = load_search(plan_file, overrides, only, force)
    root = root.absolute()
    if dry_run:
        _print_search(problem, root, only)
        return
    confirm_grid(problem, yes)
    if local:
        problem.check_local()
    from raydistill.run_plan import RunOptions
    from raydistill.search.run_search import run_search

    options = RunOptions(root, shlex.join(["distill", *sys.argv[1:]]), local, address, tracking_uri, force)
    description, records = run_search(problem, options, only=only)
    _print_results(problem, description, records, root)
    sys.exit({"done": DONE, "failed": FAILED, "interrupted": INTERRUPTED}[description["status"]])


def load_search(
    plan_file: Path, overrides: Sequence[str], only: Sequence[str], force: Sequence[str]
) -> "Problem":
    """What a plan's `search` asks for; `PlanError` also where a stage that is named on the command line is not."""
    from raydistill import build_search, load_plan

    return build_search(load_plan(plan_file, overrides), only=only, force=force)


def confirm_grid(problem: "Problem", yes: bool) -> bool:
    """A large grid is asked about, with its count. Whether `--yes` was said, or has been now."""
    if yes or not problem.has_many_points:
        return yes
    if not sys.stdin.isatty():
        problem.check_number_of_points()
    return click.confirm(f"The grid has {problem.config.trials:,} points. Try them all?", abort=True)


def _print_search(problem: "Problem", root: Path, only: tuple[str, ...]) -> None:
    from raydistill.execution.preview import look_ahead
    from raydistill.runs.search_run import SearchRun
    from raydistill.search.progress import space_table
    from raydistill.search.run_search import shared_parts
    from raydistill.terminal import console, prospects_table

    out, config = console(), problem.config
    out.print(space_table(config.space))
    out.print(
        f"\n{_trials(problem)}, scheduler `{config.scheduler.name}`, {problem.metric.mode} of `{problem.metric}`\n"
    )
    prospects = [
        prospect
        for plan, graph in shared_parts(problem, only)
        for prospect in look_ahead(graph, root, plan.name)
    ]
    found = {prospect.node.folder: prospect for prospect in prospects}.values()
    out.print(prospects_table(list(found)))
    new = sum(not prospect.is_cached for prospect in found)
    trials = SearchRun(root, problem.plan.name, problem.fingerprint).trials()
    over = sum(trial.is_over for trial in trials)
    out.print(
        f"\nshared by all trials: {len(found)} stages, {new} to run; trials: {over} finished,"
        f" {max(problem.trials - over, 0)} to run"
    )


def _trials(problem: "Problem") -> str:
    """How many trials there are, and where their values come from."""
    from raydistill.kinds.searches import PopulationConfig

    config = problem.config
    if isinstance(config.scheduler, PopulationConfig):
        rounds = config.scheduler.rounds(problem.trained.epochs)
        return (
            f"{config.scheduler.population:,} members in {rounds:,} rounds of {config.scheduler.every:,} epochs:"
            f" {problem.trials:,} trials"
        )
    points = "" if config.size is None else f" of {config.size:,} points"
    seeds = f", {problem.replicas} replicas each" if problem.replicas > 1 else ""
    return f"{config.trials:,} trials{points} by `{config.searcher.name}`{seeds}"


def _print_results(problem: "Problem", description: dict[str, Any], records: Any, root: Path) -> None:
    from raydistill.metrics import Accuracy
    from raydistill.runs.search_formatting import called
    from raydistill.runs.search_run import SearchRun
    from raydistill.search.progress import left_out, told_exchanges, took, trials_table
    from raydistill.search.run_search import shown_path
    from raydistill.terminal import console

    out = console()
    out.print(trials_table(records, problem.metric, problem.config.space))
    for line in filter(None, (left_out(records), told_exchanges(records))):
        out.print(line, soft_wrap=True)
    best = description["best"]
    run = SearchRun(root, problem.plan.name, problem.fingerprint)
    if best is not None:
        test = best["metrics"].get(Accuracy.on("test"))
        judged = "" if test is None else f", {Accuracy.text(test)} on the test split"
        name = next(called(record) for record in records if record.id == best["trial"])
        out.print(f"\nbest: {name}{judged}; plan: {shown_path(run.best_plan)}")
    if description["status"] == "interrupted":
        out.print("\ninterrupted: checkpoints are written, and the same command goes on from here")
    seconds = took(description["seconds"], description["session_seconds"])
    over = sum(record.is_over for record in records)
    report = run.folder / "report.html"
    where = f"; report: {shown_path(report)}" if report.exists() else ""
    out.print(f"\n{description['status']} in {seconds}: {over} trials finished{where}")
