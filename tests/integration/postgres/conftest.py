"""The unit tests of the control plane again, over a real PostgreSQL: each file here takes over one of their modules."""

from __future__ import annotations

from pathlib import Path

import control_kit
import pytest

from tests.support.postgres import PostgresServer


@pytest.fixture(autouse=True)
def over_postgres(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every store that these tests open is in a database of PostgreSQL."""

    def open_store(folder: Path, holder: str = control_kit.ONLY) -> control_kit.SqlStore:
        return postgres.store(folder, holder)

    monkeypatch.setattr(control_kit, "open_store", open_store)
