"""A registry of tiny artifacts, and processes that die while they write it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.clock import FakeClock
from serving.registry.files import file_digest
from serving.registry.fsck import verify
from serving.registry.manifest import Lineage, Manifest, Parent, Signature, TensorSpec
from serving.registry.store import Registry

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))

#: Every call by which the registry changes what is on disk.
CHANGES = ("replace", "rename", "link", "unlink", "rmdir", "mkdir", "fsync", "chmod", "write", "ftruncate")


def put(registry: Registry, variant: str, content: str, model: str = "m", **about: Any) -> Manifest:
    """Register an artifact of two files, one of which all artifacts share."""
    source = registry.root.parent / f"{model}-{variant}-{content}.bin"
    source.write_text(content)
    files = {"model.onnx": source}
    if about.pop("words", False):
        files["words.txt"] = registry.root.parent / "words.txt"
        if not files["words.txt"].exists():
            files["words.txt"].write_text("the same for all")
    return registry.register(
        model, variant, files, format="onnx", entry="model.onnx", signature=SIGNATURE, session=SIGNATURE, **about
    )


def edit(registry: Registry, ref: str, old: str, new: str) -> tuple[str, str]:
    """Write another text into a manifest's file, by hand; the digests that it had and that it has."""
    path = registry.manifest_path(registry.resolve(ref))
    before, text = file_digest(path), path.read_text()
    assert text.count(old) == 1
    path.chmod(0o644)
    path.write_text(text.replace(old, new))
    return before, file_digest(path)


def made_from(parent: Manifest, role: str = "source") -> Lineage:
    return Lineage("quantized", (Parent(role, parent.ref, parent.digest),))


def copy_of(registry: Registry, target: Path) -> Registry:
    """The same registry elsewhere, hard links as hard links."""
    subprocess.run(["cp", "-a", str(registry.root), str(target)], check=True)
    return Registry(target, FakeClock())


def faults(registry: Registry) -> list[str]:
    return [finding.what for finding in verify(registry).faults]


def findings(registry: Registry) -> list[str]:
    return [finding.what for finding in verify(registry).findings]


def in_child(work: Callable[[], object]) -> int:
    """Start a process that does `work` and ends with 0, or 1 if that raises; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)


def end_of(child: int) -> int:
    """Wait for a child; its exit code, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dies_at(number: int, work: Callable[[], object]) -> bool:
    """Let a child do `work` and be killed before its `number`-th change on disk; False if it ends before that.

    A write is killed half way.
    """

    def doomed() -> None:
        left = number

        def dying(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    if name == "write":
                        real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            return call

        for name in CHANGES:
            setattr(os, name, dying(name, getattr(os, name)))
        work()

    code = end_of(in_child(doomed))
    assert code in (0, -signal.SIGKILL), "the work itself failed"
    return code != 0
