"""How much background work there may be at once: pieces, and bytes of what they hold. The variants are stand-ins."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving.clock import FakeClock
from serving.contract import C_REFERENCE_ERROR, C_REFERENCE_SHED, C_SHADOW_ERROR, C_SHADOW_SHED, Cause
from serving.gateway.scoring import MAX_IN_FLIGHT, Answered, Scorer
from serving.gateway.variants import Fault
from tests.support.transport import turns

LIMIT = 1000
TABLE: Any = SimpleNamespace(model="m", reference_bp=100, shadow={})


class Variant:
    """Answers nothing until it is told to, and then that it cannot."""

    def __init__(self) -> None:
        self.entry = SimpleNamespace(name="v")
        self.pipeline = SimpleNamespace(preprocess_key="same")
        self.gate = asyncio.Event()

    async def run(self, *_: Any, **__: Any) -> None:
        await self.gate.wait()
        raise Fault("v", Cause.ERROR, "no")


class Cells:
    """The part of a recorder that counts."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def count(self, model: str, variant: str, cell: int) -> None:
        self.counts[cell] += 1


@pytest.fixture
async def variant() -> Any:
    return Variant()


@pytest.fixture
def cells() -> Any:
    return Cells()


@pytest.fixture
async def scorer(cells: Any) -> AsyncIterator[Scorer]:
    scorer = Scorer(cells, FakeClock(), LIMIT)
    yield scorer
    await scorer.close()


def answered(variant: Any, given: int, made: int | None = None) -> Answered:
    """An answer of 20 bytes to `given` bytes, of which the session was given `made`; None: as they came."""
    client = {"x": np.zeros(given, np.uint8)}
    session = client if made is None else {"ids": np.zeros(made, np.uint8)}
    return Answered(variant, client, session, {"y": np.zeros(20, np.uint8)}, 1, trace=None)  # type: ignore[arg-type]


async def test_work_is_shed_over_a_bound_on_what_it_holds(scorer: Scorer, variant: Any, cells: Any) -> None:
    for _ in range(3):
        scorer.reference(answered(variant, 380), variant, TABLE)
    assert cells.counts == {C_REFERENCE_SHED: 1}
    scorer.shadow(answered(variant, 100, 81), variant, None, TABLE)
    assert cells.counts == {C_REFERENCE_SHED: 1, C_SHADOW_SHED: 1}
    scorer.shadow(answered(variant, 100, 80), variant, None, TABLE)
    assert cells.counts == {C_REFERENCE_SHED: 1, C_SHADOW_SHED: 1}


async def test_what_work_held_is_given_back_when_it_is_over(scorer: Scorer, variant: Any, cells: Any) -> None:
    for _ in range(3):
        scorer.reference(answered(variant, 900), variant, TABLE)
        scorer.again(answered(variant, 900), TABLE, 100)
        variant.gate.set()
        await turns()
        variant.gate.clear()
    assert cells.counts == {C_REFERENCE_ERROR: 3, C_REFERENCE_SHED: 3}


async def test_one_answer_is_held_once_however_many_compare_it(scorer: Scorer, variant: Any, cells: Any) -> None:
    answer = answered(variant, 900)
    scorer.reference(answer, variant, TABLE)
    scorer.shadow(answer, variant, None, TABLE)
    assert cells.counts == {}
    variant.gate.set()
    await turns()
    assert cells.counts == {C_REFERENCE_ERROR: 1, C_SHADOW_ERROR: 1}


async def test_an_answer_over_the_bound_is_compared_alone(scorer: Scorer, variant: Any, cells: Any) -> None:
    large = answered(variant, 2 * LIMIT)
    scorer.reference(large, variant, TABLE)
    scorer.shadow(large, variant, None, TABLE)
    assert cells.counts == {}
    scorer.reference(answered(variant, 10), variant, TABLE)
    assert cells.counts == {C_REFERENCE_SHED: 1}


async def test_pieces_are_bounded_however_small(scorer: Scorer, variant: Any, cells: Any) -> None:
    answer = answered(variant, 1)
    for _ in range(MAX_IN_FLIGHT + 2):
        scorer.reference(answer, variant, TABLE)
    assert cells.counts == {C_REFERENCE_SHED: 2}
