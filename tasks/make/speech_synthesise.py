"""Test data for speech: sentences of a small grammar, spoken by espeak-ng's voices with noise added.

    python -m raydistill.tasks.make.speech_synthesise data/speech/audio --train-speakers 12 --test-speakers 4

Writes WAV files at 16 kHz and `manifest.tsv`, which `speech_align.py` reads. A speaker is an accent, a
variant of the voice, a pitch, a rate and a level of noise; no variant speaks in both splits.
"""

import csv
import random
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from raydistill.tasks.hashing import fold_key
from raydistill.tasks.make.log_mel import read_audio, to_samples, write_audio

# Accents that an acoustic model of American English follows, and variants that still sound like people.
ACCENTS = ("en-us", "en-us", "en-us-nyc", "en-gb", "en-gb-x-rp", "en-gb-scotland")
VARIANTS = (
    *("m1", "f2", "m3", "f4", "m7", "f3", "m2", "f1", "m4", "f5", "m5", "m6", "m8", "linda", "steph", "max"),
    *("anika", "norbert", "grandpa", "victor", "Andrea", "Alicia", "Diogo", "Marco"),
)

# Words of the CMU dictionary that together hold every phone of English but the vowel of `book`.
WORDS = {
    "person": (
        "doctor teacher farmer sailor baker painter soldier lawyer driver singer neighbor sister "
        "boy judge king"
    ),
    "quality": (
        "old young tall happy quiet angry clever hungry small strange yellow purple thirsty cheerful"
    ),
    "verb": (
        "finds sees follows watches carries remembers describes washes breaks forgets chooses throws enjoys"
    ),
    "thing": (
        "river mountain garden kitchen window bridge village orange basket feather treasure coin "
        "church horse ship garage machine picture yellow flower clock mouth bathroom"
    ),
    "place": "before after under behind between through near without",
    "time": "yesterday tomorrow slowly carefully loudly usually perhaps together again today",
    "number": ("one two three four five six seven eight nine eleven twelve twenty thirty hundred thousand"),
}


@dataclass(frozen=True)
class Speaker:
    """Words per minute, espeak's pitch (0 to 99), and the ratio of speech to noise in decibels."""

    name: str
    voice: str
    pitch: int
    rate: int
    noise: float


@dataclass(frozen=True)
class Utterance:
    """One sentence by one speaker; `path` is relative to the folder of the manifest."""

    path: str
    text: str
    speaker: Speaker
    split: str


def make_speakers(count: int, first: int, seed: int) -> list[Speaker]:
    """Speakers number `first` to `first + count - 1`. `ValueError` when espeak-ng has not enough variants."""
    if first + count > len(VARIANTS):
        raise ValueError(
            f"{first + count} speakers were asked for; there are {len(VARIANTS)} different voices"
        )
    return [_speaker(number, random.Random(fold_key(seed, number))) for number in range(first, first + count)]


def _speaker(number: int, draw: random.Random) -> Speaker:
    voice = f"{draw.choice(ACCENTS)}+{VARIANTS[number]}"
    return Speaker(f"s{number:02}", voice, draw.randint(25, 75), draw.randint(120, 185), draw.uniform(15, 35))


def sentences(count: int, seed: int) -> Iterator[str]:
    """`count` sentences in lower case without punctuation, the same for the same seed."""
    draw = random.Random(seed)

    def word(kind: str) -> str:
        return draw.choice(WORDS[kind].split())

    for _ in range(count):
        person, thing = word("person"), word("thing")
        start = f"the {word('quality')} {person} {word('verb')}"
        yield draw.choice(
            (
                f"{start} the {word('quality')} {thing} {word('time')}",
                f"{start} {word('number')} {word('quality')} {word('person')}s",
                f"{word('time')} {start} the {thing} {word('place')} the {word('thing')}",
                f"{word('number')} {word('thing')} {word('place')} the {word('person')}",
            )
        )


def utterances(split: str, speakers: Sequence[Speaker], count: int, seed: int) -> Iterator[Utterance]:
    """`count` sentences by each speaker, every speaker with sentences of their own."""
    for speaker in speakers:
        key = fold_key(seed, *split.encode(), *speaker.name.encode())
        for number, text in enumerate(sentences(count, key)):
            yield Utterance(f"{split}/{speaker.name}-{number:03}.wav", text, speaker, split)


def speak(utterance: Utterance, folder: Path) -> None:
    """Write the utterance's WAV file. `ValueError` with espeak-ng's words when it cannot speak."""
    speaker, path = utterance.speaker, folder / utterance.path
    with tempfile.TemporaryDirectory() as temporary:
        spoken = Path(temporary) / "spoken.wav"
        command = ["espeak-ng", "-v", speaker.voice, "-s", str(speaker.rate), "-p", str(speaker.pitch)]
        ended = subprocess.run([*command, "-w", str(spoken), utterance.text], capture_output=True, text=True)
        if ended.returncode or not spoken.is_file():
            raise ValueError(f"espeak-ng cannot speak as `{speaker.voice}`: {ended.stderr.strip()}")
        samples = read_audio(spoken)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, add_noise(samples, speaker.noise, fold_key(*utterance.path.encode())))


def add_noise(samples: NDArray[np.int16], decibels: float, key: int) -> NDArray[np.int16]:
    """White noise, `decibels` below the speech's mean power. The key decides the noise."""
    power = float(np.square(samples.astype(np.float64)).mean())
    scale = np.sqrt(power) * 10 ** (-decibels / 20)
    return to_samples(samples + scale * np.random.default_rng(key).standard_normal(len(samples)))


def write_recordings(path: Path, spoken: Sequence[Utterance]) -> None:
    """One line per utterance: path, text, speaker, split."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(("path", "text", "speaker", "split"))
        writer.writerows((each.path, each.text, each.speaker.name, each.split) for each in spoken)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--train-speakers", default=12, show_default=True)
@click.option("--test-speakers", default=4, show_default=True)
@click.option("--train-sentences", default=60, show_default=True, help="Sentences of each training speaker.")
@click.option("--test-sentences", default=40, show_default=True, help="Sentences of each test speaker.")
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Sentences spoken at a time.")
def main(
    folder: Path,
    train_speakers: int,
    test_speakers: int,
    train_sentences: int,
    test_sentences: int,
    seed: int,
    workers: int,
) -> None:
    """Speak sentences into FOLDER and write FOLDER/manifest.tsv. Needs the program `espeak-ng`."""
    try:
        # Testers come first: with more training speakers the test stays the same.
        testers = make_speakers(test_speakers, 0, seed)
        trainers = make_speakers(train_speakers, test_speakers, seed)
        spoken = [
            *utterances("train", trainers, train_sentences, seed),
            *utterances("test", testers, test_sentences, seed),
        ]
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda each: speak(each, folder), spoken))
    except FileNotFoundError as error:
        raise click.ClickException(f"{error.filename}: not found; install the program espeak-ng") from error
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    write_recordings(folder / "manifest.tsv", spoken)
    click.echo(f"{len(spoken)} utterances by {len(trainers)} + {len(testers)} speakers in {folder}")


if __name__ == "__main__":
    main()
