"""What several numbers look like in a single field of a record. Pure."""

from __future__ import annotations

import struct
from collections.abc import Mapping

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
