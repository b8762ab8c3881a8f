"""Evidence as the trail keeps it: of any size when it comes, of a bounded one when it is kept. Pure."""

from __future__ import annotations

from typing import Any

#: Beyond these, what is longer is cut: texts by characters, lists and mappings by entries.
TEXT_MAX, LIST_MAX, KEYS_MAX = 500, 20, 40
#: Lists and mappings within each other; what lies deeper is left out.
DEPTH_MAX = 4


def bounded(value: Any, depth: int = DEPTH_MAX) -> Any:
    """The value with everything cut that is too long or lies too deep; numbers, and what is short, are as they were."""
    if isinstance(value, str):
        return value if len(value) <= TEXT_MAX else value[: TEXT_MAX - 1] + "…"
    if isinstance(value, list | tuple | dict) and not depth:
        return "…"
    if isinstance(value, dict):
        return {bounded(key): bounded(one, depth - 1) for key, one in list(value.items())[:KEYS_MAX]}
    if isinstance(value, list | tuple):
        return [bounded(one, depth - 1) for one in value[:LIST_MAX]]
    return value
