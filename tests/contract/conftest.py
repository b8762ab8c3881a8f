"""Every test here is isolated: no Ray, no sockets, no sleep."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _isolated(isolated: None) -> None:
    """Apply `isolated` of tests/conftest.py to each test."""
