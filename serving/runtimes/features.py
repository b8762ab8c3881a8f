"""Derived features of one row: what a drift report compares. No text can be read back from them.

A gateway takes them of sampled requests and a build of rows that its model was not trained on, by this same code.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from serving.registry.manifest import TensorSpec
from serving.runtimes.answers import Summary
from serving.runtimes.pipeline import PAD_ID

#: Feature -> number, or word for `class`.
Row = dict[str, float | str]

#: Most columns that tensors of a model give: wider ones are described by their statistics.
COLUMNS_MAX = 64

_OTHER, _UPPER, _DIGIT, _PUNCTUATION, _SPACE, _BEYOND = range(6)
#: What each character of the alphabets up to Armenian is; those beyond have neither case nor a place in this table.
_KNOWN = 0x590


def _kind(code: int) -> int:
    category = unicodedata.category(chr(code))
    if category == "Lu":
        return _UPPER
    if category == "Nd":
        return _DIGIT
    if category[0] in "PS":
        return _PUNCTUATION
    return _SPACE if chr(code).isspace() else _OTHER


_KINDS = np.array([*map(_kind, range(_KNOWN)), _BEYOND], np.uint8)


def of_row(text: str | None, row: Mapping[str, np.ndarray], specs: Sequence[TensorSpec], unknown_id: int) -> Row:
    """Features of what `Pipeline.first_row` gives: of a text and its token ids, or of tensors."""
    if text is not None:
        return of_text(text, next(iter(row.values())), unknown_id)
    return of_tensors(row, specs)


def of_text(text: str, ids: np.ndarray, unknown_id: int) -> Row:
    """Features of a text as its model reads it.

    Args:
        text: cut to what the tokenizer is given.
        ids: its token ids int64 [T]; padding is ignored.
        unknown_id: the id of unknown tokens; -1 if the tokenizer has none.

    Returns:
        `characters`, `tokens` and `word_length` (characters of a mean word); shares of the characters in [0, 1]:
        `upper_share`, `digit_share`, `punctuation_share` (with symbols), `space_share`, `other_script_share` (beyond
        Latin, Greek, Cyrillic, Armenian); shares of the tokens: `unknown_share`, `distinct_share`.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)
    counts = np.bincount(_KINDS[np.minimum(codes, _KNOWN)], minlength=6)
    length = len(codes) or 1
    words = text.split()
    tokens = ids[ids != PAD_ID]
    number = len(tokens) or 1
    return {
        "characters": float(len(codes)),
        "tokens": float(len(tokens)),
        "word_length": sum(map(len, words)) / (len(words) or 1),
        "upper_share": float(counts[_UPPER]) / length,
        "digit_share": float(counts[_DIGIT]) / length,
        "punctuation_share": float(counts[_PUNCTUATION]) / length,
        "space_share": float(counts[_SPACE]) / length,
        "other_script_share": float(counts[_BEYOND]) / length,
        "unknown_share": float(np.count_nonzero(tokens == unknown_id)) / number,
        "distinct_share": len(set(tokens.tolist())) / number,
    }


def of_tensors(row: Mapping[str, np.ndarray], specs: Sequence[TensorSpec]) -> Row:
    """Features of a row of tensors.

    Args:
        row: one row of each input, without the batch axis; texts as objects.
        specs: the inputs in the signature's order.

    Returns:
        the elements of tensors of a fixed shape, `NAME` or `NAME_0 …`, as far as `COLUMNS_MAX` allows; of the others
        `NAME_size`, `NAME_mean` and `NAME_spread` (standard deviation); of texts `NAME_size`, in bytes. What is not
        finite is left out.
    """
    found: Row = {}
    for spec in specs:
        values = np.asarray(row[spec.name])
        if values.dtype.kind == "O":
            found[f"{spec.name}_size"] = float(sum(len(value) for value in values.ravel().tolist()))
            continue
        flat = values.ravel().astype(np.float64)
        if spec.shape.count(-1) <= 1 and len(found) + len(flat) <= COLUMNS_MAX:
            names = [spec.name] if len(flat) == 1 else [f"{spec.name}_{at}" for at in range(len(flat))]
            found |= zip(names, flat.tolist(), strict=True)
        elif len(found) + 3 <= COLUMNS_MAX:
            found[f"{spec.name}_size"] = float(len(flat))
            if len(flat):
                with np.errstate(all="ignore"):
                    found |= {f"{spec.name}_mean": float(flat.mean()), f"{spec.name}_spread": float(flat.std())}
    return {name: value for name, value in found.items() if isinstance(value, str) or math.isfinite(value)}


def of_answer(summary: Summary, labels: Sequence[str]) -> Row:
    """`class`, `confidence`, `margin` and `energy` of an answer (`Summary`); nothing for what is no classification."""
    if not 0 <= summary.cls < len(labels):
        return {}
    return {
        "class": labels[summary.cls],
        "confidence": summary.prob,
        "margin": summary.margin,
        "energy": summary.energy,
    }
