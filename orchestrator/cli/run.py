"""Commands that take a plan and run it here, or show what a run left."""

import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raydistill.cli.graphs import load_graph
from raydistill.cli.group import DONE, FAILED, INTERRUPTED
from raydistill.cli.options import finds_own_modules, plan_options, runs_option
from raydistill.errors import PlanError

if TYPE_CHECKING:
    from raydistill.plan.order import Graph
    from raydistill.plan.schema import Plan
    from raydistill.runs.view import RunView


@click.command()
@plan_options
@finds_own_modules
def run(
    plan_file: Path,
    overrides: tuple[str, ...],
    only: tuple[str, ...],
    force: tuple[str, ...],
    dry_run: bool,
    local: bool,
    address: str | None,
    root: Path,
    tracking_uri: str | None,
) -> None:
    """Run a plan: train what has no result yet, and end with a table.

    \b
    distill run configs/mnist_quickstart.yaml
    distill run plan.yaml --set stages.student.epochs=10 --only student
    """
    plan, graph = load_graph(plan_file, overrides, only)
    forced = graph.called(force, "--force")
    root = root.absolute()
    if dry_run:
        _print_prospects(plan, graph, root, forced)
        if address is not None and not local:
            _check_room(graph, address)
        return
    from raydistill.run_plan import RunOptions, run_plan
    from raydistill.runs.view import PLANS_FOLDER, open_run
    from raydistill.terminal import console, results_table, warning_lines

    command = shlex.join(["distill", *sys.argv[1:]])
    options = RunOptions(root, command, local, address, tracking_uri, force)
    run_id = run_plan(plan, graph, options)["run_id"]
    view = open_run(root / PLANS_FOLDER / plan.name / run_id, root)
    out = console()
    out.print(results_table(view.results))
    for line in warning_lines(view.results):
        out.print(line, soft_wrap=True)
    report = view.folder / "report.html"
    where = f"; report: {_relative(report)}" if report.exists() else ""
    click.echo(f"\n{view.status} in {view.seconds:.1f} s{where}")
    _print_usage(plan, view)
    sys.exit({"done": DONE, "failed": FAILED, "interrupted": INTERRUPTED}[view.status])


@click.command()
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a value of the plan.")
@runs_option
def report(plan_file: Path, overrides: tuple[str, ...], root: Path) -> None:
    """Write the reports of a plan's last run and of its searches again, and print where they are.

    \b
    distill report configs/mnist_quickstart.yaml
    """
    from raydistill.plan.load import load_plan
    from raydistill.report import write_report, write_search_report
    from raydistill.runs.search_view import searches
    from raydistill.runs.view import runs_of

    plan = load_plan(plan_file, overrides)
    runs, found = runs_of(root.absolute(), plan.name), searches(root.absolute(), plan.name)
    if not runs and not found:
        raise PlanError(
            f"plan `{plan.name}` has no run under `{root}`; start one with `distill run {plan_file}`"
        )
    if runs:
        click.echo(str(_relative(write_report(runs[0], root.absolute()))))
    for search in found:
        click.echo(str(_relative(write_search_report(search, root.absolute()))))


def _check_room(graph: "Graph", address: str) -> None:
    """`PlanError` for a stage that the Ray cluster can never run; nothing of it is used."""
    from contextlib import closing

    from raydistill.execution.ray_backend import RayBackend

    with closing(RayBackend(address)) as backend:
        backend.check_feasible(list(graph.nodes.values()))


def _print_prospects(plan: "Plan", graph: "Graph", root: Path, forced: frozenset[str]) -> None:
    from rich.markup import escape

    from raydistill.execution.outlook import look_ahead
    from raydistill.plan.config import configs_in
    from raydistill.plan.sources import unseen_sources
    from raydistill.terminal import console, prospects_table

    prospects = look_ahead(graph, root, plan.name, forced, plan.task)
    out = console()
    out.print(prospects_table(prospects))
    states = Counter(prospect.state for prospect in prospects)
    counts = [f"{states['new']} to run", f"{states['cached']} cached"]
    counts += [f"{states['judge']} to judge"] * (states["judge"] > 0)
    counts += [f"{states['not needed']} not needed"] * (states["not needed"] > 0)
    out.print(f"\n{len(prospects)} stage{'s' * (len(prospects) != 1)}: {', '.join(counts)}")
    for text in unseen_sources(part for node in graph.nodes.values() for _, part in configs_in(node.config)):
        out.print(f"a change is not seen of {escape(text)}", soft_wrap=True)


def _print_usage(plan: "Plan", run: "RunView") -> None:
    """Where the best student is, and what can be done with it; of a plan without one, the best model."""
    found = run.best("student", "model")
    if found is None:
        return
    model = shlex.quote(str(_relative(found.folder.path)))
    inputs = "PICTURE..." if len(plan.task.input_shape) == 3 else "ARRAYS.npy"
    runs = "" if run.root == Path("runs").absolute() else f" --runs {shlex.quote(str(_relative(run.root)))}"
    click.echo(f"\n`{found.name}` is in {model}\n  distill predict {model} {inputs}{runs}")
    click.echo(f"  distill evaluate {model} --split test{runs}")


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
