"""`Idempotency-Key`: the same request again gets the same answer again, and does nothing twice."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from starlette.responses import Response

from serving.clock import Clock
from serving.errors import ErrorKind, RequestError

ANSWERS_MAX = 1024
KEEP_S = 600
KEY_MAX = 128


class Answers:
    """Answers by (who, method, path, query, key), for ten minutes and at most `ANSWERS_MAX` of them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: OrderedDict[tuple[str, ...], tuple[int, bytes, asyncio.Future[tuple[int, bytes]]]] = OrderedDict()

    async def once(self, where: tuple[str, ...], body: bytes, work: Callable[[], Awaitable[Response]]) -> Response:
        """Do `work`, or repeat what an earlier call with the same key came to.

        A failure (5xx, or an exception) is not kept: it may be tried again.

        Raises:
            RequestError: CONFLICT if the key was used with another body.
        """
        if len(where[-1]) > KEY_MAX:
            raise RequestError(ErrorKind.BAD_REQUEST, f"Idempotency-Key is longer than {KEY_MAX} characters")
        now, digest = self._clock.monotonic_ns(), hashlib.sha256(body).digest()
        while self._kept and next(iter(self._kept.values()))[0] < now:
            self._kept.popitem(last=False)
        if (kept := self._kept.get(where)) is not None:
            if kept[1] != digest:
                raise RequestError(ErrorKind.CONFLICT, "this Idempotency-Key was used with another body")
            status, content = await asyncio.shield(kept[2])
            return Response(content, status, {"idempotent-replayed": "true"}, "application/json")
        future: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._kept[where] = (now + KEEP_S * 1_000_000_000, digest, future)
        while len(self._kept) > ANSWERS_MAX:
            self._kept.popitem(last=False)
        try:
            response = await work()
        except BaseException as error:
            self._kept.pop(where, None)
            future.set_exception(error if isinstance(error, Exception) else RequestError(ErrorKind.CANCELLED, "gone"))
            future.exception()  # seen: nobody else may be waiting
            raise
        future.set_result((response.status_code, bytes(response.body)))
        if response.status_code >= 500:
            self._kept.pop(where, None)
        return response
