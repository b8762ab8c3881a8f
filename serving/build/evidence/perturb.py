"""Inputs a little off: does a variant change its mind where the teacher does not?

Each perturbation keeps what a person would answer. A variant is compared with the teacher's own flip rate under the
same perturbed rows: what the teacher suffers too is not the fault of compression. Every change is drawn from a seed
and the row's number, so that all variants see the same rows and a rebuild sees them again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from serving.build import metrics

SEED = 11
#: Share of the words that get a typo, of the letters that get a twin, of a text that is kept.
TYPO_SHARE, GLYPH_SHARE, KEPT_SHARE = 0.1, 0.15, 0.5
#: Noise in standard deviations of a feature; share of values lost.
NOISE, MISSING_SHARE = 0.05, 0.1

#: Letters that look the same in Cyrillic and Latin (Unicode Technical Standard 39, confusables).
TWINS = str.maketrans("aceopxyABCEHKMOPTX", "асеорхуАВСЕНКМОРТХ")

_BESIDE = {
    letter: row[max(0, at - 1) : at] + row[at + 1 : at + 2]
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for at, letter in enumerate(row)
}


def typos(text: str, chance: random.Random) -> str:
    """In one word of ten (at least one) two letters swapped, one lost, one doubled or the key beside it hit."""
    words = text.split(" ")
    fit = [index for index, word in enumerate(words) if len(word) > 3]
    for index in chance.sample(fit, min(len(fit), max(1, round(len(words) * TYPO_SHARE)))):
        words[index] = _mistyped(words[index], chance)
    return " ".join(words)


def _mistyped(word: str, chance: random.Random) -> str:
    at, kind = chance.randrange(1, len(word) - 1), chance.randrange(4)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    if kind == 2:
        return word[:at] + word[at] + word[at:]
    return word[:at] + chance.choice(_BESIDE.get(word[at].lower(), word[at])) + word[at + 1 :]


def upper_case(text: str, chance: random.Random) -> str:
    """All capitals."""
    return text.upper()


def homoglyphs(text: str, chance: random.Random) -> str:
    """Some letters replaced by ones that look the same, as those do who want to pass a filter."""
    return "".join(letter.translate(TWINS) if chance.random() < GLYPH_SHARE else letter for letter in text)


def truncation(text: str, chance: random.Random) -> str:
    """The first half."""
    return text[: max(1, round(len(text) * KEPT_SHARE))]


TextPerturbation = Callable[[str, random.Random], str]
TEXT: dict[str, TextPerturbation] = {
    "typos": typos,
    "upper case": upper_case,
    "homoglyphs": homoglyphs,
    "truncation": truncation,
}


def perturb_texts(name: str, texts: Sequence[str], seed: int = SEED) -> list[str]:
    """Each text perturbed in the way named by a key of `TEXT`."""
    return [TEXT[name](text, random.Random(f"{seed}/{name}/{index}")) for index, text in enumerate(texts)]


def sensor_noise(
    values: np.ndarray, spread: np.ndarray, typical: np.ndarray, chance: np.random.Generator
) -> np.ndarray:
    """Gaussian noise of `NOISE` standard deviations."""
    return np.asarray(values + chance.normal(size=values.shape) * spread * NOISE)


def missing_values(
    values: np.ndarray, spread: np.ndarray, typical: np.ndarray, chance: np.random.Generator
) -> np.ndarray:
    """One value of ten replaced by the feature's typical one."""
    return np.where(chance.random(values.shape) < MISSING_SHARE, typical, values)


NumericPerturbation = Callable[[np.ndarray, np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
NUMERIC: dict[str, NumericPerturbation] = {"sensor noise": sensor_noise, "missing values": missing_values}


def perturb_values(
    name: str, values: np.ndarray, spread: np.ndarray, typical: np.ndarray, seed: int = SEED
) -> np.ndarray:
    """Rows [n, F] perturbed in the way named by a key of `NUMERIC`; same dtype.

    Args:
        spread, typical: standard deviation and median of each feature in the training data, [F].
    """
    chance = np.random.default_rng([seed, list(NUMERIC).index(name)])
    return NUMERIC[name](values, spread, typical, chance).astype(values.dtype)


def divergence(
    clean: np.ndarray, perturbed: np.ndarray, teacher_clean: np.ndarray, teacher_perturbed: np.ndarray
) -> dict[str, Any]:
    """How often a perturbation changes a variant's answer, beside how often it changes the teacher's.

    Args:
        clean, perturbed, teacher_clean, teacher_perturbed: class indices of the same rows, int64 [n].

    Returns:
        JSON values: flip rates of both, the variant's with its Wilson interval; `differs_from_teacher`: share of
        perturbed rows on which the two disagree; `p_value`: exact sign test over rows where only one of them flipped.
    """
    n = len(clean)
    ours, theirs = clean != perturbed, teacher_clean != teacher_perturbed
    return {
        "rows": n,
        "flip_rate": float(ours.mean()),
        "flip_rate_ci": metrics.wilson(int(ours.sum()), n),
        "teacher_flip_rate": float(theirs.mean()),
        "differs_from_teacher": float((perturbed != teacher_perturbed).mean()),
        "p_value": metrics.sign_test(int((ours & ~theirs).sum()), int((~ours & theirs).sum())),
    }


def more_fragile(found: Mapping[str, Any], level: float = 0.05) -> list[str]:
    """The perturbations under which the variant flips significantly more often than the teacher (Bonferroni)."""
    limit = level / max(len(found), 1)
    return [
        name
        for name, each in found.items()
        if each["flip_rate"] > each["teacher_flip_rate"] and each["p_value"] < limit
    ]
