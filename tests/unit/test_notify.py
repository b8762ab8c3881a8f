"""Webhooks of rollouts: signed, retried, bounded, and given up in the end."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from control_kit import ME, Rig, spec
from rollout_kit import POLICY

from serving.control import notify
from serving.control.audit import GENESIS, AuditEntry
from serving.control.notify import HOOKS_MAX, PAUSES_S, QUEUE_MAX, Notifier
from serving.core.commands import StartRollout
from serving.core.rollout_policy import Hook

HOOK = Hook("https://hooks.example.org/canarium")
SECRET_URL = "https://u:pw@hooks.example.org:8443/T0/s3cret?k=s3cret"


def entry(seq: int = 1) -> AuditEntry:
    after = {"rollout": "int8-1", "state": "ramping"}
    return AuditEntry(seq, "now", "rollout", "rollout-ramp", "m", "int8", "why", {}, after, {}, GENESIS, "h")


class Receiver:
    """Somebody's webhook, whose answers are told in advance."""

    def __init__(self, *statuses: int | Exception) -> None:
        self.statuses, self.requests, self.pauses = list(statuses), list[httpx.Request](), list[float]()
        self.notifier = Notifier(httpx.AsyncClient(transport=httpx.MockTransport(self._answer)), self._sleep)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        status = self.statuses.pop(0) if self.statuses else 200
        if isinstance(status, Exception):
            raise status
        return httpx.Response(status)

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


class SlowHook:
    """`HOOK` answers once `answers` is set; every other hook at once."""

    def __init__(self) -> None:
        self.answers, self.heard = asyncio.Event(), list[tuple[str, int]]()
        self.notifier = Notifier(httpx.AsyncClient(transport=httpx.MockTransport(self._answer)), self._sleep)

    async def delivered(self, count: int) -> None:
        async with asyncio.timeout(60):
            while self.notifier.delivered < count:  # noqa: ASYNC110 - bounded by the line above
                await asyncio.sleep(0)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        self.heard.append((str(request.url), int(request.headers["x-canarium-delivery"])))
        if request.url == HOOK.url:
            await self.answers.wait()
        return httpx.Response(200)

    async def _sleep(self, _: float) -> None:
        pass


async def test_what_is_told_is_signed_and_numbered(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    receiver = Receiver()
    receiver.notifier.tell((Hook(HOOK.url, str(secret)),), entry(7))
    await receiver.notifier.drain()
    (request,) = receiver.requests
    digest = hmac.new(b"s3cret", request.content, hashlib.sha256).hexdigest()
    assert request.headers["x-canarium-signature"] == f"sha256={digest}"
    assert request.headers["x-canarium-delivery"] == "7"
    told = json.loads(request.content)
    assert (told["event"], told["after"]["state"], told["reason"]) == ("rollout-ramp", "ramping", "why")
    assert receiver.notifier.view() == {"queued": 0, "delivered": 1, "failed": 0, "dropped": 0}


async def test_a_failed_delivery_is_tried_again_with_growing_pauses() -> None:
    receiver = Receiver(500, httpx.ConnectError("refused"), 200)
    receiver.notifier.tell((HOOK,), entry())
    await receiver.notifier.drain()
    assert receiver.pauses == list(PAUSES_S[:2])
    assert receiver.notifier.view()["delivered"] == 1
    assert "x-canarium-signature" not in receiver.requests[0].headers


@pytest.mark.parametrize("secret", ["absent", "empty", "pipe", ""])
async def test_what_cannot_be_signed_is_never_sent_and_given_up(tmp_path: Path, secret: str) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")  # nobody writes into it
    receiver = Receiver()
    receiver.notifier.tell((Hook(HOOK.url, str(tmp_path / secret)),), entry())
    await receiver.notifier.drain()
    assert (receiver.requests, receiver.pauses) == ([], list(PAUSES_S))
    assert receiver.notifier.view()["failed"] == 1


async def test_a_secret_that_takes_its_time_holds_up_nothing_and_ends_with_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    held = threading.Event()
    monkeypatch.setattr(notify, "TIMEOUT_S", 0.0)
    monkeypatch.setattr(notify, "_secret", lambda _: held.wait(5))
    receiver = Receiver()
    receiver.notifier.tell((Hook(HOOK.url, str(tmp_path / "secret")),), entry())
    await receiver.notifier.drain()  # on this loop, while the threads wait
    held.set()
    assert (receiver.requests, receiver.notifier.failed) == ([], 1)
    assert "no answer within 0 s: given up" in caplog.text


@pytest.mark.parametrize("fault", [500, httpx.ConnectError(f"no way to {SECRET_URL}")])
async def test_the_address_of_a_hook_is_a_secret_to_logs(
    fault: int | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = Receiver(*[fault] * 4)
    receiver.notifier.tell((Hook(SECRET_URL),), entry())
    await receiver.notifier.drain()
    assert "webhook https://hooks.example.org:8443: " in caplog.text
    assert "s3cret" not in caplog.text
    assert "pw" not in caplog.text


async def test_the_queue_is_bounded_and_counts_what_it_drops() -> None:
    receiver = Receiver()
    for seq in range(1, QUEUE_MAX + 4):
        receiver.notifier.tell((HOOK,), entry(seq))
    assert receiver.notifier.view() == {"queued": QUEUE_MAX, "delivered": 0, "failed": 0, "dropped": 3}
    await receiver.notifier.drain()
    assert receiver.requests[0].headers["x-canarium-delivery"] == "4"  # the oldest went


async def test_the_task_delivers_what_comes_and_waits_for_more() -> None:
    receiver = Receiver()
    task = asyncio.create_task(receiver.notifier.run())
    for seq in (1, 2):
        receiver.notifier.tell((HOOK,), entry(seq))
        while receiver.notifier.delivered < seq:  # noqa: ASYNC110 - the test's own timeout is the bound
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await receiver.notifier.close()


async def test_an_answer_without_an_end_is_not_read() -> None:
    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                await asyncio.sleep(0)
                yield b"x"

    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Endless()))
    notifier = Notifier(httpx.AsyncClient(transport=transport))
    notifier.tell((HOOK,), entry())
    async with asyncio.timeout(60):
        await notifier.drain()
    assert notifier.view() == {"queued": 0, "delivered": 1, "failed": 0, "dropped": 0}


