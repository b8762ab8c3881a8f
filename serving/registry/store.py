"""The registry: artifacts on disk, content-addressed, immutable, verified when opened.

ROOT/blobs/sha256/ab/abcd…        file contents, mode 0444
ROOT/models/MODEL/VARIANT/N.json  manifest of revision N, mode 0444
ROOT/trees/DIGEST/NAME            an artifact's files by name: hard links to the blobs
ROOT/log.jsonl                    one line a registration or removal, only ever appended
ROOT/aliases.jsonl                one line a change of an alias, only ever appended
ROOT/approvals.jsonl              one line a signed approval, only ever appended
ROOT/.lock                        held by writers; readers need none

An artifact is registered when its manifest has its name. Its blobs are there before, its log line and its tree come
after; the lock is held all the while, so a blob that no manifest names and that nobody holds the lock for is left over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from serving.clock import Clock, SystemClock
from serving.decoding import UNREADABLE
from serving.errors import RegistryError
from serving.registry.aliases import Aliases
from serving.registry.approvals import Approvals
from serving.registry.binding import misbound
from serving.registry.blobs import Blobs
from serving.registry.files import file_digest, locked, make_folder, write_atomically
from serving.registry.formats import refuse_outside, refuse_pickle
from serving.registry.log import REMOVED, RegistryLog
from serving.registry.manifest import File, Lineage, Manifest, Postprocess, Preprocess, Signature
from serving.registry.names import is_name, listed, parse_ref, revision_of
from serving.registry.rules import check
from serving.registry.trees import Trees

# `Registry.list` hides the built-in of that name inside the class.
_Manifests = list[Manifest]
_Strings = list[str]
_Numbers = list[int]


#: Stands for a file that is not stored yet.
_UNKNOWN = File("0" * 64, 0)


class Registered(NamedTuple):
    """An artifact, and whether it is new or was there already with the same content."""

    manifest: Manifest
    new: bool


class Registry:
    """A folder of artifacts.

    Args:
        path: the folder; it need not exist until something is registered.
        clock: where times come from.
    """

    def __init__(self, path: str | Path, clock: Clock | None = None) -> None:
        self.root = Path(path)
        self.blobs = Blobs(self.root)
        self.trees = Trees(self.root, self.blobs)
        self.log = RegistryLog(self.root)
        self.aliases = Aliases(self.root)
        self.approvals = Approvals(self.root)
        self._clock = clock or SystemClock()

    def resolve(self, ref: str) -> Manifest:
        """The manifest of `MODEL/VARIANT:REVISION`; an alias gives what it names, nothing (or `latest`) the newest.

        As it stands in its file: `checked` holds it to the digest that it was registered with.

        Raises:
            RegistryError: no registry, nothing of that name (says what there is), a damaged manifest.
        """
        self._require()
        model, variant, which = parse_ref(ref)
        variants = self.variants(model)
        if not variants:
            raise RegistryError(f"{ref}: no model {model!r} in {self.root} (it has: {listed(self.models())})")
        if variant not in variants:
            raise RegistryError(f"{ref}: model {model!r} has no variant {variant!r} (it has: {listed(variants)})")
        revisions = self.revisions(model, variant)
        if isinstance(which, str):
            named = self.aliases.of(model, variant)
            if which not in named:
                raise RegistryError(
                    f"{ref}: {model}/{variant} has no alias {which!r} (it has: {listed(named)}); set it with "
                    f"`canarium registry alias {model}/{variant} {which} REVISION`"
                )
            which = named[which]
        revision = revisions[-1] if which is None else which
        if revision not in revisions:
            raise RegistryError(f"{ref}: {model}/{variant} has no revision {revision} (it has: {listed(revisions)})")
        return self.read(model, variant, revision)

    def checked(self, ref: str) -> Manifest:
        """Resolve `ref` and verify the manifest's digest, for all who pass on what it says.

        Raises:
            RegistryError: as `resolve`; the manifest differs from its digest; a calibration cache was made for another
                model.
        """
        manifest = self.resolve(ref)
        self._check_manifest(manifest)
        return manifest

    def open(self, ref: str) -> tuple[Manifest, Path]:
        """Resolve `ref`, verify the manifest's and every file's digest and give the folder that holds them by name.

        The folder is to be read only: it is shared by all who open the artifact.

        Raises:
            RegistryError: as `checked`; a file is missing, differs from its digest or is a pickle; there is one more
                than the manifest has, or the model keeps tensors in one.
        """
        manifest = self.checked(ref)
        folder = self.tree(manifest)
        if strange := self.trees.strangers(manifest):
            raise RegistryError(
                f"{manifest.ref}: {folder / strange[0]} does not belong to it; "
                "`canarium registry verify --repair` lays it out again"
            )
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
            refuse_pickle(manifest.ref, name, path)
        refuse_outside(manifest.ref, manifest, folder / manifest.entry)
        return manifest, folder

    def list(self) -> _Manifests:
        """All manifests, ordered by model and version. Raises `RegistryError` if there is no registry."""
        self._require()
        found = [manifest for model in self.models() for manifest in self._of(model)]
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
        draft = Manifest(
            model=model,
            variant=variant,
            revision=0,
            version=0,
            created_at=self.now(),
            format=format,
            entry=entry,
            files=dict.fromkeys(files, _UNKNOWN),
            signature=signature,
            session=session,
            preprocess=preprocess or Preprocess(),
            postprocess=postprocess or Postprocess(),
            lineage=lineage or Lineage(),
            **about,
        )
        return self.add(draft, files)

    def add(
        self, draft: Manifest, files: Mapping[str, Path], stands: Callable[[Manifest], bool] | None = None
    ) -> Manifest:
        """`register` what a manifest describes; its numbers and the digests of its files are given here.

        Args:
            stands: as `commit`.

        Raises:
            RegistryError: as `register`.
        """
        check(draft)
        for name, path in files.items():
            refuse_pickle(f"{draft.model}/{draft.variant}", name, path)
        refuse_outside(f"{draft.model}/{draft.variant}", draft, files[draft.entry])
        with self.writing():
            stored = {name: self.blobs.put(path) for name, path in sorted(files.items())}
            # What is compared must have been through JSON, as what is on disk has.
            whole = msgspec.structs.replace(draft, files=stored)
            return self.commit(msgspec.json.decode(whole.encode(), type=Manifest), stands=stands).manifest

    def commit(self, draft: Manifest, origin: str = "", stands: Callable[[Manifest], bool] | None = None) -> Registered:
        """Number a checked draft whose blobs are stored, and make it visible; only inside `writing`.

        Args:
            draft: all but its revision and version.
            origin: digest of the manifest that it was imported from, if its numbers were others.
            stands: whether a revision of the same content may be given instead, measured as it was; None: any may.

        Raises:
            RegistryError: as `trees.lay_out` and `log`; its calibration cache was made for another model.
        """
        model, variant, content = draft.model, draft.variant, draft.content
        others = list(self._of(model))
        if why := misbound(draft, others):
            raise RegistryError(f"{model}/{variant}: {why}; nothing was registered")
        for other in others:
            if other.variant == variant and other.content == content and (stands is None or stands(other)):
                # Whatever damaged it, or ended the process that registered it, is made good.
                self.trees.repair(other)
                self.log.registered(other, self.now(), origin if origin != other.digest else "")
                return Registered(other, False)
        given = self.log.highest(model, variant)
        revision = max((other.revision for other in others if other.variant == variant), default=0)
        version = max((other.version for other in others), default=0)
        made = msgspec.structs.replace(
            draft, revision=max(revision, given.revision) + 1, version=max(version, given.version) + 1
        )
        path = self.manifest_path(made)
        make_folder(path.parent)
        write_atomically(path, made.encode(), 0o444)
        self.log.registered(made, self.now(), origin if origin != made.digest else "")
        self.trees.lay_out(made)
        return Registered(made, True)

    # ------------------------------------------------------------ for what works on a whole registry

    @contextmanager
    def writing(self, *, new: bool = True) -> Iterator[None]:
        """Hold the writers' lock; waits for whoever holds it.

        Args:
            new: make the registry if there is none.

        Raises:
            RegistryError: it cannot be written, or there is none.
        """
        try:
            if new:
                for name in ("blobs/sha256", "models", "trees"):
                    make_folder(self.root / name)
        except OSError as error:
            raise RegistryError(f"cannot create the registry at {self.root}: {error.strerror}") from error
        self._require()
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.root / ".lock"))
            except OSError as error:
                raise RegistryError(f"cannot write in the registry at {self.root}: {error.strerror}") from error
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold off writers, where that is possible. Raises `RegistryError` if there is no registry."""
        self._require()
        with locked(self.root / ".lock", shared=True):
            yield

    def now(self) -> str:
        """The time in UTC, to the second."""
        return datetime.fromtimestamp(self._clock.wall_ns() // 10**9, UTC).isoformat()

    def models(self) -> _Strings:
        return [name for name in _folders(self.root / "models") if self.variants(name)]

    def variants(self, model: str) -> _Strings:
        return [name for name in _folders(self.root / "models" / model) if self.revisions(model, name)]

    def revisions(self, model: str, variant: str) -> _Numbers:
        """Revisions that are there, the oldest first."""
        folder = self.root / "models" / model / variant
        return sorted(number for path in folder.glob("*.json") if (number := revision_of(path.name)) is not None)

    def manifest_path(self, manifest: Manifest) -> Path:
        return self.root / "models" / manifest.model / manifest.variant / f"{manifest.revision}.json"

    def read(self, model: str, variant: str, revision: int) -> Manifest:
        """The manifest of a revision. Raises `RegistryError` if it cannot be used."""
        path = self.root / "models" / model / variant / f"{revision}.json"
        try:
            manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        except (OSError, *UNREADABLE) as error:
            raise RegistryError(f"{path}: not a usable manifest: {error}") from error
        if (manifest.model, manifest.variant, manifest.revision) != (model, variant, revision):
            raise RegistryError(f"{path}: holds the manifest of {manifest.ref}; it was moved or edited")
        return manifest

    def tree(self, manifest: Manifest) -> Path:
        """The folder of an artifact's files by name, unverified; made when it is registered or, if lost, on use.

        Raises:
            RegistryError: it was lost, and cannot be made.
        """
        folder = self.trees.path(manifest)
        if not folder.is_dir():
            with self.writing():
                self.trees.lay_out(manifest)
        return folder

    # ------------------------------------------------------------ inside

    def _require(self) -> None:
        if not (self.root / "models").is_dir():
            raise RegistryError(f"no registry at {self.root}: run `canarium build RECIPE.yaml` first")

    def _of(self, model: str) -> Iterator[Manifest]:
        for variant in self.variants(model):
            for revision in self.revisions(model, variant):
                yield self.read(model, variant, revision)

    def _check_manifest(self, manifest: Manifest) -> None:
        """Raises `RegistryError` if the manifest is not the one that was registered, or contradicts its source."""
        path, event = self.manifest_path(manifest), self.log.last().get(manifest.ref)
        if event is not None and event.event != REMOVED and (got := file_digest(path)) != event.digest:
            raise RegistryError(
                f"{manifest.ref}: its manifest is damaged: registered with sha256 {event.digest}, got {got} in {path}; "
                "restore it from a copy"
            )
        if why := misbound(manifest, self._parents(manifest)):
            raise RegistryError(f"{manifest.ref}: {why}; build it again")

    def _parents(self, manifest: Manifest) -> Iterator[Manifest]:
        """Those of the artifacts that it was made from that are here."""
        for parent in manifest.lineage.parents:
            with suppress(RegistryError):
                yield self.resolve(parent.ref)


def _folders(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    return sorted(child.name for child in path.iterdir() if child.is_dir() and is_name(child.name))
