"""From recordings and their transcripts to utterances that the task `speech_frames` reads.

    python -m raydistill.tasks.make.speech_align recordings/manifest.tsv data/speech

The manifest has the columns path, text, speaker and split (train, validation or test); paths are relative to it.
PocketSphinx aligns the text with the sound in two passes: words, then the states of their phones inside them.
A sentence that cannot be read or aligned is reported and left out; when more than a stated share of a split is lost
nothing is written, so that a part is never taken for the whole.
"""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import click

from raydistill.tasks.make.forced_alignment import (
    Aligned,
    Aligner,
    States,
    align_recording,
    load_pocketsphinx,
)
from raydistill.tasks.make.recordings import Recording, read_manifest
from raydistill.tasks.make.utterance_writer import Report, write_utterances


class _Worker:
    """A process's own aligner: loading the model takes half a second."""

    aligner: Aligner
    coefficients: int

    @classmethod
    def start(cls, states: States, coefficients: int) -> None:
        cls.aligner, cls.coefficients = Aligner(states), coefficients

    @classmethod
    def run(cls, recording: Recording) -> Aligned:
        return align_recording(recording, cls.aligner, cls.coefficients)


def align_all(
    recordings: Sequence[Recording], states: States, coefficients: int, workers: int
) -> Iterator[Aligned]:
    """Every recording in its order, aligned by several processes."""
    with ProcessPoolExecutor(workers, initializer=_Worker.start, initargs=(states, coefficients)) as pool:
        try:
            yield from pool.map(_Worker.run, recordings, chunksize=8)
        except BrokenProcessPool as error:
            raise ValueError("a process that aligns died; nothing was written") from error


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--states",
    type=click.Choice(["phones", "senones"]),
    default="senones",
    show_default=True,
    help="Labels: three states per phone, or the tied states of triphones (up to 5,126).",
)
@click.option("--coefficients", type=click.IntRange(1, 128), default=40, show_default=True)
@click.option(
    "--minimum-share",
    type=click.FloatRange(0, 1),
    default=0.9,
    show_default=True,
    help="End with an error when less than this of a split can be aligned.",
)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that align.")
def main(
    manifest: Path, folder: Path, states: States, coefficients: int, minimum_share: float, workers: int
) -> None:
    """Align the recordings that MANIFEST lists and write utterances into FOLDER."""
    try:
        load_pocketsphinx()
        recordings = read_manifest(manifest)
        if not recordings:
            raise ValueError(f"`{manifest}` lists no recordings")
        report = Report.of(recordings)
        outcomes = align_all(recordings, states, coefficients, workers)
        try:
            with click.progressbar(outcomes, len(recordings), "aligning", file=sys.stderr) as shown:
                write_utterances(shown, report, folder, coefficients, minimum_share)
        finally:
            for line in report.lines():
                click.echo(line, err=True)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"utterances, classes.json and alignment.json are in {folder}")


if __name__ == "__main__":
    main()
