"""Commands about what stages made: models and soft targets."""

import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from raydistill.cli.group import FAILED
from raydistill.cli.json_output import echo_json
from raydistill.cli.options import finds_own_modules, json_option, runs_option, trust_options
from raydistill.tasks.picture_files import printable

if TYPE_CHECKING:
    from raydistill import Labelled, Trust
    from raydistill.terminal import Counting


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["validation", "test"]), default="validation", show_default=True)
@trust_options
def evaluate(model: Path, split: str, trust: "Trust") -> None:
    """Judge a trained model on a split of its task.

    MODEL is a stage's folder or an exported one; that of an `evaluate` stage stands for its ensemble or committee.

    \b
    distill evaluate runs/stages/distill-1f0c92ab34de --split test
    distill evaluate received/ --split validation --trust my_nets
    """
    from raydistill import evaluate_model

    echo_json(evaluate_model(model, split, trust))


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True)
@click.option(
    "--top", type=click.IntRange(min=1), default=3, show_default=True, help="Classes to give per input."
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Write a .csv, .parquet or .jsonl instead of printing."
)
@click.option(
    "--on-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="fail: an input that cannot be read has its error in its place, and the exit code is 1; skip: such are left"
    " out and counted.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="NAME",
    help="Column of a table with pictures or their paths, or one with numbers; member of a tar.",
)
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where paths in a table begin; its own if left out."
)
@trust_options
def predict(
    model: Path,
    inputs: tuple[str, ...],
    top: int,
    output: Path | None,
    on_error: str,
    columns: tuple[str, ...],
    folder: Path | None,
    trust: "Trust",
) -> None:
    """Label any number of inputs: pictures, folders of any depth, patterns such as 'photos/**/*.jpg', tars of pictures,
    tables (CSV, Parquet), arrays of shape (N, ...) in .npy, .npz, .safetensors.

    A picture is read as those of the model's own task are for evaluation. A CSV file has pictures' paths in its column
    `path`, or a column per number of an input; Parquet has pictures as Hugging Face's datasets do, or columns of
    numbers. CSV and Parquet output has a row per input and class, JSON lines an object per input.

    MODEL is a stage's folder or an exported one; that of an `evaluate` stage stands for its ensemble or committee.

    \b
    distill predict runs/stages/distill-1f0c92ab34de digit.png more.npy photos/
    distill predict student/ 'shards/*.tar' --top 1 --output answers.parquet --on-error skip
    """
    from raydistill import check_output, predict_batches, write_predictions
    from raydistill.errors import StageError
    from raydistill.terminal import Counting

    if output is not None:
        check_output(output)
    with Counting(is_shown=output is not None) as counting:
        batches = _told(
            predict_batches(model, inputs, top, trust, columns=columns, folder=folder), on_error, counting
        )
        if output is not None:
            write_predictions(output, batches)
        else:
            _print(batches)
    if on_error == "skip" and counting.failed == counting.done > 0:
        raise StageError(f"no input could be labelled; the first: {counting.first_error}")
    if counting.failed and on_error == "skip":
        click.echo(
            f"warning: left out {counting.failed} of {counting.done} inputs, which cannot be read; the first:"
            f" {printable(counting.first_error)}",
            err=True,
        )
    elif counting.failed:
        raise StageError(f"inputs that could not be labelled: {counting.failed}")


def _told(batches: Iterable["Labelled"], on_error: str, counting: "Counting") -> Iterator["Labelled"]:
    """The same predictions, counted; their errors go to stderr, or are left out."""
    for batch in batches:
        counting.add(len(batch.sources), list(batch.errors.values()))
        if on_error == "skip":
            yield batch.without_errors()
            continue
        for error in batch.errors.values():
            click.echo(f"error: {printable(error)}", err=True)
        yield batch


