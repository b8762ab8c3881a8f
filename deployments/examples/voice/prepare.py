"""Make the example's data: speech spoken by espeak-ng in noise, and what in it is speech.

    python deployments/examples/voice/prepare.py [--out FILE]

Needs Debian's `espeak-ng`. Every clip holds one or two sentences between pauses, mixed with white, pink, humming or
babbling noise at 0 to 25 dB; a window of 512 samples is speech if the clean voice is loud enough in it. Sound is kept
as 8-bit mu-law (the curve of ITU-T G.711) at 16 kHz. The noise is drawn from fixed seeds.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
from scipy.signal import lfilter, resample_poly

RATE, WINDOW, WINDOWS = 16_000, 512, 80
SPLITS = (("calibration", 12), ("test", 40))
VOICES = ("en-gb", "en-us", "de", "fr", "es", "it", "pl", "pt", "nl", "sv")
SENTENCES = (
    "Please turn on the light in the kitchen.",
    "What will the weather be like tomorrow?",
    "Play the next song.",
    "Set a timer for ten minutes.",
    "The quick brown fox jumps over the lazy dog.",
    "Call me back when you are at home.",
    "Stop.",
    "Yes, that is right.",
    "How far is it to the station from here?",
    "Open the window a little, it is warm.",
)
#: A window is speech from this power on, in dB below the loudest window of the clip's clean voice.
FLOOR_DB = -32.0


def speak(text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    """A sentence as float64 at 16 kHz, its peak at 1."""
    command = ["espeak-ng", "--stdout", "-v", voice, "-s", str(speed), "-p", str(pitch), text]
    try:
        spoken = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(f"cannot run espeak-ng ({error}): install Debian's espeak-ng")
    with wave.open(io.BytesIO(spoken)) as sound:
        samples = np.frombuffer(sound.readframes(sound.getnframes()), np.int16).astype(np.float64)
        rate = sound.getframerate()
    resampled = resample_poly(samples, RATE // 50, rate // 50)
    return np.asarray(resampled / np.abs(resampled).max())


def noise(kind: str, size: int, chance: np.random.Generator) -> np.ndarray:
    """Noise of power 1."""
    white = chance.normal(size=size)
    if kind == "pink":
        made = lfilter([0.05, -0.096, 0.05, -0.004], [1, -2.495, 2.017, -0.522], white)
    elif kind == "hum":
        at = np.arange(size) / RATE
        made = sum(np.sin(2 * np.pi * 50 * n * at + chance.uniform(0, 6.28)) / n for n in (1, 2, 3, 5)) + 0.1 * white
    elif kind == "babble":  # bursts of filtered noise at the rate of syllables
        gate = np.repeat(chance.random(size // 3000 + 1) < 0.5, 3000)[:size]
        made = lfilter([1], [1, -0.9], white) * (0.2 + gate)
    else:
        made = white
    return np.asarray(made / np.sqrt(np.mean(made**2)))


def clip(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Sound float64 [samples], and for each window whether it is speech, uint8 [windows]."""
    chance = np.random.default_rng(number)
    clean = np.zeros(WINDOW * WINDOWS)
    at = int(chance.uniform(0.1, 0.8) * RATE)
    for _ in range(2):
        voice, text = chance.choice(VOICES), str(chance.choice(SENTENCES))
        spoken = speak(text, str(voice), int(chance.integers(130, 200)), int(chance.integers(20, 80)))
        spoken = spoken[: max(0, len(clean) - at)] * chance.uniform(0.3, 0.8)
        clean[at : at + len(spoken)] = spoken
        at += len(spoken) + int(chance.uniform(0.3, 1.0) * RATE)
    power = (clean.reshape(WINDOWS, WINDOW) ** 2).mean(axis=1)
    speech = power > power.max() * 10 ** (FLOOR_DB / 10)
    snr_db, kind = chance.uniform(0, 25), str(chance.choice(["white", "pink", "hum", "babble"]))
    level = np.sqrt(power[speech].mean() / 10 ** (snr_db / 10))
    mixed = clean + level * noise(kind, len(clean), chance)
    return mixed / max(1.0, np.abs(mixed).max()), speech.astype(np.uint8)


def mu_law(samples: np.ndarray) -> np.ndarray:
    """8-bit mu-law, uint8, of samples in [-1, 1]."""
    squeezed = np.sign(samples) * np.log1p(255 * np.abs(samples)) / np.log1p(255)
    return np.round((squeezed + 1) * 127.5).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the voice example's data.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data" / "speech.npz")
    options = parser.parse_args()
    arrays: dict[str, np.ndarray] = {}
    first = 1
    for split, count in SPLITS:
        clips = [clip(number) for number in range(first, first + count)]
        first += count
        arrays[f"{split}-sound"] = np.stack([mu_law(sound) for sound, _ in clips])
        arrays[f"{split}-classes"] = np.stack([classes for _, classes in clips])
        print(f"{split}: {count} clips, {arrays[f'{split}-classes'].mean():.1%} of the windows are speech")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.out, allow_pickle=False, **arrays)


if __name__ == "__main__":
    main()
