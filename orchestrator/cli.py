"""The `distill` command. Arguments are parsed first; heavy parts are imported inside the commands."""

import logging
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from orchestrator.errors import DistillError, PlanError

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


class Group(click.Group):
    """Turns our errors into one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except PlanError as error:
            click.echo(f"error: {error.message}", err=True)
            sys.exit(WRONG)
        except DistillError as error:
            click.echo(f"error: {error.message}", err=True)
            sys.exit(FAILED)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. click itself would turn an interrupt into exit code 1."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


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


runs_option = click.option(
    "--runs", "root", default="runs", show_default=True, type=click.Path(path_type=Path), help="Storage root."
)
tracking_option = click.option(
    "--tracking-uri", metavar="URI", help="MLflow store; RUNS/mlflow.db if left out."
)


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
    handler.setLevel(logging.INFO if verbose else logging.WARNING)  # stages log more, to their own files
    logging.basicConfig(format="%(message)s", handlers=[handler])
    logging.getLogger("orchestrator").setLevel(handler.level)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # the user's own models


@main.command()
@plan_options
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
    from orchestrator.plan.load import check_plan, read_source
    from orchestrator.plan.order import order_stages

    source = read_source(plan_file, overrides)
    plan = check_plan(source)
    graph = order_stages(plan, source.error)
    if only:
        _known_stages(graph, only, "--only")
        graph = graph.needed_for(only)
    _known_stages(graph, force, "--force")
    if graph.compares_features:  # which takes torch, and with it more than a second
        from orchestrator.stages.feature_check import check_features

        check_features(graph, plan.task, source.error)
    root = root.absolute()
    if dry_run:
        _print_prospects(graph, root, plan.name, force)
        return
    from orchestrator.run_plan import RunOptions, run_plan
    from orchestrator.terminal import console, results_table

    command = shlex.join(["distill", *sys.argv[1:]])
    options = RunOptions(root, command, local, address, tracking_uri, force)
    results = run_plan(plan, graph, options)
    out = console()
    out.print(results_table(results))
    folder = root / "plans" / plan.name / results["run_id"]
    out.print(
        f"\n{results['status']} in {results['seconds']:.1f} s; report: {_relative(folder / 'report.html')}"
    )
    sys.exit({"done": DONE, "failed": FAILED, "interrupted": INTERRUPTED}[results["status"]])


@main.command()
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a value of the plan.")
@runs_option
def report(plan_file: Path, overrides: tuple[str, ...], root: Path) -> None:
    """Write the report of a plan's last run again, and print where it is.

    \b
    distill report configs/mnist_quickstart.yaml
    """
    from orchestrator.plan.load import load_plan
    from orchestrator.report import write_report
    from orchestrator.runs.plan_run import latest_run

    plan = load_plan(plan_file, overrides)
    folder = latest_run(root.absolute(), plan.name)
    if folder is None:
        raise PlanError(
            f"plan `{plan.name}` has no run under `{root}`; start one with `distill run {plan_file}`"
        )
    click.echo(str(_relative(write_report(folder, root.absolute()))))


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["validation", "test"]), default="validation", show_default=True)
def evaluate(model: Path, split: str) -> None:
    """Judge a trained model on a split of its task.

    MODEL is a stage's folder or an exported one; that of an `evaluate` stage stands for its ensemble or committee.

    \b
    distill evaluate runs/stages/distill-1f0c92ab34de --split test
    """
    import json

    from orchestrator.predict import evaluate_model

    click.echo(json.dumps(evaluate_model(model, split), indent=1))


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", default=3, show_default=True, help="Classes to print per input.")
@click.option("--output", type=click.Path(path_type=Path), help="Write a CSV file instead of printing.")
def predict(model: Path, inputs: tuple[Path, ...], top: int, output: Path | None) -> None:
    """Label images or arrays: INPUTS are image files, or .npy files of shape (N, ...) or (...).

    MODEL is a stage's folder or an exported one; that of an `evaluate` stage stands for its ensemble or committee.

    \b
    distill predict runs/stages/distill-1f0c92ab34de digit.png more.npy
    """
    from orchestrator.predict import predict_files, write_csv

    rows = predict_files(model, inputs, top)
    if output is not None:
        write_csv(output, rows)
        return
    for row in rows:
        ranked = "  ".join(f"{label} {probability:.4f}" for label, probability in row.ranked)
        click.echo(f"{row.source}\t{ranked}")


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def export(model: Path, folder: Path) -> None:
    """Copy a trained model to FOLDER: weights, description, and a torch.export program that needs only torch.

    \b
    distill export runs/stages/distill-1f0c92ab34de student/
    """
    from orchestrator.predict import export_model

    for path in export_model(model, folder):
        click.echo(str(path))


@main.command()
@click.argument("targets", type=click.Path(path_type=Path))
@click.option("--rows", default=256, show_default=True, help="How many rows to compute again.")
@click.option("--seed", default=0, show_default=True, help="Chooses the rows.")
@runs_option
def verify(targets: Path, rows: int, seed: int, root: Path) -> None:
    """Compute a random sample of stored soft targets again from the teacher, and report the largest difference.

    \b
    distill verify runs/stages/predict_targets-1f0c92ab34de
    """
    from orchestrator.stages.verify_targets import verify_targets

    results = verify_targets(targets.absolute(), root.absolute(), rows, seed)
    for name, result in results.items():
        verdict = "as stored" if result.passed else "DIFFERENT"
        click.echo(
            f"{name}: {verdict}; largest difference {result.largest_difference:.3g} (allowed"
            f" {result.tolerance:.3g}), mean {result.mean_difference:.3g}, sample {result.worst_sample_id}"
        )
    if not all(result.passed for result in results.values()):
        sys.exit(FAILED)


@main.command()
@runs_option
@tracking_option
def sync(root: Path, tracking_uri: str | None) -> None:
    """Send to MLflow what could not be sent while plans ran.

    \b
    distill sync --tracking-uri http://mlflow.example:5000
    """
    from orchestrator.tracking import sync as sync_runs

    for line in sync_runs(root.absolute(), tracking_uri):
        click.echo(line)


@main.command()
@click.argument("name", required=False)
def explain(name: str | None) -> None:
    """Print what a stage, method, model, task or schedule can be told: settings, defaults, sources.

    \b
    distill explain            all names
    distill explain hinton
    """
    from orchestrator.explain import explain as explain_name

    click.echo(explain_name(name))


@main.command()
@runs_option
@tracking_option
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=5000, show_default=True)
def ui(root: Path, tracking_uri: str | None, host: str, port: int) -> None:
    """Open the MLflow UI on the storage root's tracking store.

    \b
    distill ui --port 5001
    """
    from orchestrator.ui import serve

    serve(root.absolute(), tracking_uri, host=host, port=port)


def _known_stages(graph: Any, names: tuple[str, ...], option: str) -> None:
    from orchestrator.errors import did_you_mean

    for name in names:
        if name not in graph.nodes and name not in graph.replicas:
            known = {*graph.replicas, *graph.nodes}
            raise PlanError(f"{option} {name}: the plan has no such stage{did_you_mean(name, known)}")


def _print_prospects(graph: Any, root: Path, plan_name: str, force: tuple[str, ...]) -> None:
    from orchestrator.execution.outlook import look_ahead
    from orchestrator.terminal import console, prospects_table

    forced = [node for name in force for node in graph.replicas.get(name, (name,))]
    prospects = look_ahead(graph, root, plan_name, forced)
    out = console()
    out.print(prospects_table(prospects))
    new = sum(not prospect.is_cached for prospect in prospects)
    out.print(
        f"\n{len(prospects)} stage{'s' * (len(prospects) != 1)}: {new} to run, {len(prospects) - new} cached"
    )


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
