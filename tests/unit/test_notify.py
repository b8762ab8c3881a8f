"""Webhooks of rollouts: signed, retried, bounded, and given up in the end."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from control_kit import ME, Rig, spec
from rollout_kit import POLICY

from serving.control.audit import GENESIS, AuditEntry
from serving.control.notify import PAUSES_S, QUEUE_MAX, Notifier
from serving.core.commands import StartRollout
from serving.core.rollout_policy import Hook

HOOK = Hook("https://hooks.example.org/canarium")


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


@pytest.mark.parametrize("secret", ["absent", "empty"])
async def test_what_cannot_be_signed_is_never_sent_and_given_up(tmp_path: Path, secret: str) -> None:
    (tmp_path / "empty").touch()
    receiver = Receiver()
    receiver.notifier.tell((Hook(HOOK.url, str(tmp_path / secret)),), entry())
    await receiver.notifier.drain()
    assert (receiver.requests, receiver.pauses) == ([], list(PAUSES_S))
    assert receiver.notifier.view()["failed"] == 1


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
