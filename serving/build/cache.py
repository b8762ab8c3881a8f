"""Steps that are done once: cached by the content of all they depend on, resumed after an interruption.

    ROOT/NAME-KEY/…          a step's files
    ROOT/NAME-KEY/done.json  written last: digests of the files, and the seconds it took

A step's key is the hash of its name, its parameters, the source of its code, the versions of the libraries
it uses, the digests of the files it reads and the keys of the steps it builds on.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from serving.clock import Clock, SystemClock
from serving.decoding import UNREADABLE
from serving.errors import CanariumError
from serving.registry.files import file_digest, write_atomically

#: Results of one step that are kept, so that going back to an earlier recipe is free but the disk does not fill.
KEEP = 4
LIBRARIES = ("torch", "onnxruntime", "onnx", "tokenizers", "numpy", "scipy", "scikit-learn", "safetensors")


class BuildError(CanariumError):
    """A build that cannot go on; the message names the step."""


class NotDoneError(BuildError):
    """What a step wrote was asked for in a dry run, and it has not been done."""


class Tick(Protocol):
    """How a step tells how far it is."""

    def __call__(self, done: float, total: float, note: str = "") -> None: ...


class StepFunction(Protocol):
    """The work of a step: reads `needs` (step name -> folder), writes into `out`."""

    __name__: str

    def __call__(self, out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None: ...


class Made(NamedTuple):
    """A finished step; in a dry run also one that is not.

    `seconds` is what it took; for a step still to be done what it took the last time, NaN if that is not known.
    """

    name: str
    key: str
    folder: Path
    seconds: float
    cached: bool

    def read(self, file: str) -> Any:
        """The decoded content of one of its JSON files. Raises `NotDoneError` in a dry run."""
        try:
            return msgspec.json.decode((self.folder / file).read_bytes())
        except FileNotFoundError as error:
            raise NotDoneError(f"step {self.name} has not been done") from error

    def digests(self) -> dict[str, str]:
        """SHA-256 of its files by name."""
        done = _read_done(self.folder)
        return done.files if done else {}


class _Done(msgspec.Struct, frozen=True):
    files: dict[str, str]
    seconds: float


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys."""
    encoded = msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2)
    write_atomically(path, encoded + b"\n")


def versions() -> dict[str, str]:
    """Versions of the libraries whose results a build depends on."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


class Cache:
    """The folder of finished steps.

    Args:
        root: created if absent.
        listen: told (step name, done, total, note); done == total when the step is finished.
        dry: do nothing, only tell what would be done.
    """

    def __init__(
        self,
        root: Path,
        listen: Callable[[str, float, float, str], None],
        clock: Clock | None = None,
        *,
        dry: bool = False,
    ) -> None:
        self._root = root
        self._listen = listen
        self._clock = clock or SystemClock()
        self._versions = versions()
        self._dry = dry
        self.made: list[Made] = []

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other builds out of the cache; refuses at once if one is in it."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            stream = (self._root / ".lock").open("ab")
        except OSError as error:
            raise BuildError(f"cannot use the build cache at {self._root}: {error.strerror}") from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise BuildError(f"another build is using {self._root}: wait for it or use another cache") from error
            yield
            self._prune()

    def step(
        self,
        name: str,
        function: StepFunction,
        *,
        parameters: Mapping[str, Any] | None = None,
        needs: Mapping[str, Made] | None = None,
        files: Mapping[str, Path] | None = None,
        sources: Sequence[Path] = (),
    ) -> Made:
        """Do a step, or find that it has been done.

        Args:
            name: also the beginning of its folder's name.
            function: the work.
            parameters: JSON values given to it.
            needs: earlier steps whose folders it reads, by the name it knows them by.
            files: files it reads from elsewhere, which it finds in `needs` too.
            sources: source files it depends on beside its own.

        Raises:
            BuildError: the step failed.
        """
        parameters, needs, files = dict(parameters or {}), dict(needs or {}), dict(files or {})
        own = inspect.getsourcefile(function)
        code = sorted({Path(own or ""), *sources})
        key = _key(
            name=name,
            parameters=parameters,
            needs={known: made.key for known, made in needs.items()},
            files={known: self._digest_of(name, path) for known, path in files.items()},
            code=[file_digest(path) for path in code],
            versions=self._versions,
        )
        folder = self._root / f"{name}-{key[:16]}"
        done = _read_done(folder)
        given = {known: made.folder for known, made in needs.items()} | files
        if self._dry:
            made = Made(name, key, folder, done.seconds if done else self._last_seconds(name), done is not None)
            self.made.append(made)
            return made
        if done is None:
            done = self._do(name, folder, function, given, parameters)
            made = Made(name, key, folder, done.seconds, False)
        else:
            os.utime(folder)  # the least recently used are pruned
            made = Made(name, key, folder, done.seconds, True)
        self._listen(name, 1, 1, "cached" if made.cached else f"{made.seconds:.1f} s")
        self.made.append(made)
        return made

    def _do(
        self,
        name: str,
        folder: Path,
        function: StepFunction,
        needs: Mapping[str, Path],
        parameters: Mapping[str, Any],
    ) -> _Done:
        shutil.rmtree(folder, ignore_errors=True)
        for stale in self._root.glob(f".{name}-*"):  # of a build that was interrupted; we hold the lock
            shutil.rmtree(stale, ignore_errors=True)
        out = Path(tempfile.mkdtemp(dir=self._root, prefix=f".{name}-"))
        started = self._clock.monotonic_ns()
        self._listen(name, 0, 1, "")
        try:
            function(out, needs, parameters, lambda at, total, note="": self._listen(name, min(at, total), total, note))
        except CanariumError:
            raise
        except Exception as error:
            raise BuildError(f"step {name} failed: {type(error).__name__}: {error}") from error
        else:
            seconds = (self._clock.monotonic_ns() - started) / 1e9
            done = _Done({path.name: file_digest(path) for path in sorted(out.iterdir())}, round(seconds, 3))
            write_json(out / "done.json", msgspec.to_builtins(done))
            os.rename(out, folder)
        finally:
            shutil.rmtree(out, ignore_errors=True)
        return done

    def _digest_of(self, step: str, path: Path) -> str:
        try:
            return file_digest(path)
        except OSError as error:
            if self._dry and self._root in path.parents:
                return "not yet made"
            raise BuildError(f"step {step}: cannot read {path}: {error.strerror}") from error

    def _last_seconds(self, name: str) -> float:
        """What the step of that name took when it was last done with other inputs; NaN if never."""
        found = [path for path in self._root.glob(f"{name}-*/done.json") if path.parent.name.rpartition("-")[0] == name]
        for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            with suppress(OSError, *UNREADABLE):
                return msgspec.json.decode(path.read_bytes(), type=_Done).seconds
        return math.nan

    def _prune(self) -> None:
        """Keep the `KEEP` most recently used results of each step."""
        results: dict[str, list[Path]] = {}
        for done in self._root.glob("*/done.json"):
            results.setdefault(done.parent.name.rpartition("-")[0], []).append(done.parent)
        for folders in results.values():
            for folder in sorted(folders, key=lambda path: path.stat().st_mtime_ns)[:-KEEP]:
                shutil.rmtree(folder, ignore_errors=True)


def _key(**parts: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


def _read_done(folder: Path) -> _Done | None:
    """What a step left, if all of it is there and unchanged."""
    try:
        done = msgspec.json.decode((folder / "done.json").read_bytes(), type=_Done)
        intact = all(file_digest(folder / name) == digest for name, digest in done.files.items())
    except (OSError, *UNREADABLE):
        return None
    return done if intact else None
