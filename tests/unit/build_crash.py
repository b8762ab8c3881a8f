"""Kills builds: `python tests/unit/build_crash.py FOLDER KILLS SEED` prints one JSON document of what was found.

A process of its own, because it forks: nothing but imports has happened in it before, so that a child may use the
libraries that keep threads. Each child builds and is killed by SIGKILL, either before a random one of the changes that
it makes on disk or after a random time, which also falls into the middle of a computation. The next child goes on in
the same folders; when a build has come to its end, the next begins in new ones.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "unit")]

import build_kit  # noqa: E402
import onnxruntime.quantization  # noqa: E402, F401
import sklearn.feature_extraction.text  # noqa: E402
import sklearn.linear_model  # noqa: E402, F401
import torch  # noqa: E402, F401
from registry_kit import CHANGES, end_of, faults, in_child  # noqa: E402

from serving.build.runner import build  # noqa: E402
from serving.registry.collect import collect  # noqa: E402
from serving.registry.store import Registry  # noqa: E402

#: No build of the tiny recipe lasts longer, so that a time is drawn from the whole of it.
_LONGEST_S = 6.0


def _build(folder: Path) -> None:
    build(folder / "recipe.yaml", Registry(folder / "registry"), cache_dir=folder / "cache")


def _before_change(number: int, folder: Path) -> None:
    """Build, and die before the `number`-th change on disk."""
    left = number

    def dying(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for name in CHANGES:
        setattr(os, name, dying(getattr(os, name)))
    _build(folder)


def _after(seconds: float, folder: Path) -> int:
    child = in_child(lambda: _build(folder))
    signal.sigtimedwait([signal.SIGCHLD], seconds)
    os.kill(child, signal.SIGKILL)  # a child that has ended is a zombie until it is waited for
    return end_of(child)


def _fresh(root: Path, number: int) -> Path:
    folder = root / f"{number}"
    folder.mkdir()
    build_kit.write(folder, build_kit.recipe(), build_kit.rows())
    return folder


def main(root: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill `kills` builds; gives the faults found after each, and what the builds that came to their end registered."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    chance, killed, rounds, wrong, changes = random.Random(seed), 0, 0, [], 60
    ended: list[list[str]] = []
    folder = _fresh(root, rounds)
    while killed < kills:
        if chance.random() < 0.5:
            number = chance.randrange(1, changes)
            code = end_of(in_child(partial(_before_change, number, folder)))
        else:
            code = _after(chance.uniform(0.05, _LONGEST_S / 4), folder)
        killed += code == -signal.SIGKILL
        registry = Registry(folder / "registry")
        if (registry.root / "models").is_dir():
            wrong += faults(registry)
        if code not in (0, -signal.SIGKILL):
            wrong.append(f"a resumed build failed with {code}")
        if code == 0:
            ended.append(sorted(manifest.ref for manifest in registry.list()))
            rounds += 1
            folder = _fresh(root, rounds)
    code = end_of(in_child(lambda: _build(folder)))
    registry = Registry(folder / "registry")
    collect(registry)
    return {
        "killed": killed,
        "faults": [*wrong, *faults(registry)],
        "resumed": code,
        "registered": sorted(manifest.ref for manifest in registry.list()),
        "ended": ended,
        "left_over": [path.name for path in (folder / "cache").glob(".*") if path.name != ".lock"],
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
