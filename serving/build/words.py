"""Numbers as reports say them."""

from __future__ import annotations


def p_value(p: float) -> str:
    """A p-value to three places.

    >>> p_value(0.0347), p_value(0.0002)
    ('p = 0.035', 'p < 0.001')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
