"""Clips of sound with a class for every window, and the check that they can be used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serving.build.cache import BuildError, Tick, write_json
from serving.decoding import UNLOADABLE
from serving.registry.files import file_digest

SPLITS = ("calibration", "test")
#: The arrays inside the folder of the step that checked the data.
CLIPS = "clips.npz"


class Clips(NamedTuple):
    """One split: `windows` float32 [clips, windows, context + window], `classes` int64 [clips, windows]."""

    windows: np.ndarray
    classes: np.ndarray


def read_clips(folder: Path, split: str) -> Clips:
    """A split from the folder of `check_clips`."""
    with np.load(folder / CLIPS) as arrays:
        return Clips(arrays[f"{split}-windows"], arrays[f"{split}-classes"])


def expand(sound: np.ndarray) -> np.ndarray:
    """Samples float32 in [-1, 1] of 8-bit mu-law, uint8 (ITU-T G.711's curve, mu = 255, on evenly spaced codes)."""
    squeezed = sound.astype(np.float64) / 127.5 - 1
    return np.asarray(np.sign(squeezed) * np.expm1(np.abs(squeezed) * np.log1p(255)) / 255, np.float32)


def windows_of(samples: np.ndarray, window: int, context: int) -> np.ndarray:
    """Windows float32 [clips, windows, context + window] of samples [clips, n]; silence comes before the first."""
    count = samples.shape[1] // window
    padded = np.concatenate((np.zeros((len(samples), context), np.float32), samples), axis=1)
    return np.stack([padded[:, at * window : at * window + context + window] for at in range(count)], axis=1)


def check_clips(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Check `needs["file"]`; write `CLIPS` and `data.json`: windows by split and label, digests by split.

    Raises:
        BuildError: a damaged file, a missing array, another type or shape, a class that is none, a split without one of
            the labels, a clip in two splits.
    """
    path, labels = needs["file"], parameters["labels"]
    try:
        with np.load(path, allow_pickle=False) as stored:
            given = {name: stored[name] for name in stored.files}
    except (OSError, *UNLOADABLE) as error:
        raise BuildError(f"{path}: cannot be read: {error}") from error
    arrays: dict[str, np.ndarray] = {}
    counts, digests = {}, {}
    for split in SPLITS:
        sound, classes = (_array(path, given, f"{split}-{what}") for what in ("sound", "classes"))
        if classes.shape != (len(sound), sound.shape[1] // parameters["window"]):
            raise BuildError(f"{path}: {split}-classes has shape {list(classes.shape)} for sound {list(sound.shape)}")
        counts[split] = {label: int((classes == index).sum()) for index, label in enumerate(labels)}
        if sum(counts[split].values()) != classes.size:
            raise BuildError(f"{path}: {split}-classes holds {classes.max()}, expected 0 to {len(labels) - 1}")
        for label, count in counts[split].items():
            if not count:
                raise BuildError(f"{path}: split {split} has no window of {label!r}")
        digests[split] = hashlib.sha256(sound.tobytes() + classes.tobytes()).hexdigest()
        arrays[f"{split}-windows"] = windows_of(expand(sound), parameters["window"], parameters["context"])
        arrays[f"{split}-classes"] = classes.astype(np.int64)
    _check_disjoint(path, given)
    np.savez(out / CLIPS, allow_pickle=False, **arrays)
    rows = sum(sum(found.values()) for found in counts.values())
    clips = {split: len(arrays[f"{split}-classes"]) for split in SPLITS}
    write_json(
        out / "data.json",
        {"sha256": file_digest(path), "rows": rows, "clips": clips, "splits": counts, "split_sha256": digests},
    )


def _check_disjoint(path: Path, given: Mapping[str, np.ndarray]) -> None:
    """A clip may not begin one of the other split either, where those of one split are shorter."""
    calibration, test = (given[f"{split}-sound"] for split in SPLITS)
    common = min(calibration.shape[1], test.shape[1])
    home = {clip[:common].tobytes(): number for number, clip in enumerate(calibration)}
    for number, clip in enumerate(test):
        if (same := home.get(clip[:common].tobytes())) is not None:
            raise BuildError(
                f"{path}: clip {number} of test is clip {same} of calibration: a clip may be in one split only"
            )


def _array(path: Path, given: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in given:
        raise BuildError(f"{path}: no array {name!r}, it holds {', '.join(sorted(given)) or 'none'}")
    if given[name].ndim != 2 or given[name].dtype != np.uint8:
        raise BuildError(f"{path}: {name} is {given[name].dtype} {list(given[name].shape)}, expected uint8 [clips, …]")
    return given[name]