async def test_an_attempt_ends_with_its_time(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(notify, "TIMEOUT_S", 0.0)
    slow = SlowHook()
    slow.notifier.tell((HOOK,), entry())
    async with asyncio.timeout(60):
        await slow.notifier.drain()
    assert slow.notifier.view() == {"queued": 0, "delivered": 0, "failed": 1, "dropped": 0}
    assert "no answer within 0 s: given up after 4 attempts" in caplog.text


async def test_a_hook_that_does_not_answer_holds_up_no_other_and_each_hears_in_order() -> None:
    slow, other = SlowHook(), Hook("https://other.example.org")
    task = asyncio.create_task(slow.notifier.run())
    for seq in (1, 2, 3):
        slow.notifier.tell((HOOK, other), entry(seq))
    await slow.delivered(3)
    assert slow.heard == [(HOOK.url, 1), (other.url, 1), (other.url, 2), (other.url, 3)]
    assert slow.notifier.view() == {"queued": 2, "delivered": 3, "failed": 0, "dropped": 0}
    slow.answers.set()
    await slow.delivered(6)
    slow.notifier.tell((HOOK,), entry(4))
    await slow.delivered(7)
    assert [seq for url, seq in slow.heard if url == HOOK.url] == [1, 2, 3, 4]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_error_of_any_kind_ends_no_deliveries() -> None:
    receiver = Receiver(RuntimeError("out of the blue"), 200, 200)
    receiver.notifier.tell((HOOK, Hook("https://other.example.org")), entry())
    await receiver.notifier.drain()
    assert receiver.notifier.view() == {"queued": 0, "delivered": 2, "failed": 0, "dropped": 0}


async def test_the_number_of_hooks_is_bounded_and_the_rest_is_counted() -> None:
    receiver = Receiver()
    hooks = tuple(Hook(f"https://{number}.example.org") for number in range(HOOKS_MAX + 2))
    receiver.notifier.tell(hooks, entry())
    assert receiver.notifier.view() == {"queued": HOOKS_MAX, "delivered": 0, "failed": 0, "dropped": 2}
    await receiver.notifier.drain()
    receiver.notifier.tell(hooks[-1:], entry())
    assert receiver.notifier.view() == {"queued": 1, "delivered": HOOKS_MAX, "failed": 0, "dropped": 2}


async def test_every_change_of_a_rollout_is_told_once_it_is_saved(tmp_path: Path) -> None:
    receiver = Receiver()
    rig = Rig(tmp_path, notifier=receiver.notifier)
    await rig.start({"moderation": spec(weights={}, shadow={})})
    policy = msgspec.structs.replace(POLICY["short"], notify=(HOOK,))
    rig.store.failing = True
    with pytest.raises(Exception, match="nothing was changed"):
        await rig.plane.execute(_start(policy))
    assert receiver.notifier.view()["queued"] == 0
    rig.store.failing = False
    await rig.plane.execute(_start(policy))
    assert rig.plane.status()["control"]["notifications"]["queued"] == 1


def _start(policy: Any) -> StartRollout:
    return StartRollout("moderation", "int8", policy, "file", ME)
