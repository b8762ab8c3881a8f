"""The registry: artifacts on disk, content-addressed, immutable, verified when opened.

ROOT/blobs/sha256/ab/abcd…        file contents, mode 0444
ROOT/models/MODEL/VARIANT/N.json  manifest of revision N, mode 0444
ROOT/trees/DIGEST/NAME            an artifact's files by name: hard links to the blobs
ROOT/log.jsonl                    one line a registration, only ever appended
ROOT/.lock                        taken by writers; readers need none
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from serving.clock import Clock, SystemClock
from serving.errors import RegistryError
from serving.registry.manifest import File, Lineage, Manifest, Postprocess, Preprocess, Signature

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REF = re.compile(r"([^/:]+)/([^/:]+)(?::([^/:]+))?")
_CHUNK = 1 << 20

# `Registry.list` hides the built-in of that name inside the class.
_Manifests = list[Manifest]
_Strings = list[str]
_Numbers = list[int]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file so that a reader or a crash sees the old content or the new one, never a part."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def parse_ref(ref: str) -> tuple[str, str, int | None]:
    """Split `MODEL/VARIANT[:REVISION]`; revision None is the newest. Raises `RegistryError`."""
    match = _REF.fullmatch(ref)
    if match is None:
        raise RegistryError(f"{ref!r} is not MODEL/VARIANT:REVISION, such as moderation/int8:1")
    model, variant, revision = match.groups()
    _check_name("model", model)
    _check_name("variant", variant)
    if revision in (None, "latest"):
        return model, variant, None
    if not re.fullmatch(r"[1-9][0-9]{0,8}", revision):
        raise RegistryError(f"{ref!r}: revision {revision!r} is neither a number from 1 nor 'latest'")
    return model, variant, int(revision)


class Registry:
    """A folder of artifacts.

    Args:
        path: the folder; it need not exist until something is registered.
        clock: where `created_at` comes from.
    """

    def __init__(self, path: str | Path, clock: Clock | None = None) -> None:
        self.root = Path(path)
        self._clock = clock or SystemClock()

    def resolve(self, ref: str) -> Manifest:
        """The manifest of `MODEL/VARIANT:REVISION`; without a revision (or `latest`), the newest.

        Raises:
            RegistryError: no registry, nothing of that name (says what there is), a damaged manifest.
        """
        self._require()
        model, variant, revision = parse_ref(ref)
        variants = self._variants(model)
        if not variants:
            raise RegistryError(f"{ref}: no model {model!r} in {self.root} (it has: {_names(self._models())})")
        if variant not in variants:
            raise RegistryError(f"{ref}: model {model!r} has no variant {variant!r} (it has: {_names(variants)})")
        revisions = self._revisions(model, variant)
        if revision is None:
            revision = revisions[-1]
        elif revision not in revisions:
            raise RegistryError(f"{ref}: {model}/{variant} has no revision {revision} (it has: {_names(revisions)})")
        return self._read(model, variant, revision)

    def open(self, ref: str) -> tuple[Manifest, Path]:
        """Resolve `ref`, verify every file's digest and give the folder that holds them by name.

        The folder is to be read only: it is shared by all who open the artifact.

        Raises:
            RegistryError: as `resolve`, or a file is missing or differs from its digest.
        """
        manifest = self.resolve(ref)
        folder = self._tree(manifest)
        for name, file in manifest.files.items():
            path = folder / name
            try:
                got = file_digest(path)
            except OSError as error:
                raise RegistryError(
                    f"{manifest.ref}: cannot read {path}: {error.strerror}; run `canarium build` again"
                ) from error
            if got != file.sha256:
                raise RegistryError(
                    f"{manifest.ref}: {name} is damaged: expected sha256 {file.sha256}, got {got} in {path}; "
                    "run `canarium build` again to repair it"
                )
        return manifest, folder

    def list(self) -> _Manifests:
        """All manifests, ordered by model and version. Raises `RegistryError` if there is no registry."""
        self._require()
        found = [
            self._read(model, variant, revision)
            for model in self._models()
            for variant in self._variants(model)
            for revision in self._revisions(model, variant)
        ]
        return sorted(found, key=lambda manifest: (manifest.model, manifest.version))

    def register(
        self,
        model: str,
        variant: str,
        files: Mapping[str, Path],
        *,
        format: Literal["onnx", "torch"],
        entry: str,
        signature: Signature,
        session: Signature,
        preprocess: Preprocess | None = None,
        postprocess: Postprocess | None = None,
        lineage: Lineage | None = None,
        **about: Any,
    ) -> Manifest:
        """Add an artifact and number it. What has the same content already is returned as it is.

        Args:
            model: model name, lower-case letters, digits and '-'.
            variant: variant name, likewise.
            files: name in the artifact -> file to copy in.
            format: what `entry` holds.
            entry: the file a runtime loads.
            signature: tensors that clients see.
            session: tensors that the runtime takes and gives.
            about: the manifest's dictionaries (`data`, `quantization`, …, `evaluation`, `validated_on`).

        Raises:
            RegistryError: an unusable name, a file that cannot be read, `entry` not among the files.
        """
        _check_name("model", model)
        _check_name("variant", variant)
        for name in files:
            if not _FILE.fullmatch(name):
                raise RegistryError(f"file name {name!r}: use letters, digits, '.', '_' and '-', no folders")
        if entry not in files:
            raise RegistryError(f"{model}/{variant}: entry {entry!r} is not among the files ({_names(files)})")
        if preprocess is not None and preprocess.pad and any(-1 in spec.shape[1:] for spec in session.outputs):
            raise RegistryError(f"{model}/{variant}: preprocess.pad needs outputs whose axes are fixed after the first")
        self._prepare()
        stored = {name: self._store(path) for name, path in sorted(files.items())}
        with self._lock():
            made = Manifest(
                model=model,
                variant=variant,
                revision=max(self._revisions(model, variant), default=0) + 1,
                version=max((other.version for other in self._of(model)), default=0) + 1,
                created_at=datetime.fromtimestamp(self._clock.wall_ns() // 10**9, UTC).isoformat(),
                format=format,
                entry=entry,
                files=stored,
                signature=signature,
                session=session,
                preprocess=preprocess or Preprocess(),
                postprocess=postprocess or Postprocess(),
                lineage=lineage or Lineage(),
                **about,
            )
            # What is compared must have been through JSON, as what is on disk has.
            made = msgspec.json.decode(made.encode(), type=Manifest)
            content = made.content
            for other in self._of(model):
                if other.variant == variant and other.content == content:
                    self._repair(other)
                    return other
            folder = self.root / "models" / model / variant
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / f"{made.revision}.json", made.encode(), 0o444)
            self._append({"at": made.created_at, "ref": made.ref, "version": made.version, "digest": made.digest})
            self._tree(made)
        return made

    # ------------------------------------------------------------ reading

    def _require(self) -> None:
        if not (self.root / "models").is_dir():
            raise RegistryError(f"no registry at {self.root}: run `canarium build RECIPE.yaml` first")

    def _models(self) -> _Strings:
        return _folders(self.root / "models")

    def _variants(self, model: str) -> _Strings:
        return [name for name in _folders(self.root / "models" / model) if self._revisions(model, name)]

    def _revisions(self, model: str, variant: str) -> _Numbers:
        folder = self.root / "models" / model / variant
        return sorted(int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit())

    def _of(self, model: str) -> Iterator[Manifest]:
        for variant in self._variants(model):
            for revision in self._revisions(model, variant):
                yield self._read(model, variant, revision)

    def _read(self, model: str, variant: str, revision: int) -> Manifest:
        path = self.root / "models" / model / variant / f"{revision}.json"
        try:
            manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        except (OSError, msgspec.DecodeError) as error:
            raise RegistryError(f"{path}: not a usable manifest: {error}") from error
        if (manifest.model, manifest.variant, manifest.revision) != (model, variant, revision):
            raise RegistryError(f"{path}: holds the manifest of {manifest.ref}; it was moved or edited")
        return manifest

    def _tree(self, manifest: Manifest) -> Path:
        """The folder of an artifact's files by name, made when it is registered or, if lost, on use."""
        folder = self.root / "trees" / manifest.digest
        if folder.is_dir():
            return folder
        try:
            folder.parent.mkdir(exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
        except OSError as error:
            raise RegistryError(f"{manifest.ref}: cannot write under {folder.parent}: {error.strerror}") from error
        try:
            for name, file in manifest.files.items():
                if not _FILE.fullmatch(name):
                    raise RegistryError(f"{manifest.ref}: file name {name!r} is refused")
                _link(self._blob(file.sha256), temporary / name)
            temporary.chmod(0o755)
            os.rename(temporary, folder)
        except OSError as error:
            if not folder.is_dir():  # else another process was quicker
                raise RegistryError(
                    f"{manifest.ref}: cannot lay out its files: {error}; run `canarium build` again"
                ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return folder

    def _blob(self, sha256: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise RegistryError(f"{sha256!r} is not a SHA-256 digest")
        return self.root / "blobs" / "sha256" / sha256[:2] / sha256

    # ------------------------------------------------------------ writing

    def _prepare(self) -> None:
        try:
            for name in ("blobs/sha256", "models", "trees"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RegistryError(f"cannot create the registry at {self.root}: {error.strerror}") from error

    def _store(self, path: Path) -> File:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RegistryError(f"cannot read {path}: {error.strerror}") from error
        sha256 = hashlib.sha256(data).hexdigest()
        blob = self._blob(sha256)
        # A blob that is there but damaged is written afresh: registering again repairs it.
        if not blob.is_file() or file_digest(blob) != sha256:
            blob.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(blob, data, 0o444)
        return File(sha256, len(data))

    def _repair(self, manifest: Manifest) -> None:
        """Lay out again what was damaged; its blobs have just been stored."""
        folder = self.root / "trees" / manifest.digest
        for name, file in manifest.files.items():
            if not (folder / name).is_file() or file_digest(folder / name) != file.sha256:
                shutil.rmtree(folder, ignore_errors=True)
        self._tree(manifest)

    def _append(self, line: dict[str, Any]) -> None:
        with (self.root / "log.jsonl").open("ab") as stream:
            stream.write(msgspec.json.encode(line) + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.root / ".lock").open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise RegistryError(f"{what} name {name!r}: use lower-case letters, digits and '-', at most 40")


def _folders(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    return sorted(child.name for child in path.iterdir() if child.is_dir() and _NAME.fullmatch(child.name))


def _names(names: Any) -> str:
    return ", ".join(str(name) for name in sorted(names)) or "nothing"


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