def _print(batches: Iterable["Labelled"]) -> None:
    for prediction in chain.from_iterable(batches):
        if prediction.error is None:
            ranked = "  ".join(
                f"{printable(label)} {probability:.4f}" for label, probability in prediction.ranked
            )
            click.echo(f"{printable(prediction.source)}\t{ranked}")


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets the whole network ask.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=5001, show_default=True, help="0: any free one."
)
@trust_options
def serve(model: Path, host: str, port: int, trust: "Trust") -> None:
    """Answer over HTTP what a model says of a picture or an array, until interrupted.

    POST /invocations takes a picture as it is in its file, a .npy, or JSON, {"inputs": [...]}, with lists of numbers or
    pictures in base64; the answer has the classes of each input and their probabilities, best first (?top=3). GET
    /model says what it takes.

    MODEL is a stage's folder or an exported one; that of an `evaluate` stage stands for its ensemble or committee.

    \b
    distill serve runs/stages/distill-1f0c92ab34de
    distill serve student/ --port 8080
    curl --data-binary @digit.png http://127.0.0.1:8080/invocations
    """
    from raydistill import serve_model

    serve_model(model, trust, host=host, port=port)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["torch", "onnx", "safetensors", "all"]),
    default="torch",
    show_default=True,
    help="torch: weights and a torch.export program; onnx: one file; safetensors: weights alone.",
)
@click.option("--opset", type=click.IntRange(min=18), help="ONNX opset; torch's choice if left out.")
@click.option(
    "--samples",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Compare ONNX with torch on these inputs; the task's test split if left out.",
)
@click.option("--measure", is_flag=True, help="Have memory and time on this machine on the page.")
@click.option(
    "--license", "terms", metavar="TEXT", help="What others may do with it, for the page and the file."
)
@trust_options
def export(
    model: Path,
    folder: Path,
    form: Literal["torch", "onnx", "safetensors", "all"],
    opset: int | None,
    samples: tuple[Path, ...],
    measure: bool,
    terms: str | None,
    trust: "Trust",
) -> None:
    """Write a trained model to FOLDER: weights and a torch.export program that needs only torch, or ONNX.

    Each gives the probabilities that `predict` prints; README.md in FOLDER says what it takes, the classes, how it was
    made and how good it is. ONNX takes bytes where samples are pictures, has labels' names inside and is compared with
    torch on real samples first. MODEL is a stage's folder; that of an `evaluate` stage stands for its ensemble.

    \b
    distill export runs/stages/distill-1f0c92ab34de student/
    distill export runs/stages/distill-1f0c92ab34de student/ --format onnx
    """
    from raydistill import export_model

    written = export_model(
        model, folder, trust, format=form, opset=opset, samples=samples, license=terms, measure=measure
    )
    for path in written:
        click.echo(str(path))


@click.command()
@click.argument("model", metavar="RUN|MODEL", type=click.Path(path_type=Path))
@json_option
@trust_options
def cost(model: Path, as_json: bool, trust: "Trust") -> None:
    """Measure what a model costs here, or what all models of a run do: size, multiply-adds, memory, time.

    Batches of 1 and 32 go through torch and onnxruntime, with one thread and with all; half of the runs are faster than
    p50, 95 % than p95. Memory is that of the whole process, with the runtime. Let nothing else run meanwhile.
    Of a run that MLflow shows, the numbers go there, too.

    \b
    distill cost runs/stages/distill-1f0c92ab34de
    distill cost runs/plans/mnist-quickstart/20261126-120000-1f0c --json
    """
    from raydistill import measure_costs, track_costs
    from raydistill.storage_tables import cost_parts, shown

    found = measure_costs(model, trust, runs=trust.root)
    track_costs(model, found, runs=trust.root)
    if as_json:
        echo_json([cost.to_dict() for cost in found])
    else:
        shown(*cost_parts(found))


@click.command("export-targets")
@click.argument("folder", metavar="RUN|STAGE", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@runs_option
@finds_own_modules
def export_targets(folder: Path, file: Path, root: Path) -> None:
    """Write stored targets to FILE (.npz, .safetensors, .parquet) for other programs.

    It has a row per sample and view: ids, names where samples are files, view, logits; of targets with `top_k` the
    classes (indices) and their log-probabilities. A stage `external_targets` reads it back.

    \b
    distill export-targets runs/stages/predict_targets-1f0c92ab34de logits.npz
    distill export-targets runs/plans/mnist-quickstart/20261126-120000-1f0c logits.parquet
    """
    from raydistill import export_targets as write

    click.echo(str(write(folder, file, root)))


@click.command()
@click.argument("folder", metavar="RUN|STAGE", type=click.Path(path_type=Path))
@click.option("--rows", default=256, show_default=True, help="How many rows to compute again.")
@click.option("--seed", default=0, show_default=True, help="Chooses the rows.")
@runs_option
@finds_own_modules
def verify(folder: Path, rows: int, seed: int, root: Path) -> None:
    """Compare every file of a run's stages, or of one stage, with its checksum.

    Of a stage with soft targets, a random sample is computed again from the teacher, and how far apart they are is
    reported.

    \b
    distill verify runs/plans/mnist-quickstart/20261126-120000-1f0c
    distill verify runs/stages/predict_targets-1f0c92ab34de
    """
    from raydistill import holds_targets, verify_files, verify_targets

    folder, root = folder.absolute(), root.absolute()
    if folder.is_dir() and not holds_targets(folder):
        count, damages = verify_files(folder, root)
        for damage in damages:
            click.echo(f"error: {printable(damage)}", err=True)
        click.echo(f"stages compared: {count}, as recorded: {count - len(damages)}")
        if damages:
            sys.exit(FAILED)
        return
    results = verify_targets(folder, root, rows, seed)
    for name, result in results.items():
        verdict = "as stored" if result.passed else "DIFFERENT"
        click.echo(
            f"{name}: {verdict}; the worst row, of sample {result.worst_sample_id}, is"
            f" {result.worst_divergence:.3g} {result.unit} apart (allowed {result.tolerance:.3g}), the mean"
            f" {result.mean_divergence:.3g}"
        )
    if not all(result.passed for result in results.values()):
        sys.exit(FAILED)
