"""Commands that take a plan and run it here, or show what a run left."""

import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raydistill.cli.cells import duration
from raydistill.cli.group import EXIT_CODES
from raydistill.cli.json_output import echo_json, kept_clean
from raydistill.cli.options import (
    finds_own_modules,
    json_option,
    plan_argument,
    plan_options,
    runs_option,
)
from raydistill.cli.then import Ending, followed_by, then_option, without_then

if TYPE_CHECKING:
    from raydistill import DryRun, Plan, RunView


@click.command()
@plan_options
@json_option
@then_option
@finds_own_modules
def run(
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
) -> None:
    """Run a plan: train what has no result yet, and end with a table.

    \b
    distill run configs/mnist_quickstart.yaml
    distill run plan.yaml --set stages.student.epochs=10 --only student
    """
    import raydistill

    if dry_run:
        on_cluster = None if local else address
        with kept_clean(as_json):
            plan = raydistill.load_plan(plan_file, overrides)
            prospects = raydistill.dry_run(
                plan,
                runs=root,
                only=only,
                force=force,
                local=local,
                address=on_cluster,
                tracking_uri=tracking_uri,
                max_cpus=max_cpus,
                max_gpus=max_gpus,
            )
        if as_json:
            estimate = prospects.estimate.to_dict() if prospects.estimate else None
            stages = [prospect.to_dict() for prospect in prospects]
            echo_json(
                {
                    "plan": plan.name,
                    "stages": stages,
                    "estimate": estimate,
                    "misfit": prospects.misfit or None,
                }
            )
        else:
            _print_prospects(prospects, plan)
        return
    with followed_by(then, plan_file) as ending:
        with kept_clean(as_json):
            plan = raydistill.load_plan(plan_file, overrides)
            view = raydistill.run(
                plan,
                runs=root,
                only=only,
                force=force,
                local=local,
                address=address,
                tracking_uri=tracking_uri,
                command=shlex.join(["distill", *without_then(sys.argv[1:])]),
                max_cpus=max_cpus,
                max_gpus=max_gpus,
            )
        _note(ending, view)
        if as_json:
            from raydistill.storage_tables import run_values

            echo_json(run_values(view))
        else:
            _print_results(plan, view)
        sys.exit(EXIT_CODES[view.status])


@click.command()
@plan_argument
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a value of the plan.")
@runs_option
def report(plan_file: Path, overrides: tuple[str, ...], root: Path) -> None:
    """Write the reports of a plan's last run and of its searches again, and print where they are.

    \b
    distill report configs/mnist_quickstart.yaml
    distill report plan.yaml --runs /shared/runs
    """
    from raydistill import load_plan, write_reports
    from raydistill.terminal import shown_path

    for path in write_reports(load_plan(plan_file, overrides), runs=root):
        click.echo(str(shown_path(path)))


def _print_results(plan: "Plan", view: "RunView") -> None:
    """The table, what it warns of, and where the report and the student are."""
    from raydistill.terminal import console, results_table, shown_path, warning_lines

    out = console()
    out.print(results_table(view.results))
    for line in warning_lines(view.results):
        out.print(line, soft_wrap=True)
    report = view.folder / "report.html"
    where = f"; report: {shown_path(report)}" if report.exists() else ""
    click.echo(f"\n{view.status} in {view.seconds:.1f} s{where}")
    if view.hours:
        click.echo(f"what ran took {view.hours}")
    if saved := view.saved_seconds:
        hours = f": {view.saved_hours}" if view.saved_hours else ""
        click.echo(f"what was cached took {duration(saved)} when it ran{hours}")
    _print_usage(plan, view)


def _note(ending: Ending, view: "RunView") -> None:
    """What a command at the end is told of a run."""
    errors = (f"stage `{name}`: {stage.error}" for name, stage in view.results.stages.items() if stage.error)
    ending.status, ending.folder, ending.error = view.status, view.folder, next(errors, "")


def _print_prospects(prospects: "DryRun", plan: "Plan") -> None:
    from raydistill import survey_labels
    from raydistill.terminal import (
        class_table,
        console,
        estimate_lines,
        finding_lines,
        prospects_table,
        unlabelled_lines,
        unseen_lines,
    )

    out = console()
    survey = survey_labels(plan)
    if survey is not None and survey.counts:
        out.print(class_table(survey.counts, plan.task.class_names), "")
    found = finding_lines(survey.findings) if survey is not None else []
    out.print(prospects_table(prospects))
    states = Counter(prospect.state for prospect in prospects)
    counts = [f"{states['new']} to run", f"{states['cached']} cached"]
    counts += [f"{states['judge']} to judge"] * (states["judge"] > 0)
    counts += [f"{states['not needed']} not needed"] * (states["not needed"] > 0)
    out.print(f"\n{len(prospects)} stage{'s' * (len(prospects) != 1)}: {', '.join(counts)}")
    for line in estimate_lines(prospects):
        out.print(line, soft_wrap=True)
    lines = [*found, *unlabelled_lines(prospects, plan.task.unlabelled), *unseen_lines(prospects, plan.task)]
    for line in lines:
        out.print(line, soft_wrap=True)


def _print_usage(plan: "Plan", run: "RunView") -> None:
    """Where the best student is, and what can be done with it; of a plan without one, the best model."""
    from raydistill import storage_name
    from raydistill.terminal import shown_path

    found = run.best("student", "model")
    if found is None:
        return
    model = shlex.quote(str(shown_path(found.folder.path)))
    inputs = "PICTURE..." if len(plan.task.input_shape) == 3 else "ARRAYS.npy"
    root = storage_name(run.root)
    shown = root if "://" in root else str(shown_path(run.root))
    runs = "" if run.root == Path("runs").absolute() else f" --runs {shlex.quote(shown)}"
    click.echo(f"\n`{found.name}` is in {model}\n  distill predict {model} {inputs}{runs}")
    click.echo(f"  distill evaluate {model} --split test{runs}")
