"""A variant that is taken out leaves nothing behind."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    there = weakref.ref(plane)
    thread = next(thread for thread in threading.enumerate() if "good@" in thread.name)
    del plane
    await at.withdraw("good")
    await at.plane.planes.closed()
    thread.join(10)
    assert not thread.is_alive()
    assert there() is None
    await at.plane.close()


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
