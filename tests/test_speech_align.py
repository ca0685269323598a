"""From sound and text to utterances: features, the reading of alignments, and what is done about failures."""

import math
import re
import shutil
import subprocess
import wave
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from raydistill.tasks.make.forced_alignment import (
    Aligned,
    Aligner,
    Span,
    align_recording,
    read_spans,
    states_of_frames,
    words_of,
)
from raydistill.tasks.make.log_mel import RATE, log_mel, mel_filters, read_audio, resample, write_audio
from raydistill.tasks.make.recordings import Recording, read_manifest
from raydistill.tasks.make.speech_align import main
from raydistill.tasks.make.speech_synthesise import (
    Speaker,
    Utterance,
    add_noise,
    make_speakers,
    sentences,
    speak,
)
from raydistill.tasks.make.utterance_writer import Report, write_utterances
from raydistill.tasks.speech_frames import SpeechFrames

HEADER = "path\ttext\tspeaker\tsplit\n"


def sine(hertz: float, seconds: float = 0.1, rate: int = RATE, loudness: float = 10_000) -> np.ndarray:
    times = np.arange(round(seconds * rate)) / rate
    return np.rint(loudness * np.sin(2 * np.pi * hertz * times)).astype(np.int16)


# --- features --------------------------------------------------------------------------------------------------------


def slow_log_mel(samples: np.ndarray, frame: int, coefficients: int) -> list[float]:
    """One frame by the definitions: a Hann window, a DFT of 512 points, triangles between points even in mel."""
    piece = [
        samples[160 * frame + n] / 32_768 * (0.5 - 0.5 * math.cos(2 * math.pi * n / 400)) for n in range(400)
    ]
    power = []
    for k in range(257):
        real = sum(value * math.cos(2 * math.pi * k * n / 512) for n, value in enumerate(piece))
        imaginary = sum(value * math.sin(2 * math.pi * k * n / 512) for n, value in enumerate(piece))
        power.append(real**2 + imaginary**2)
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (20, 7600))
    step = (high - low) / (coefficients + 1)
    logarithms = []
    for filter_number in range(coefficients):
        centre = low + step * (filter_number + 1)
        distances = [abs(2595 * math.log10(1 + k * 31.25 / 700) - centre) / step for k in range(257)]
        energy = sum(max(0.0, 1 - away) * value for away, value in zip(distances, power, strict=True))
        logarithms.append(math.log(max(energy, 1e-8)))
    return logarithms


