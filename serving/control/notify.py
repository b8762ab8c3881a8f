"""Webhooks: telling others of every change of a rollout, signed, retried, and never in anybody's way.

The body is JSON; `x-canarium-signature` is `sha256=` and the hexadecimal HMAC-SHA256 of the body under the key
in the hook's `secret_file`. `x-canarium-delivery` is the number of the audit row, by which a receiver
recognises what it has had already. What cannot be delivered is given up and counted: the trail has it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec

from serving.control.audit import AuditEntry
from serving.core.rollout_policy import Hook

log = logging.getLogger("canarium.control")

QUEUE_MAX = 256
TIMEOUT_S = 5.0
#: Pauses between the attempts, seconds.
PAUSES_S = (1.0, 5.0, 30.0)
SECRET_MAX_BYTES = 4096


class Notifier:
    """A bounded queue of deliveries and the one task that makes them, in order.

    Args:
        client: makes the requests; closed with this.
        sleep: how to wait, in seconds; tests bring their own.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client, self._sleep = client, sleep
        self._queue: deque[tuple[Hook, int, bytes]] = deque()
        self._waiting = asyncio.Event()
        self.delivered = self.failed = self.dropped = 0

    def tell(self, hooks: tuple[Hook, ...], entry: AuditEntry) -> None:
        """Queue what an audit row has to say; the oldest is dropped and counted when there is no room."""
        for hook in hooks:
            self._queue.append((hook, entry.seq, _body(entry)))
            if len(self._queue) > QUEUE_MAX:
                self._queue.popleft()
                self.dropped += 1
            self._waiting.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            await self._waiting.wait()
            await self.drain()

    async def drain(self) -> None:
        """Deliver what is queued."""
        while self._queue:
            hook, seq, body = self._queue.popleft()
            if await self._deliver(hook, seq, body):
                self.delivered += 1
            else:
                self.failed += 1
        self._waiting.clear()

    def view(self) -> dict[str, int]:
        """The `notifications` part of the status."""
        return {
            "queued": len(self._queue),
            "delivered": self.delivered,
            "failed": self.failed,
            "dropped": self.dropped,
        }

    async def close(self) -> None:
        await self._client.aclose()

    async def _deliver(self, hook: Hook, seq: int, body: bytes) -> bool:
        for pause_s in (*PAUSES_S, None):
            trouble = await self._post(hook, seq, body)
            if not trouble:
                return True
            if pause_s is not None:
                await self._sleep(pause_s)
        log.error("webhook %s: %s: given up after %d attempts", hook.url, trouble, len(PAUSES_S) + 1)
        return False

    async def _post(self, hook: Hook, seq: int, body: bytes) -> str:
        """Why a delivery failed, or ""."""
        headers = {"content-type": "application/json", "x-canarium-delivery": str(seq)}
        try:
            if hook.secret_file is not None:
                headers["x-canarium-signature"] = signature(_secret(hook.secret_file), body)
            response = await self._client.post(hook.url, content=body, headers=headers, timeout=TIMEOUT_S)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return str(error) or type(error).__name__
        return "" if response.is_success else f"answered {response.status_code}"


def signature(secret: bytes, body: bytes) -> str:
    """What `x-canarium-signature` says of a body."""
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()


def _secret(path: str) -> bytes:
    """The key, without the white space around it. Raises `OSError`, or `ValueError` if there is none."""
    with Path(path).open("rb") as file:
        secret = file.read(SECRET_MAX_BYTES).strip()
    if not secret:
        raise ValueError(f"{path} is empty, and a signature needs a key")
    return secret


def _body(entry: AuditEntry) -> bytes:
    told: dict[str, Any] = {
        "event": entry.action,
        "at": entry.at,
        "seq": entry.seq,
        "model": entry.model,
        "variant": entry.variant,
        "actor": entry.actor,
        "reason": entry.reason,
        "before": entry.before,
        "after": entry.after,
    }
    return msgspec.json.encode(told)
