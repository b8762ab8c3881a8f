"""`canarium build --dry-run`: what a build would do, what it would find done, and how long the rest would take."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from serving.build.cache import Cache, Made, NotDoneError
from serving.build.evidence.steps import gather
from serving.build.kinds import load_recipe, plan_of, policy_of


class Planned(NamedTuple):
    """The steps in order. `waits_for` is the sentence on a result that decides what follows them; empty if all is
    known."""

    steps: list[Made]
    waits_for: str

    @property
    def seconds(self) -> float:
        """What the steps still to be done took the last time, as far as that is known."""
        return sum(step.seconds for step in self.steps if not step.cached and not math.isnan(step.seconds))

    @property
    def unknown(self) -> int:
        """How many steps still to be done were never done here."""
        return sum(not step.cached and math.isnan(step.seconds) for step in self.steps)


def dry_run(recipe_path: Path, *, cache_dir: Path) -> Planned:
    """Look at a recipe and the cache; nothing is done or written.

    Raises:
        ConfigError: the recipe, or the policy that it names, cannot be used.
        BuildError: a file that it names cannot be read.
    """
    recipe = load_recipe(recipe_path)
    policy_of(recipe, recipe_path)  # what a build refuses at once
    cache = Cache(cache_dir, lambda *_: None, dry=True)
    plan = plan_of(recipe)(recipe, recipe_path.parent, cache)
    try:
        gather(plan, plan.run())
    except NotDoneError as error:
        return Planned(cache.made, str(error))
    return Planned(cache.made, "")
