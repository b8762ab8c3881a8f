"""One-sided exact limits of a proportion."""

from __future__ import annotations

from serving.build.metrics import clopper_pearson_upper


def upper(events: int, trials: int, alpha: float = 0.05) -> float:
    """The largest proportion that is compatible with so few events (Clopper & Pearson, Biometrika 1934)."""
    return clopper_pearson_upper(events, trials, alpha)


def lower(events: int, trials: int, alpha: float = 0.05) -> float:
    """The smallest proportion that is compatible with so many events: the mirror image of `upper`."""
    return 1.0 - clopper_pearson_upper(trials - events, trials, alpha)
