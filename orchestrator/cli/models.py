"""Commands about what stages made: models and soft targets."""

import sys
from pathlib import Path

import click

from raydistill.cli.group import FAILED
from raydistill.cli.options import runs_option


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["validation", "test"]), default="validation", show_default=True)
def evaluate(model: Path, split: str) -> None:
    """Judge a trained model on a split of its task.

    MODEL is a stage's folder or an exported one; that of an `evaluate` stage stands for its ensemble or committee.

    \b
    distill evaluate runs/stages/distill-1f0c92ab34de --split test
    """
    import json

    from raydistill.predict import evaluate_model

    click.echo(json.dumps(evaluate_model(model, split), indent=1))


@click.command()
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
    from raydistill.predict import predict_files, write_csv

    rows = predict_files(model, inputs, top)
    if output is not None:
        write_csv(output, rows)
        return
    for row in rows:
        ranked = "  ".join(f"{label} {probability:.4f}" for label, probability in row.ranked)
        click.echo(f"{row.source}\t{ranked}")


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def export(model: Path, folder: Path) -> None:
    """Copy a trained model to FOLDER: weights, description, and a torch.export program that needs only torch.

    The program gives the probabilities that `predict` prints; README.md in FOLDER says what it takes and the classes.

    \b
    distill export runs/stages/distill-1f0c92ab34de student/
    """
    from raydistill.export import export_model

    for path in export_model(model, folder):
        click.echo(str(path))


@click.command()
@click.argument("targets", type=click.Path(path_type=Path))
@click.option("--rows", default=256, show_default=True, help="How many rows to compute again.")
@click.option("--seed", default=0, show_default=True, help="Chooses the rows.")
@runs_option
def verify(targets: Path, rows: int, seed: int, root: Path) -> None:
    """Compute a random sample of stored soft targets again from the teacher, and report the largest difference.

    \b
    distill verify runs/stages/predict_targets-1f0c92ab34de
    """
    from raydistill.stages.verify_targets import verify_targets

    results = verify_targets(targets.absolute(), root.absolute(), rows, seed)
    for name, result in results.items():
        verdict = "as stored" if result.passed else "DIFFERENT"
        click.echo(
            f"{name}: {verdict}; largest difference {result.largest_difference:.3g} (allowed"
            f" {result.tolerance:.3g}), mean {result.mean_difference:.3g}, sample {result.worst_sample_id}"
        )
    if not all(result.passed for result in results.values()):
        sys.exit(FAILED)
