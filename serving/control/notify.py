"""Webhooks: telling others of every change of a rollout, signed, retried, and never in anybody's way.

The body is JSON; `x-canarium-signature` is `sha256=` and the hexadecimal HMAC-SHA256 of the body under the key
in the hook's `secret_file`. `x-canarium-delivery` is the number of the audit row, by which a receiver
recognises what it has had already. What cannot be delivered is given up and counted: the trail has it. Each
hook has a queue and a task of its own, so that one that is slow or dead holds up no other.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import stat
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import msgspec

from serving.control.audit import AuditEntry
from serving.core.rollout_policy import Hook

log = logging.getLogger("canarium.control")

#: Deliveries that wait for one hook.
QUEUE_MAX = 256
#: Hooks with something to deliver; fewer than an httpx client has connections, so that none waits for another's.
HOOKS_MAX = 64
#: Limit on one attempt as a whole, seconds.
TIMEOUT_S = 5.0
#: Pauses between the attempts, seconds.
PAUSES_S = (1.0, 5.0, 30.0)
SECRET_MAX_BYTES = 4096


class Notifier:
    """A bounded queue of deliveries for each hook, told apart by URL, and the task that makes them in order.

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
        self._queues: dict[str, deque[tuple[Hook, int, bytes]]] = {}  # while there is something to deliver
        self._untended = asyncio.Queue[str]()  # those of them that have no task yet
        self.delivered = self.failed = self.dropped = 0

    def tell(self, hooks: tuple[Hook, ...], entry: AuditEntry) -> None:
        """Queue what an audit row has to say.

        Where a hook's queue is full its oldest entry is dropped, beyond `HOOKS_MAX` hooks the new one; both count.
        """
        for hook in hooks:
            if hook.url not in self._queues:
                if len(self._queues) == HOOKS_MAX:
                    self.dropped += 1
                    continue
                self._queues[hook.url] = deque()
                self._untended.put_nowait(hook.url)
            queue = self._queues[hook.url]
            queue.append((hook, entry.seq, _body(entry)))
            if len(queue) > QUEUE_MAX:
                queue.popleft()
                self.dropped += 1

    async def run(self) -> None:
        """Deliver until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self._empty(await self._untended.get()))

    async def drain(self) -> None:
        """Deliver what is queued."""
        async with asyncio.TaskGroup() as tasks:
            while not self._untended.empty():
                tasks.create_task(self._empty(self._untended.get_nowait()))

    def view(self) -> dict[str, int]:
        """The `notifications` part of the status."""
        return {
            "queued": sum(map(len, self._queues.values())),
            "delivered": self.delivered,
            "failed": self.failed,
            "dropped": self.dropped,
        }

    async def close(self) -> None:
        await self._client.aclose()

    async def _empty(self, url: str) -> None:
        queue = self._queues[url]
        while queue:
            if await self._deliver(*queue.popleft()):
                self.delivered += 1
            else:
                self.failed += 1
        del self._queues[url]

    async def _deliver(self, hook: Hook, seq: int, body: bytes) -> bool:
        for pause_s in (*PAUSES_S, None):
            trouble = await self._post(hook, seq, body)
            if not trouble:
                return True
            if pause_s is not None:
                await self._sleep(pause_s)
        log.error("webhook %s: %s: given up after %d attempts", hook.shown, trouble, len(PAUSES_S) + 1)
        return False

    async def _post(self, hook: Hook, seq: int, body: bytes) -> str:
        """Why a delivery failed, or ""."""
        headers = {"content-type": "application/json", "x-canarium-delivery": str(seq)}
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if hook.secret_file is not None:
                    secret = await asyncio.to_thread(_secret, hook.secret_file)  # kills run on this loop
                    headers["x-canarium-signature"] = signature(secret, body)
                # The limits of httpx are on each read, and a hook may go on answering for ever: its status is enough.
                sending = self._client.stream("POST", hook.url, content=body, headers=headers, timeout=None)
                async with sending as response:
                    return "" if response.is_success else f"answered {response.status_code}"
        except TimeoutError:
            return f"no answer within {TIMEOUT_S:g} s"
        except Exception as error:  # whatever it was, it must not end the deliveries to the others
            return str(error).replace(hook.url, hook.shown) or type(error).__name__


def signature(secret: bytes, body: bytes) -> str:
    """What `x-canarium-signature` says of a body."""
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()


def _secret(path: str) -> bytes:
    """The key, without the white space around it. Raises `OSError`, or `ValueError` if there is none."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path} is no regular file")
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
