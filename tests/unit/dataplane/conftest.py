"""Gateways in this process, with real sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import InProcessGateway, Start


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    running: list[InProcessGateway] = []

    def make(**faults: Any) -> InProcessGateway:
        routing = faults.pop("routing", {})
        running.append(InProcessGateway(tmp_path, faults, **routing))
        return running[-1]

    yield make
    for gateway in running:
        await gateway.plane.close()
