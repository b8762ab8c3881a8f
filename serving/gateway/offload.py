"""Work on the contents of requests that would hold up the event loop: packing, unpacking, tokenizing.

In threads of its own: what keeps a gateway going (variants that are opened, the control plane, the kept snapshot) uses
the loop's default ones, and must not wait behind a burst of long texts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_threads = ThreadPoolExecutor(thread_name_prefix="canarium-bodies")


async def offloaded(call: Callable[[], T], within_s: float | None = None) -> T:
    """What `call` gives. Raises `TimeoutError` after `within_s` seconds; what has not begun by then never does."""
    return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(_threads, call), within_s)
