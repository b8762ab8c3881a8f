"""What a kind of recipe adds to a build: its steps, what they found, and how its variants are made known.

The runner, the cache, the gate, the registration and the report know nothing else of a kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from serving.build.cache import Cache, Made, StepFunction
from serving.build.interface import ENTRIES, Interface
from serving.build.recipe import Recipe
from serving.build.rows import spread
from serving.registry.manifest import Manifest, Relation

R = TypeVar("R", bound=Recipe)
#: Rows of the test split by which two artifacts are compared.
GOLDEN_ROWS = 256


class Variant(NamedTuple):
    """One artifact on its way: its files, where it comes from, how its answers are read, what was measured.

    Attributes:
        name: of the variant.
        format: a key of `ENTRIES`.
        model: the step that made the entry.
        evaluation: the step that measured it: `evaluation.json`.
        interface: what it takes and gives.
        relation: to its parents.
        parents: role -> name of an earlier variant.
        calibration: the step that fitted its temperature: `calibration.json`; None keeps 1.
        files: further files by name.
        about: gives the manifest's dictionaries that only this kind of artifact has (`quantization`, `distillation`,
            …); asked once its steps are done.
        damage: for one damaged on purpose, the step that did it: `damage.json`. It passes no gate, and is published
            with the evaluation of its one parent, as a bad release would be whose numbers were believed.
    """

    name: str
    format: str
    model: Made
    evaluation: Made
    interface: Interface
    relation: Relation = "root"
    parents: Mapping[str, str] = {}
    calibration: Made | None = None
    files: Mapping[str, Path] = {}
    about: Callable[[], Mapping[str, Any]] = dict
    damage: Made | None = None

    @property
    def entry(self) -> str:
        """Name of the file that a runtime loads."""
        return ENTRIES[self.format]


class Part(NamedTuple):
    """A section of the report: its heading and its Markdown lines."""

    title: str
    lines: Sequence[str]


class Answers(NamedTuple):
    """What an artifact answers to some rows: `probabilities` float [n, C] and `classes`, class indices [n]."""

    probabilities: np.ndarray
    classes: np.ndarray


class Plan(ABC, Generic[R]):
    """The steps of one recipe.

    Args:
        recipe: checked.
        folder: to which the recipe's files are relative.
        cache: of finished steps.
    """

    #: How the report says what each split was used for.
    splits: str = ""
    #: Where the report says that its intervals come from, and the p-values of two models on the same rows.
    intervals: str = "Wilson intervals; the bound of negative flips is Clopper–Pearson's."
    paired_test: str = "exact sign test"
    #: How the report says where the temperatures come from whose effect on test it shows.
    temperatures: str = "Fitted on the calibration split"
    #: What the data was used for, in the manifests.
    role: str = "train, calibrate, test"

    def __init__(self, recipe: R, folder: Path, cache: Cache) -> None:
        self.recipe = recipe
        self.folder = folder
        self.made: dict[str, Made] = {}
        #: What was searched, for the report; None if nothing was.
        self.searched: dict[str, Any] | None = None
        self._cache = cache

    @abstractmethod
    def run(self) -> list[Variant]:
        """Do every step. The first variant is the trusted one; parents come before their children.

        Reads what a step wrote only where later steps depend on it, so that a dry run can name them all.

        Raises:
            BuildError: a step failed.
        """

    def check(self, variants: Sequence[Variant]) -> None:
        """Look at what was measured before anything is registered.

        Raises:
            BuildError: the build is not what the recipe asks for.
        """
        return

    @abstractmethod
    def data(self) -> dict[str, Any]:
        """What is known of the data: `rows`, `splits` (name -> label -> rows) and digests."""

    def golden(self, manifest: Manifest, folder: Path, data: Path) -> Answers:
        """Ask an artifact for the golden rows, evenly spread over the test split, as the server would with one thread.

        Args:
            folder: the artifact's files by name.
            data: the folder of the step `data`.
        """
        from serving.build.evaluate import infer
        from serving.build.examples import read_examples
        from serving.runtimes.base import open_session
        from serving.runtimes.pipeline import Pipeline

        pipeline = Pipeline(manifest, folder)
        runtime = {"onnx": "onnxruntime", "torch": "torch"}[manifest.format]
        session = open_session(manifest, folder, runtime=runtime, threads=1)
        test = read_examples(data, "test", manifest.postprocess.labels)
        examples = test.at(spread(len(test), GOLDEN_ROWS))
        found = pipeline.postprocess({"logits": infer(pipeline, session, examples)})["probabilities"]
        return Answers(found, found.argmax(axis=1))

    def beside(self, variants: Sequence[Variant]) -> Mapping[str, Mapping[str, Any]]:
        """Of each variant, what was measured beside it and belongs into its evaluation, by key."""
        return {}

    def findings(self, variants: Sequence[Variant]) -> dict[str, Any]:
        """What the report holds beside the evaluations of the variants, by key."""
        return {}

    def parts(self, document: Mapping[str, Any]) -> list[Part]:
        """This kind's sections of the report, from its JSON form."""
        return []

    def notes(self, document: Mapping[str, Any]) -> list[str]:
        """Lines for the end of the report."""
        return []

    def step(
        self,
        name: str,
        function: StepFunction,
        parameters: Mapping[str, Any],
        needs: Mapping[str, Made],
        sources: Sequence[Path] = (),
        files: Mapping[str, Path] | None = None,
    ) -> Made:
        """Do a step, or find that it has been done (see `Cache.step`)."""
        made = self._cache.step(name, function, parameters=parameters, needs=needs, sources=sources, files=files)
        self.made[name] = made
        return made
