"""Which state of which phone is spoken in every frame of a recording, found by PocketSphinx from its words.

It searches twice: for the words in the sound, then for the states of their phones inside them.
"""

import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raydistill.tasks.make.log_mel import log_mel, read_audio
from raydistill.tasks.make.recordings import Recording

States = Literal["phones", "senones"]
# PocketSphinx and we may differ by the last frame, which it pads.
LARGEST_DIFFERENCE = 2


@dataclass(frozen=True)
class Span:
    """A state of a phone, and the frames [start, start + duration) it covers."""

    state: str
    start: int
    duration: int


@dataclass(frozen=True)
class Aligned:
    """What became of a recording: features (T, coefficients) and T names of states, or why there are none."""

    recording: Recording
    features: NDArray[np.float32] | None = None
    states: tuple[str, ...] = ()
    failure: str = ""


def words_of(text: str) -> list[str]:
    """Words as a pronouncing dictionary lists them: lower case, no punctuation except apostrophes within."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("’", "'"))


class Aligner:
    """PocketSphinx with its American English model; `align` may be called any number of times."""

    def __init__(self, states: States) -> None:
        self.states = states
        self.decoder = load_pocketsphinx().Decoder(
            lm=None,
            loglevel="FATAL",
            # The lattice's best path moves the words' ends; a phone of three states may then have two frames, and
            # the second search fails: for 18 of 40 synthetic sentences, and for none without it.
            bestpath=False,
            # Voices unlike the model's are far from its best path; the text is fixed, so wide beams cost little.
            beam=1e-200,
            pbeam=1e-200,
            wbeam=1e-150,
            # The mean of the utterance, not a running one: the result must not depend on what came before.
            cmn="batch",
        )

    def align(self, samples: NDArray[np.int16], text: str) -> list[Span]:
        """The states spoken in samples (N,) at 16 kHz, in order. `ValueError` says why there are none."""
        words = words_of(text)
        unknown = [word for word in words if self.decoder.lookup_word(word) is None]
        if unknown or not words:
            raise ValueError(
                f"has the word `{unknown[0]}` that the dictionary lacks" if unknown else "has no words"
            )
        self.decoder.set_align_text(" ".join(words))
        self._search(samples, "the words do not fit the sound")
        # Asked for after the first pass only: after the second, PocketSphinx 5.1.1 crashes on it.
        if self.decoder.hyp() is None:
            raise ValueError("the words do not fit the sound")
        self.decoder.set_alignment()
        self._search(samples, "the states do not fit the words")
        return list(read_spans(self.decoder.get_alignment(), self.states))

    def _search(self, samples: NDArray[np.int16], failure: str) -> None:
        self.decoder.start_utt()
        try:
            self.decoder.process_raw(samples.tobytes(), full_utt=True)
            self.decoder.end_utt()
        except RuntimeError as error:  # its only exception; the reason goes to its log
            raise ValueError(failure) from error


def load_pocketsphinx() -> Any:
    """The module `pocketsphinx`; `ModuleNotFoundError` with the way to get it."""
    try:
        return importlib.import_module("pocketsphinx")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`pocketsphinx` is not installed; install it with `pip install 'raydistill[speech]'`"
        ) from error


def read_spans(alignment: Iterable[Any], states: States) -> Iterator[Span]:
    """PocketSphinx's tree of words, phones and states as a list of states.

    A state is named by phone and place in it, `AH.1`; with `senones` also by the tied state of the triphone that it
    is here, `AH.1.873`. Silence and noises are phones too: SIL, +NSN+, +SPN+.
    """
    for word in alignment:
        for phone in word:
            for place, state in enumerate(phone):
                name = f"{phone.name}.{place}"
                yield Span(
                    f"{name}.{state.name}" if states == "senones" else name, state.start, state.duration
                )


def states_of_frames(spans: Sequence[Span]) -> tuple[str, ...]:
    """One state per frame. `ValueError` when the spans leave a gap or overlap."""
    states: list[str] = []
    for span in spans:
        if span.start != len(states) or span.duration < 1:
            raise ValueError(f"the alignment is broken at frame {len(states)}")
        states += [span.state] * span.duration
    return tuple(states)


def align_recording(recording: Recording, aligner: Aligner, coefficients: int) -> Aligned:
    """Features and states of one recording, or the reason why there are none."""
    try:
        samples = read_audio(recording.file)
        features = log_mel(samples, coefficients)
        states = states_of_frames(aligner.align(samples, recording.text))
        if abs(len(states) - len(features)) > LARGEST_DIFFERENCE:
            raise ValueError(f"{len(states)} of {len(features)} frames were aligned")
    except FileNotFoundError:
        return Aligned(recording, failure="the file is not there")
    except (ValueError, OSError) as error:
        return Aligned(recording, failure=str(error))
    length = min(len(states), len(features))
    return Aligned(recording, features[:length], states[:length])
