"""Opening an artifact to serve it: whole, of a format that may be loaded, fit for this processor, and approved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from serving.build.cpu import cpu_info
from serving.config import Config
from serving.errors import RegistryError
from serving.governance.admission import Admission
from serving.registry.formats import check_entry
from serving.registry.hosts import siblings, unfit
from serving.registry.manifest import Manifest
from serving.registry.store import Registry


class Loader:
    """Opens the artifacts of one configuration.

    Args:
        cpu: the processor of this host.

    Raises:
        ConfigError: a policy that the configuration names cannot be used.
    """

    def __init__(self, config: Config, registry: Registry, cpu: Mapping[str, Any] | None = None) -> None:
        self._registry = registry
        self._admission = Admission(config, registry)
        self._cpu = cpu_info() if cpu is None else cpu

    def open(
        self, model: str, variant: str, ref: str, *, runs_here: bool = True, warn: Callable[[str], None] | None = None
    ) -> tuple[Manifest, Path]:
        """The manifest of an artifact and the folder of its files.

        Args:
            model, variant: as what it is to be served.
            runs_here: its session will run on this host, so it must be fit for its processor.
            warn: told what is wrong where the configuration asks only for a warning.

        Raises:
            RegistryError: it is missing, damaged, of no usable format, or not validated on this processor.
            GovernanceError: it is not approved, and the configuration says `enforce`.
        """
        manifest, folder = self._registry.open(ref)
        check_entry(manifest, folder)
        if runs_here and (why := unfit(manifest, self._cpu)):
            raise RegistryError(
                f"models.{model}.variants.{variant}: {why}; no sibling of the same source that was validated here can "
                "take its place: build one on this host, or choose another artifact"
            )
        if (said := self._admission.check(model, variant, manifest)) and warn is not None:
            warn(said)
        return manifest, folder

    def fitted(self, config: Config) -> tuple[Config, list[str]]:
        """The configuration with siblings in place of INT8 artifacts that may not run here, where there are any.

        An approved sibling is preferred, and in mode `enforce` no other taken. One that another variant serves is not
        taken either: clients tell variants by their versions.

        Returns:
            The configuration, and a sentence on each exchange, and on each that could not be.
        """
        notes, models, everything = [], {}, None
        for name, model in config.models.items():
            variants = dict(model.variants)
            manifests = {variant: self._registry.resolve(given.artifact) for variant, given in variants.items()}
            served = {manifest.ref: variant for variant, manifest in manifests.items()}
            for variant, manifest in manifests.items():
                if not (why := unfit(manifest, self._cpu)):
                    continue
                everything = self._registry.list() if everything is None else everything
                found = siblings(manifest, everything, self._cpu)
                free = [other for other in found if other.ref not in served]
                refused = {other.ref: self._admission.refusal(name, variant, other) for other in free}
                allowed = [other for other in free if not refused[other.ref] or self._admission.mode != "enforce"]
                where = f"models.{name}.variants.{variant}: {why}"
                if allowed:
                    other = min(allowed, key=lambda other: bool(refused[other.ref]))
                    served[other.ref] = variant
                    variants[variant] = variants[variant].model_copy(update={"artifact": other.ref})
                    notes.append(f"{where}; its sibling {other.ref} is served instead")
                elif free:
                    notes.append(f"{where}; its sibling {free[0].ref} is not served instead: {refused[free[0].ref]}")
                elif found:
                    taken = f"{found[0].ref} is already served as {served[found[0].ref]}"
                    notes.append(f"{where}; its sibling {taken}: leave out one of the two")
            models[name] = model.model_copy(update={"variants": variants})
        return config.model_copy(update={"models": models}), notes

    def refusal(self, model: str, variant: str, ref: str) -> str:
        """Why an artifact may not be served by the configuration's governance; empty if it may, or mode is not enforce.

        Raises:
            RegistryError: it cannot be read any more.
        """
        if self._admission.mode != "enforce":
            return ""
        return self._admission.refusal(model, variant, self._registry.resolve(ref))
