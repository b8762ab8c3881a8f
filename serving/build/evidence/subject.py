"""The rows on which a variant is examined: what slices and what perturbations fit the data.

Decided by the tensors alone: strings are texts, numbers are readings of sensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.build.evidence import adversarial, drift, perturb, slices
from serving.build.evidence.examine import ROWS, TRIES, Inputs, Subject
from serving.build.examples import Examples
from serving.build.rows import spread


def masks_of(train: Examples, rows: Examples, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Slices of rows by class and by terciles, cut on the training rows: slice -> bool [n]."""
    masks = slices.class_slices(rows.classes, labels)
    measured, reference = _features(rows.inputs), _features(train.inputs)
    for name, values in measured.items():
        masks |= slices.tercile_slices(name, values, slices.tercile_edges(reference[name]))
    return masks


def subject_of(train: Examples, test: Examples, labels: Sequence[str]) -> Subject:
    """Slices (see `masks_of`), and perturbations of `ROWS` evenly spread test rows."""
    chosen = spread(len(test), ROWS)
    few = dict(test.at(chosen).inputs)
    return Subject(
        dict(test.inputs),
        test.classes,
        masks_of(train, test, labels),
        chosen,
        _perturbations(train.inputs, few),
        _hostile(train.inputs, few),
        _target(train, test),
    )


def _is_text(values: np.ndarray) -> bool:
    return values.dtype == object


def _texts(values: np.ndarray) -> list[str]:
    return [row.decode(errors="replace") for row in values.ravel()]


def _features(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What rows are sliced by: the length of a text, the distance of a reading from the middle of its own row."""
    found = {}
    for name, values in inputs.items():
        if _is_text(values):
            found[f"{name} length"] = np.array([len(text) for text in _texts(values)], float)
        elif values.dtype.kind == "f" and values.ndim == 2:
            found[f"{name} magnitude"] = np.abs(values).mean(axis=1).astype(float)
    return found


def _perturbations(train: Mapping[str, np.ndarray], rows: Inputs) -> dict[str, Inputs]:
    found: dict[str, Inputs] = {}
    for name, values in rows.items():
        if _is_text(values):
            texts = _texts(values)
            for kind in perturb.TEXT:
                found[kind] = {**rows, name: _blob(perturb.perturb_texts(kind, texts))}
        elif values.dtype.kind == "f" and values.ndim == 2:
            for kind in perturb.NUMERIC:
                found[kind] = {**rows, name: _shaken(kind, train[name], values, perturb.SEED)}
    return found


def _hostile(train: Mapping[str, np.ndarray], rows: Inputs) -> list[Inputs]:
    """Further draws of the perturbation that whoever wants a wrong answer can make: a typo, or noise."""
    tries: list[Inputs] = []
    for number in range(TRIES):
        seed, changed = perturb.SEED + 1 + number, dict(rows)
        for name, values in rows.items():
            if _is_text(values):
                changed[name] = _blob(perturb.perturb_texts("typos", _texts(values), seed))
            elif values.dtype.kind == "f" and values.ndim == 2:
                changed[name] = _shaken("sensor noise", train[name], values, seed)
            else:
                return []
        tries.append(changed)
    return tries


def _target(train: Examples, test: Examples) -> adversarial.Target | None:
    """Evenly spread rows to attack, where all that a row has is one list of numbers."""
    (name, values), *others = train.inputs.items()
    if others or values.dtype.kind != "f" or values.ndim != 2 or not len(test):
        return None
    chosen = spread(len(test), adversarial.ROWS)
    starts = values[spread(len(values), adversarial.STARTS)]
    deviation = starts.std(axis=0).astype(float)
    return adversarial.Target(
        name, test.inputs[name][chosen], test.classes[chosen], starts, np.where(deviation > 0, deviation, 1.0)
    )


def _blob(texts: Sequence[str]) -> np.ndarray:
    return np.array([text.encode() for text in texts], dtype=object)


def _shaken(kind: str, train: np.ndarray, values: np.ndarray, seed: int) -> np.ndarray:
    return perturb.perturb_values(kind, values, train.std(axis=0), np.median(train, axis=0), seed)


def calibration_drift(train: Examples, calibration: Examples, rows: int) -> dict[str, Any]:
    """Whether the calibration rows are like the training rows.

    Args:
        rows: of the calibration split that the ranges of INT8 come from; the temperature comes from the whole split.

    Returns:
        `split`: input -> what `drift` found of all of them; `ranges`: the same of those that ranges come from, empty
        if they are too few.
    """
    chosen = calibration.at(spread(len(calibration), rows))
    return {
        "split": _drift(train, calibration),
        "ranges": _drift(train, chosen) if len(chosen) >= drift.LEAST_ROWS else {},
    }


def _drift(train: Examples, calibration: Examples) -> dict[str, Any]:
    found = {}
    for name, values in train.inputs.items():
        other = calibration.inputs[name]
        if _is_text(values):
            found[name] = drift.drift_of_texts(_texts(values), _texts(other))
        elif values.dtype.kind == "f" and values.ndim == 2:
            names = [f"{name}[{index}]" for index in range(values.shape[1])]
            found[name] = drift.drift_of_values(names, values, other)
    return found
