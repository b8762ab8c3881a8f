"""A virtual environment a peer, from the exact versions in `requirements/NAME.txt`, all built at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from loadtests.peers.registry import VENVS

REQUIREMENTS = Path(__file__).parent / "requirements"
TIMEOUT_S = 900
#: pip is mostly waiting and unpacking; two cores carry so many.
AT_ONCE = 3


def build(names: Iterable[str], say: Callable[[str], None]) -> dict[str, str]:
    """Make the environments that are missing or older than their file. Returns what failed: name -> pip's words."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        faults = pool.map(lambda name: (name, _build(name, say)), sorted(set(names)))
        return {name: fault for name, fault in faults if fault}


def _build(name: str, say: Callable[[str], None]) -> str | None:
    wanted, folder = REQUIREMENTS / f"{name}.txt", VENVS / name
    stamp = folder / ".installed"
    if stamp.exists() and stamp.stat().st_mtime > wanted.stat().st_mtime:
        return None
    say(f"installing {name} into {folder}")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([sys.executable, "-m", "venv", str(folder)], [*pip, "-r", str(wanted)]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode:
            return done.stderr.strip()[-600:]
    stamp.touch()
    return None