@pytest.mark.parametrize("hertz", [440.0, 3000.0])
def test_log_mel_is_what_a_slow_transform_gives(hertz: float) -> None:
    samples = sine(hertz, 0.06)
    features = log_mel(samples, 10)
    assert features.shape == (1 + (len(samples) - 400) // 160, 10)
    for frame in (0, len(features) - 1):
        np.testing.assert_allclose(features[frame], slow_log_mel(samples, frame, 10), atol=1e-4)


def test_a_sine_is_loudest_in_the_filter_around_it() -> None:
    edges = 700 * (10 ** (np.linspace(*(2595 * np.log10(1 + np.array([20, 7600]) / 700)), 42) / 2595) - 1)
    for number in (5, 20, 35):
        assert (log_mel(sine(edges[number + 1])).argmax(axis=1) == number).all()


def test_every_filter_hears_something() -> None:
    assert (mel_filters(40).sum(axis=1) > 0).all()


def test_twice_the_amplitude_adds_the_logarithm_of_four() -> None:
    difference = log_mel(sine(1000, loudness=16_000)) - log_mel(sine(1000, loudness=8000))
    np.testing.assert_allclose(difference.max(axis=1), math.log(4), atol=1e-3)


def test_silence_is_finite_and_less_than_a_window_is_refused() -> None:
    assert np.isfinite(log_mel(np.zeros(400, dtype=np.int16))).all()
    with pytest.raises(ValueError, match="has 24 ms of sound; one frame needs 25 ms"):
        log_mel(np.zeros(390, dtype=np.int16))


def test_a_resampled_sine_is_the_sine() -> None:
    wanted, found = sine(700, 0.5), resample(sine(700, 0.5, rate=22_050), 22_050)
    assert len(found) == len(wanted)
    assert np.abs(found[500:-500].astype(int) - wanted[500:-500]).max() < 20


def test_sound_survives_its_file_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_audio(path, sine(300))
    np.testing.assert_array_equal(read_audio(path), sine(300))
    with wave.open(str(path), "wb") as stream:
        stream.setparams((2, 2, RATE, 0, "NONE", ""))
        stream.writeframes(bytes(400))
    with pytest.raises(ValueError, match=r"has 2 channel\(s\) of 16 bits"):
        read_audio(path)
    path.write_bytes(b"no sound")
    with pytest.raises(ValueError, match="not a readable WAV file"):
        read_audio(path)


# --- the manifest ----------------------------------------------------------------------------------------------------


def test_a_manifest_is_read_relative_to_itself_with_tabs_or_commas(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(HEADER + "x/1.wav\tHello, world\tann\ttrain\n")
    (tmp_path / "a.csv").write_text('split,text,path,speaker,more\ntrain,"Hello, world",x/1.wav,ann,7\n')
    expected = [Recording("x/1.wav", tmp_path / "x/1.wav", "Hello, world", "ann", "train")]
    assert read_manifest(tmp_path / "a.tsv") == read_manifest(tmp_path / "a.csv") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\ttext\tsplit\n", "no column `speaker`"),
        ("", "no column `path`"),
        (
            HEADER + "1.wav\thello\tann\tdev\n",
            "line 2 of .* has the split `dev`; write train, validation, test",
        ),
        (HEADER + "1.wav\thello\tann\ttrain\n2.wav\t \tann\ttrain\n", "line 3 of .* has an empty `text`"),
        (HEADER + "1.wav\thello\n", "line 2 of .* has an empty `speaker`"),
        (HEADER + 2 * "1.wav\thello\tann\ttrain\n", "lists `1.wav` more than once"),
    ],
)
def test_a_line_that_is_not_valid_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.tsv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path / "manifest.tsv")


def test_words_are_lower_case_and_without_punctuation() -> None:
    words = words_of("The dog’s \"big\", well-known o'clock; isn't it? 'Em!")
    assert words == ["the", "dog's", "big", "well", "known", "o'clock", "isn't", "it", "em"]


# --- alignments ------------------------------------------------------------------------------------------------------


@dataclass
class Entry:
    """What PocketSphinx gives: a word of phones, a phone of states."""

    name: str
    start: int = 0
    duration: int = 0
    children: list["Entry"] = field(default_factory=list)

    def __iter__(self) -> Iterator["Entry"]:
        return iter(self.children)


def tree() -> list[Entry]:
    the = [Entry("1406", 0, 2), Entry("1451", 2, 1), Entry("1462", 3, 1)]
    quiet = [Entry("96", 4, 1), Entry("97", 5, 1), Entry("98", 6, 3)]
    return [
        Entry("the(2)", 0, 4, [Entry("DH", 0, 4, the)]),
        Entry("<sil>", 4, 5, [Entry("SIL", 4, 5, quiet)]),
    ]


def test_states_are_named_by_phone_and_place_or_by_senone_too() -> None:
    phones = states_of_frames(list(read_spans(tree(), "phones")))
    assert phones == ("DH.0", "DH.0", "DH.1", "DH.2", "SIL.0", "SIL.1", "SIL.2", "SIL.2", "SIL.2")
    senones = states_of_frames(list(read_spans(tree(), "senones")))
    assert (senones[0], senones[-1]) == ("DH.0.1406", "SIL.2.98")


@pytest.mark.parametrize(
    "spans", [[(0, 2), (3, 1)], [(0, 2), (1, 2)], [(1, 2)], [(0, 2), (2, 0)], [(0, 2), (2, -1)]]
)
def test_an_alignment_with_gaps_or_overlaps_is_refused(spans: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="broken at frame"):
        states_of_frames([Span("AH.0", *span) for span in spans])


