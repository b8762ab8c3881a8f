"""What this processor can do, as far as it changes the numbers of a model."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

#: Instruction sets that decide which INT8 kernels run.
_TELLING = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")


@cache
def cpu_info() -> dict[str, object]:
    """Processor model and its telling instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "model": fields.get("model name", platform.processor() or platform.machine()),
        "machine": platform.machine(),
        "flags": [flag for flag in _TELLING if flag in flags],
    }


def has_vnni() -> bool:
    """Whether 8-bit dot products accumulate in 32 bits; without that they may saturate at 16."""
    flags = cpu_info()["flags"]
    return isinstance(flags, list) and bool({"avx_vnni", "avx512_vnni", "asimddp", "i8mm"} & set(flags))
