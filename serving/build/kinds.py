"""The kinds of recipes: what each may hold, and which steps it means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serving.build.anomaly.plan import AnomalyPlan
from serving.build.anomaly.recipe import AnomalyRecipe
from serving.build.imported.plan import ImportedPlan
from serving.build.imported.recipe import ImportedRecipe
from serving.build.plan import Plan
from serving.build.recipe import Recipe, parse, read_document
from serving.build.text.plan import TextPlan
from serving.build.text.recipe import TextRecipe
from serving.errors import ConfigError
from serving.governance.policy import BUILT_IN, Policy, load_policy

DEFAULT = "text"
KINDS: dict[str, tuple[type[Recipe], type[Plan[Any]]]] = {
    "text": (TextRecipe, TextPlan),
    "anomaly": (AnomalyRecipe, AnomalyPlan),
    "imported": (ImportedRecipe, ImportedPlan),
}


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe of any kind.

    Raises:
        ConfigError: the file cannot be read or used; one line a fault, each starting with file and path.
    """
    document = read_document(path)
    kind = document.get("kind", DEFAULT)
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"{path}: kind: {kind!r} is not one of {', '.join(KINDS)}")
    schema, _ = KINDS[kind]
    return parse(path, document, schema)


def policy_of(recipe: Recipe, path: Path) -> Policy | None:
    """The policy that a recipe names, if it names one. Raises `ConfigError` if it cannot be used."""
    given = recipe.requirements.policy
    if given is None:
        return None
    return load_policy(given if given in BUILT_IN else str(path.parent / given))


def plan_of(recipe: Recipe) -> type[Plan[Any]]:
    """The steps that a recipe means."""
    return KINDS[recipe.kind][1]