class FakeAligner(Aligner):
    """Says the same state for `short` frames less than there are; refuses the text `no`."""

    def __init__(self, short: int = 0) -> None:
        self.short = short

    def align(self, samples: np.ndarray, text: str) -> list[Span]:
        if text == "no":
            raise ValueError("the words do not fit the sound")
        frames = 1 + (len(samples) - 400) // 160
        return [Span("AH.0", 0, 3), Span(f"{text}.1", 3, frames - 3 - self.short)]


def recording(tmp_path: Path, name: str, text: str = "IY", split: str = "train") -> Recording:
    return Recording(name, tmp_path / name, text, "ann", split)


@pytest.mark.parametrize(("short", "length"), [(0, 8), (1, 7), (-1, 8)])
def test_a_last_frame_that_only_one_side_has_is_cut(tmp_path: Path, short: int, length: int) -> None:
    write_audio(tmp_path / "a.wav", sine(300))
    aligned = align_recording(recording(tmp_path, "a.wav"), FakeAligner(short), 40)
    assert aligned.features is not None
    assert (len(aligned.features), len(aligned.states)) == (length, length)


def test_what_cannot_be_aligned_says_why(tmp_path: Path) -> None:
    write_audio(tmp_path / "good.wav", sine(300))
    write_audio(tmp_path / "short.wav", sine(300, 0.02))
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    reasons = {
        name: align_recording(recording(tmp_path, name, text), FakeAligner(short), 40).failure
        for name, text, short in (
            ("missing.wav", "IY", 0),
            ("short.wav", "IY", 0),
            ("broken.wav", "IY", 0),
            ("good.wav", "no", 0),
        )
    }
    assert reasons["missing.wav"] == "the file is not there"
    assert reasons["short.wav"] == "has 20 ms of sound; one frame needs 25 ms"
    assert "not a readable WAV file" in reasons["broken.wav"]
    assert reasons["good.wav"] == "the words do not fit the sound"
    partly = align_recording(recording(tmp_path, "good.wav"), FakeAligner(short=4), 40)
    assert partly.failure == "4 of 8 frames were aligned"


def outcomes(tmp_path: Path, failed: int) -> list[Aligned]:
    """Ten recordings for training, of which the first `failed` have failed, and one for the test."""
    names = [f"{number}.wav" for number in range(10)]
    every = [recording(tmp_path, name) for name in names] + [recording(tmp_path, "t.wav", split="test")]
    features = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32)
    states = ("SIL.0", "SIL.1", "AH.0", "AH.0", "AH.1", "SIL.0")
    return [
        Aligned(each, failure="too quiet") if place < failed else Aligned(each, features, states)
        for place, each in enumerate(every)
    ]


def test_what_is_written_is_what_the_task_reads(tmp_path: Path) -> None:
    done = outcomes(tmp_path, failed=1)
    report = Report.of([each.recording for each in done])
    write_utterances(done, report, tmp_path / "data", 40, 0.9)
    task = SpeechFrames(folder=tmp_path / "data", validation_fraction=0)
    data = task.load()
    assert task.class_names == ("SIL.0", "SIL.1", "AH.0", "AH.1")
    assert data.train.labels.tolist() == [0, 1, 2, 2, 3, 0] * 9
    assert data.test.labels.tolist() == [0, 1, 2, 2, 3, 0]
    assert list(report.lines()) == [
        "`0.wav`: too quiet",
        "train: 9 of 10 aligned (90.0%), 54 frames",
        "test: 1 of 1 aligned (100.0%), 6 frames",
    ]
    assert "too quiet" in (tmp_path / "data" / "alignment.json").read_text()


