"""Which artifacts a configuration means: `latest` and aliases become revisions once, when something starts.

So a restarted gateway or worker of an instance serves what the others serve, whatever was registered or renamed
meanwhile. Policies are read once, likewise. On a cluster every Serve application starts by itself: a configuration for
one names revisions.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pydantic import ValidationError

from serving.config import Config, Started
from serving.errors import ConfigError
from serving.governance.admission import required_policies
from serving.loading import Loader
from serving.paths import Paths
from serving.registry.hosts import processors
from serving.registry.signatures import unlike
from serving.registry.store import Registry


def pinned(config: Config, registry: Registry) -> Config:
    """The same with every artifact as `MODEL/VARIANT:REVISION`. Raises `RegistryError` if one is not there."""
    models = {
        name: model.model_copy(
            update={
                "variants": {
                    variant: given.model_copy(update={"artifact": registry.resolve(given.artifact).ref})
                    for variant, given in model.variants.items()
                }
            }
        )
        for name, model in config.models.items()
    }
    return config.model_copy(update={"models": models})


def started(config: Config, registry: Registry) -> Started:
    """`pinned`, and with what the policies say now, for all processes that are started with it.

    Raises:
        RegistryError: as `pinned`.
        ConfigError: a policy cannot be used, or a variant in its baseline's place.
    """
    named = pinned(config, registry)
    _require_alike(named, registry)
    return Started.model_validate({**dict(named), "policies": required_policies(config)})


def _require_alike(config: Config, registry: Registry) -> None:
    """Raises `ConfigError` for a variant that would refuse the baseline's clients, which no guard could see."""
    for name, model in config.models.items():
        baseline = registry.resolve(model.variants[model.baseline].artifact)
        for variant, given in model.variants.items():
            own = registry.resolve(given.artifact)
            if why := unlike(own.signature, baseline.signature):
                raise ConfigError(
                    f"models.{name}.variants.{variant}: {own.ref} cannot answer in the place of the baseline "
                    f"{model.baseline}, {baseline.ref}: {why}"
                )


def in_use(config: Config, registry: Registry) -> set[str]:
    """References, with revision, that a configuration names now, and those that its instance was last started with.

    With the siblings that are served in place of INT8 artifacts on other processors: who asks may run on none of them.

    Raises:
        RegistryError: one that it names is not there, or a manifest cannot be read.
        ConfigError: it is not known what the instance was started with; a policy cannot be used.
    """
    everything = registry.list()
    there = {manifest.ref for manifest in everything}
    named = set[str]()
    for one in (pinned(config, registry), *_started_with(Paths.of(config.state.dir).instance_file)):
        named |= _served(one)
        known = _only(one, there)  # an instance may outlive what it was started with
        for cpu in processors(everything):
            named |= _served(Loader(known, registry, cpu).fitted(known)[0])
    return named


def _served(config: Config) -> set[str]:
    return {variant.artifact for model in config.models.values() for variant in model.variants.values()}


def _only(config: Config, there: Collection[str]) -> Config:
    """The configuration without variants whose artifacts are gone."""
    models = {
        name: model.model_copy(
            update={"variants": {key: one for key, one in model.variants.items() if one.artifact in there}}
        )
        for name, model in config.models.items()
    }
    return config.model_copy(update={"models": models})


def _started_with(path: Path) -> list[Started]:
    try:
        return [Started.model_validate_json(path.read_bytes())]
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"{path}: cannot be read, so it is not known which artifacts this instance uses; start it again, "
            f"or remove the file if it will not run any more ({type(error).__name__})"
        ) from error
