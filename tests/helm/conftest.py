"""Helm renders in this process; nothing here needs a cluster."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _isolated(isolated: None) -> None:
    """No Ray, no sockets, no sleep."""
