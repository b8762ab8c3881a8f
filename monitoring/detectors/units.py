"""Which sticky units were met before, in memory that does not grow."""

from __future__ import annotations

import base64
import zlib

_SIZE_LOG2 = 18
_MASK = (1 << _SIZE_LOG2) - 1
_BYTES = 1 << (_SIZE_LOG2 - 3)


class SeenUnits:
    """A Bloom filter of 32 KiB with two hashes (Bloom, CACM 1970), cut from the units' own keyed hash.

    A unit that was met is always known again. One that was not is taken for known with a chance that grows with their
    number (10 % at 50,000 units, 60 % at 200,000) and depends on nothing but its hash, so that of very many units a
    share is left out that has nothing to do with the arm they fall to.

    >>> units = SeenUnits()
    >>> units.first(0x1234_5678_9ABC), units.first(0x1234_5678_9ABC)
    (True, False)
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._bits = bytearray(_BYTES)

    def first(self, key: int) -> bool:
        """Whether a unit (a 64-bit hash) is met for the first time. 0 stands for a unit of its own, always new."""
        if key == 0:
            return True
        bits = self._bits
        one, other = key & _MASK, key >> 32 & _MASK
        new = False
        for at in (one, other):
            mask = 1 << (at & 7)
            if not bits[at >> 3] & mask:
                bits[at >> 3] |= mask
                new = True
        return new

    def state(self) -> str:
        return base64.b85encode(zlib.compress(bytes(self._bits), 1)).decode("ascii")

    def load(self, state: str) -> None:
        """Raises `ValueError` if it is no stored filter."""
        try:
            bits = zlib.decompress(base64.b85decode(state))
        except zlib.error as error:
            raise ValueError(f"no stored units: {error}") from error
        if len(bits) != _BYTES:
            raise ValueError(f"expected {_BYTES} bytes of units, got {len(bits)}")
        self._bits = bytearray(bits)
