"""The steps that everything about a text classifier is made of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from serving.build.cache import Made
from serving.build.cpu import cpu_info
from serving.build.evaluate import MEASURING, calibrate, evaluate
from serving.build.export import export_onnx
from serving.build.plan import Plan, Variant
from serving.build.snapshot import SOURCES, brought, snapshot
from serving.build.text.data import check_data
from serving.build.text.interface import GRAPH, TOKENIZER, text_interface
from serving.build.text.pretrained import adopt_tokenizer, finetune_teacher
from serving.build.text.quantize import quantize
from serving.build.text.recipe import TextRecipe
from serving.build.text.tokenizer import train_tokenizer
from serving.build.text.train import train_teacher
from serving.registry.manifest import Relation

_HERE = Path(__file__).parent
RUNTIMES = _HERE.parents[1] / "runtimes"
DATA = (_HERE / "data.py",)
NETWORKS = (
    *(RUNTIMES / name for name in ("modules.py", "attention.py", "minilm.py")),
    _HERE.parent / "training.py",
    *(_HERE / name for name in ("train.py", "data.py", "tokenizer.py")),
)


class Measured(NamedTuple):
    """The steps that fitted a model's temperature and evaluated it, with what they were given."""

    parameters: dict[str, Any]
    needs: dict[str, Made]
    calibration: Made
    evaluation: Made


class TextSteps(Plan[TextRecipe]):
    """Data, tokenizer, teacher; then, for any model of its kind: export, INT8, measurement, variant."""

    @property
    def base(self) -> dict[str, Made]:
        """What every step on texts needs."""
        return {"data": self.made["data"], "tokenizer": self.made["tokenizer"]}

    @property
    def common(self) -> dict[str, Any]:
        """Parameters of every step that trains on texts."""
        return {"labels": list(self.recipe.labels), "max_chars": self.recipe.tokenizer.max_chars}

    def checked_data(self) -> Made:
        file = {"file": self.folder / self.recipe.data.file}
        return self.step("data", check_data, {"labels": list(self.recipe.labels)}, {}, DATA, file)

    def tokenizer(self) -> Made:
        """Trained on the train split, or that of the pre-trained teacher."""
        recipe, given = self.recipe.tokenizer, self.recipe.pretrained
        if given is not None:
            parameters: dict[str, Any] = {"sha256": given.tokenizer_sha256, "max_tokens": recipe.max_tokens}
            return self.step(
                "tokenizer", adopt_tokenizer, parameters, {}, files={"file": self.folder / given.tokenizer}
            )
        parameters = {
            "labels": list(self.recipe.labels),
            "vocabulary": recipe.vocabulary,
            "max_tokens": recipe.max_tokens,
        }
        return self.step("tokenizer", train_tokenizer, parameters, {"data": self.made["data"]}, DATA)

    def teacher(self) -> Made:
        recipe = self.recipe
        parameters = {
            **self.common,
            "max_tokens": recipe.tokenizer.max_tokens,
            "seed": recipe.seed,
            "threads": recipe.threads,
        }
        if (given := recipe.pretrained) is not None:
            parameters["pretrained"] = given.model_dump(mode="json")
            files = {"weights": self.folder / given.weights}
            return self.step("teacher", finetune_teacher, parameters, self.base, NETWORKS, files)
        assert recipe.teacher is not None  # one of the two is given
        parameters["teacher"] = recipe.teacher.model_dump(mode="json")
        return self.step("teacher", train_teacher, parameters, self.base, NETWORKS)

    def export(self, name: str, module: Made, weights: str = "model.safetensors") -> Made:
        """ONNX of one of the weights that a step left."""
        return self.step(
            name,
            export_onnx,
            {"weights": weights, **GRAPH},
            {"module": module},
            (*NETWORKS[:3], *DATA),
        )

    def quantized(self, name: str, model: Made, changes: Mapping[str, Any] | None = None) -> Made:
        """INT8 of a step's `model.onnx`, as the recipe says but for the changes."""
        parameters = {
            **self.common,
            "max_tokens": self.recipe.tokenizer.max_tokens,
            "quantize": self.recipe.quantize.model_dump(mode="json") | dict(changes or {}),
            "cpu": cpu_info()["flags"],
        }
        sources = (_HERE / "train.py", *DATA, *(_HERE.parent / name for name in ("quantize.py", "cpu.py", "rows.py")))
        return self.step(name, quantize, parameters, {**self.base, "model": model}, sources)

    def measured(
        self, name: str, format: str, model: Made, judge: Variant | None, parent: Variant | None = None
    ) -> Measured:
        """Temperature (its parent's, where there is one) and evaluation, against the judge's answers."""
        parameters = {
            "labels": list(self.recipe.labels),
            "variant": name,
            "format": format,
            "interface": text_interface(self.recipe.labels, self.recipe.tokenizer).as_json(),
            "files": [TOKENIZER],
            "cpu": cpu_info(),
        }
        needs = {"data": self.made["data"], "files": self.made["tokenizer"], "model": model}
        calibration = parent.calibration if parent is not None else None
        if calibration is None:
            seen = {"teacher": judge.calibration} if judge is not None and judge.calibration is not None else {}
            calibration = self.step(f"{name}-temperature", calibrate, parameters, {**needs, **seen}, MEASURING)
        needs["calibration"] = calibration
        against = {"teacher": judge.evaluation} if judge is not None else {}
        evaluation = self.step(f"{name}-evaluation", evaluate, parameters, {**needs, **against}, MEASURING)
        return Measured(parameters, needs, calibration, evaluation)

    def variant(
        self,
        name: str,
        format: str,
        model: Made,
        judge: Variant | None,
        lineage: tuple[Relation, Mapping[str, str]],
        parent: Variant | None = None,
    ) -> Variant:
        """What will be registered: measured, with what it brings along for the monitor (its parent's, if one is given).

        Args:
            lineage: relation, and role -> parent.
        """
        tokenizer = self.made["tokenizer"]
        found = self.measured(name, format, model, judge, parent)
        if parent is None:
            parameters = {**found.parameters, "golden_rows": self.recipe.golden_rows}
            made = self.step(f"{name}-snapshot", snapshot, parameters, found.needs, SOURCES)
            files = {TOKENIZER: tokenizer.folder / TOKENIZER}
            files |= brought(made.folder)
        else:
            files = dict(parent.files)
        relation, parents = lineage
        return Variant(
            name,
            format,
            model,
            found.evaluation,
            text_interface(self.recipe.labels, self.recipe.tokenizer),
            relation,
            parents,
            found.calibration,
            files,
            lambda: self.about(relation, model, found.evaluation),
            self.made["damage"] if relation == "damaged" else None,
        )

    @abstractmethod
    def about(self, relation: Relation, model: Made, evaluation: Made) -> dict[str, Any]:
        """What a variant's manifest says of how it was made, and of what that gave by its own evaluation."""