def test_when_too_much_of_one_split_fails_nothing_is_written(tmp_path: Path) -> None:
    done = outcomes(tmp_path, failed=2)
    report = Report.of([each.recording for each in done])
    with pytest.raises(ValueError, match=r"only 80.0% of `train` could be aligned, less than the 90.0%"):
        write_utterances(done, report, tmp_path / "data", 40, 0.9)
    assert list((tmp_path / "data").iterdir()) == []
    write_utterances(done, Report.of([each.recording for each in done]), tmp_path / "data", 40, 0.8)
    with pytest.raises(ValueError, match="already holds utterances"):
        write_utterances(done, report, tmp_path / "data", 40, 0.8)


# --- the synthesiser -------------------------------------------------------------------------------------------------


def test_speakers_and_sentences_repeat_under_a_seed_and_voices_never_do() -> None:
    speakers = make_speakers(16, 0, seed=0)
    assert speakers[4:] == make_speakers(12, 4, seed=0)
    assert len({speaker.voice.split("+")[1] for speaker in speakers}) == 16
    assert list(sentences(20, 3)) == list(sentences(20, 3)) != list(sentences(20, 4))
    with pytest.raises(ValueError, match="different voices"):
        make_speakers(100, 0, seed=0)


def test_noise_is_as_far_below_the_speech_as_asked_for() -> None:
    speech = sine(300, 1.0)
    noise = add_noise(speech, 20, key=1).astype(float) - speech
    assert 10 * math.log10(np.square(speech.astype(float)).mean() / np.square(noise).mean()) == pytest.approx(
        20, abs=0.2
    )


def speaks(voice: str) -> bool:
    """Whether espeak-ng is there."""
    return (
        shutil.which("espeak-ng") is not None
        and not subprocess.run(
            ["espeak-ng", "-v", voice, "-q", "yes"], capture_output=True, check=False
        ).returncode
    )


@pytest.mark.skipif(find_spec("pocketsphinx") is None, reason="needs the extra `speech`: pocketsphinx")
@pytest.mark.skipif(not speaks("en-us"), reason="needs the program espeak-ng")
def test_spoken_words_are_found_in_their_order(tmp_path: Path) -> None:
    texts = {"train": "The teacher sees a boy.", "test": "A boy sees the horse."}
    for split, text in texts.items():
        speak(Utterance(f"{split}.wav", text, Speaker("s", "en-us+m3", 40, 150, 30), split), tmp_path)
    lines = [f"{split}.wav\t{text}\ts\t{split}\n" for split, text in texts.items()]
    (tmp_path / "manifest.tsv").write_text(HEADER + "".join(lines))
    arguments = [str(tmp_path / "manifest.tsv"), str(tmp_path / "data"), "--states", "phones"]
    ended = CliRunner().invoke(main, arguments)
    assert ended.exit_code == 0, ended.output
    task = SpeechFrames(folder=tmp_path / "data", validation_fraction=0)
    states = [task.class_names[label] for label in task.load().train.labels]
    phones = [state.split(".")[0] for state, _ in groupby(states) if state.endswith(".0")]
    # CMU's dictionary: "the" and "a" have two pronunciations each.
    expected = "DH (AH|IY) T IY CH ER S IY Z (AH|EY) B OY"
    assert re.fullmatch(expected, " ".join(phone for phone in phones if phone.isalpha() and phone != "SIL"))


@pytest.mark.skipif(find_spec("pocketsphinx") is None, reason="needs the extra `speech`: pocketsphinx")
def test_a_word_that_the_dictionary_lacks_is_a_failure_that_is_counted(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", sine(300, 0.5))
    (tmp_path / "manifest.tsv").write_text(HEADER + "a.wav\tthe zzyzxq\tann\ttrain\n")
    ended = CliRunner().invoke(main, [str(tmp_path / "manifest.tsv"), str(tmp_path / "data")])
    assert ended.exit_code == 1
    assert "`a.wav`: has the word `zzyzxq` that the dictionary lacks" in ended.output
    assert "train: 0 of 1 aligned (0.0%)" in ended.output
    assert "nothing was written" in ended.output
