"""What several numbers look like in a single field of a record. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

import xxhash

_FLOATS, _BITS = struct.Struct("<ff"), struct.Struct("<Q")


def pack_divergence(js: float, kl: float) -> int:
    """Jensen-Shannon and KL divergence in nats, as `extra` of a pair holds them; never 0, which means none."""
    return int(_BITS.unpack(_FLOATS.pack(js, -kl))[0])


def unpack_divergence(extra: int) -> tuple[float, float] | None:
    """(js, kl) in nats; None if the pair has none."""
    if not extra:
        return None
    js, kl = _FLOATS.unpack(_BITS.pack(extra))
    return js, -kl


def pack_noise(mean_db: float, worst_db: float) -> int:
    """Signal-to-quantization-noise ratios in decibels, as `extra` of an audit holds them; NaN: there is none."""
    return int(_BITS.unpack(_FLOATS.pack(mean_db, worst_db))[0])


def unpack_noise(extra: int) -> tuple[float, float]:
    """(mean, worst) in decibels."""
    mean, worst = _FLOATS.unpack(_BITS.pack(extra))
    return mean, worst


#: A candidate that is not open takes 16 bits of `extra`. More of them than fit are told as all of them.
_UNOPENED_BITS, _UNOPENED_MAX, _EVERYBODY = 16, 4, (1 << 64) - 1


def pack_unopened(names: Iterable[str]) -> int:
    """Candidates that a gateway has not opened when it routes a request, as `extra` of the request holds them."""
    codes = [_code(name) for name in names]
    if len(codes) > _UNOPENED_MAX:
        return _EVERYBODY
    return sum(code << _UNOPENED_BITS * at for at, code in enumerate(codes))


def is_unopened(extra: int, name: str) -> bool:
    """Whether the gateway that recorded a request with this `extra` had not opened the candidate."""
    if not extra:
        return False
    code, mask = _code(name), (1 << _UNOPENED_BITS) - 1
    return extra == _EVERYBODY or any(extra >> _UNOPENED_BITS * at & mask == code for at in range(_UNOPENED_MAX))


def _code(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name) % ((1 << _UNOPENED_BITS) - 2) + 1  # neither none nor everybody


#: By how many of the likeliest classes the overlap of two answers is told.
TOP_KS: tuple[int, ...] = (2, 3, 5)


def pack_overlap(common: Mapping[int, int]) -> int:
    """For each of TOP_KS how many of the k likeliest classes two answers share, as `overlap` of a pair holds it.

    A k that is not there, for want of classes, is told apart from none in common.
    """
    return sum((common[k] + 1) << 3 * at for at, k in enumerate(TOP_KS) if k in common)


def unpack_overlap(overlap: int) -> dict[int, int]:
    """What `pack_overlap` was given."""
    return {k: found - 1 for at, k in enumerate(TOP_KS) if (found := overlap >> 3 * at & 7)}
