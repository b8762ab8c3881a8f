"""Which declared slices a request is in, as bits: asked once a request, before it is routed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from serving.config_monitoring import SliceConfig


class Slices:
    """The slices of one model; bit n is the n-th of their names in the alphabet.

    Args:
        declared: by name.
    """

    def __init__(self, declared: Mapping[str, SliceConfig]) -> None:
        rules = [declared[name] for name in sorted(declared)]
        self._headers = [
            (1 << at, rule.header.lower().encode(), rule.prefix.lower() if rule.prefix is not None else None,
             frozenset(value.lower() for value in rule.equals))
            for at, rule in enumerate(rules) if rule.header is not None
        ]  # fmt: skip
        self._inputs = [
            (1 << at, rule.input, rule.min_chars, rule.max_chars)
            for at, rule in enumerate(rules)
            if rule.input is not None
        ]

    def of_headers(self, text: Callable[[bytes], str]) -> int:
        """Bits of the slices that go by a header. `text` gives a header's value by its name, "" without one."""
        bits = 0
        for bit, name, prefix, equals in self._headers:
            value = text(name).strip().lower()
            if value and (value in equals or (prefix is not None and value.startswith(prefix))):
                bits |= bit
        return bits

    def of_inputs(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Bits of the slices that go by the length of a text, of row 0."""
        bits = 0
        for bit, name, least, most in self._inputs:
            rows = inputs.get(name)
            if rows is None or rows.dtype != object or not rows.size:
                continue
            row = rows.flat[0]
            # A character is one to four bytes: what is far longer than the bounds need not be decoded.
            size = len(row) if len(row) > 4 * (max(least, most or 0) + 1) else len(row.decode(errors="replace"))
            if size >= least and (most is None or size <= most):
                bits |= bit
        return bits
