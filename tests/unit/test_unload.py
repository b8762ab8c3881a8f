"""A variant that is taken out leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.core.batching import Entry
from serving.gateway.requests import BatchResult
from serving.registry.store import Registry
from serving.runtimes import pipeline
from serving.runtimes.pipeline import Pipeline
from tests.support import tiny
from tests.support.gateway import InProcessGateway


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only reference counts free memory: the collector runs late, and not at all over what was frozen."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
async def test_a_closed_variant_is_freed_at_once_and_its_thread_ends(tmp_path: Path) -> None:
    at = InProcessGateway(tmp_path, {"good": ""})
    await at.publish({"good": 50})
    for number in range(8):
        await at.ask("ham", request_id=str(number))
    plane = at.plane.planes.get("tiny", "good")
    assert plane is not None
    session = plane._own[0]._session  # type: ignore[attr-defined]
    there = [weakref.ref(each) for each in (plane, plane.batcher, plane._own[0], session)]
    thread = next(thread for thread in threading.enumerate() if "good@" in thread.name)
    del plane, session
    await at.withdraw("good")
    await at.plane.planes.closed()
    thread.join(10)
    assert not thread.is_alive()
    assert [each() for each in there] == [None] * 4
    await at.plane.close()


@pytest.mark.usefixtures("no_collector")
async def test_an_answered_request_is_freed_at_once_and_not_at_its_deadline(tmp_path: Path) -> None:
    at = InProcessGateway(tmp_path, {})
    await at.publish()
    for number in range(8):
        await at.ask("ham", request_id=str(number), timeout_ms=600_000)
    await asyncio.sleep(0)  # the loop still holds what has just woken us
    left = [each for each in gc.get_objects() if isinstance(each, (Entry, asyncio.Future)) and _is_answer(each)]
    assert not left
    await at.plane.close()


def _is_answer(each: Entry | asyncio.Future[Any]) -> bool:
    """Whether it is what a request was queued as, or what it was answered with."""
    return isinstance(each, Entry) or (each.done() and not each.cancelled() and isinstance(each.result(), BatchResult))


def test_artifacts_with_the_same_tokenizer_share_it_and_the_process_keeps_a_bounded_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.build(tmp_path, {"teacher": tiny.graph(), "good": tiny.graph()})
    registry = Registry(tmp_path)
    monkeypatch.setattr(pipeline, "_TOKENIZERS", {})
    first, second = (Pipeline(*registry.open(f"tiny/{name}:1")) for name in ("teacher", "good"))
    assert first._tokenizer is second._tokenizer
    assert len(pipeline._TOKENIZERS) == 1
    monkeypatch.setattr(pipeline, "MAX_TOKENIZERS", 0)
    Pipeline(*registry.open("tiny/good:1"))
    assert not pipeline._TOKENIZERS
