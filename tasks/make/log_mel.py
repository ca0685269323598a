"""From a WAV file to log-Mel features: 40 coefficients of 25 ms of sound, every 10 ms.

Frames are not centred: frame t begins at sample 160 t, as in PocketSphinx, so that its labels fall on our frames.
"""

import wave
from functools import lru_cache
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
WINDOW, SHIFT, TRANSFORM = 400, 160, 512
# The range that Kaldi's 40-filter recipes use: telephone hum and the edge of the anti-alias filter lie outside.
LOWEST, HIGHEST = 20.0, 7600.0
# About what the rounding to 16 bits leaves in a filter: digital silence must not become an outlier.
FLOOR = 1e-8


def read_audio(path: Path) -> NDArray[np.int16]:
    """Samples (N,) at 16 kHz of a mono 16-bit WAV file of any rate. `ValueError` says what is wrong with it."""
    try:
        with wave.open(str(path), "rb") as stream:
            channels, width, rate = stream.getnchannels(), stream.getsampwidth(), stream.getframerate()
            content = stream.readframes(stream.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"is not a readable WAV file: {error}") from error
    if (channels, width) != (1, 2):
        raise ValueError(f"has {channels} channel(s) of {8 * width} bits, not one of 16")
    return resample(np.frombuffer(content[: len(content) // 2 * 2], dtype="<i2").astype(np.int16), rate)


def write_audio(path: Path, samples: NDArray[np.int16]) -> None:
    """Samples (N,) at 16 kHz as a mono 16-bit WAV file."""
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(RATE)
        stream.writeframes(samples.astype("<i2").tobytes())


def resample(samples: NDArray[np.int16], rate: int) -> NDArray[np.int16]:
    """Samples (N,) at `rate` → about N · 16,000 / rate samples at 16 kHz, through a polyphase low-pass filter."""
    if rate == RATE or not len(samples):
        return samples
    from scipy.signal import resample_poly

    divisor = gcd(rate, RATE)
    return to_samples(resample_poly(samples.astype(np.float64), RATE // divisor, rate // divisor))


def to_samples(values: NDArray[np.float64]) -> NDArray[np.int16]:
    """Rounded to 16 bits; what is too loud is clipped."""
    return np.clip(np.rint(values), -32_768, 32_767).astype(np.int16)


def log_mel(samples: NDArray[np.int16], coefficients: int = 40) -> NDArray[np.float32]:
    """Natural logarithm of the Mel filters' energy, (N,) at 16 kHz → (frames, coefficients).

    Each frame is a Hann window of 25 ms; frames = 1 + (N - 400) // 160, and `ValueError` when there is not one.
    """
    if len(samples) < WINDOW:
        raise ValueError(f"has {1000 * len(samples) / RATE:.0f} ms of sound; one frame needs 25 ms")
    pieces = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::SHIFT]
    window = np.hanning(WINDOW + 1)[:-1] / 32_768  # periodic, and samples scaled to [-1, 1)
    spectrum = np.fft.rfft(pieces * window, TRANSFORM)
    energy = np.square(np.abs(spectrum)) @ mel_filters(coefficients).T
    return np.log(np.maximum(energy, FLOOR)).astype(np.float32)


@lru_cache(maxsize=4)
def mel_filters(coefficients: int) -> NDArray[np.float64]:
    """Triangles of equal width and overlap on the Mel scale, (coefficients, frequencies of the transform)."""
    edges = np.linspace(to_mel(np.array(LOWEST)), to_mel(np.array(HIGHEST)), coefficients + 2)[:, None]
    mels = to_mel(np.fft.rfftfreq(TRANSFORM, 1 / RATE))
    rising = (mels - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mels) / (edges[2:] - edges[1:-1])
    filters: NDArray[np.float64] = np.maximum(0, np.minimum(rising, falling))
    return filters


def to_mel(hertz: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Mels of O'Shaughnessy's formula, 2595 · log10(1 + f / 700)."""
    mels: NDArray[np.float64] = 2595 * np.log10(1 + hertz / 700)
    return mels
