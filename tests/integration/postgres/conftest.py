"""The unit tests of the control plane again, over a real PostgreSQL: each file here takes over one of their modules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import control_kit
import pytest

from tests.support.postgres import PostgresServer


@pytest.fixture(autouse=True)
def over_postgres(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every store that these tests open is in a schema of PostgreSQL, and gives its connections back at the end."""
    opened = []

    def open_store(folder: Path, holder: str = control_kit.ONLY) -> control_kit.SqlStore:
        opened.append(postgres.store(folder, holder))
        return opened[-1]

    monkeypatch.setattr(control_kit, "open_store", open_store)
    yield
    for store in opened:
        store._dispose()
