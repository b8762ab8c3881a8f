"""The steps of a text classifier, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.build import metrics
from serving.build.cache import BuildError, Made
from serving.build.cpu import cpu_info
from serving.build.evaluate import MEASURING, calibrate, evaluate
from serving.build.export import export_onnx
from serving.build.plan import Part, Plan, Variant
from serving.build.search.run import Subject, search
from serving.build.snapshot import SOURCES, snapshot
from serving.build.text import report
from serving.build.text.damage import damage
from serving.build.text.data import ROWS, check_data, read_split
from serving.build.text.distill import train_students
from serving.build.text.interface import GRAPH, TOKENIZER, text_interface
from serving.build.text.pretrained import adopt_tokenizer, finetune_teacher
from serving.build.text.quantize import quantize
from serving.build.text.recipe import TextRecipe
from serving.build.text.reference import train_reference
from serving.build.text.tokenizer import train_tokenizer
from serving.build.text.train import train_teacher
from serving.registry.manifest import GOLDEN_FILE, REFERENCE_FILE

_HERE = Path(__file__).parent
_RUNTIMES = _HERE.parents[1] / "runtimes"
_DATA = (_HERE / "data.py",)
_NETWORKS = (
    *(_RUNTIMES / name for name in ("modules.py", "attention.py", "minilm.py")),
    _HERE.parent / "training.py",
    *(_HERE / name for name in ("train.py", "data.py", "tokenizer.py")),
)

#: variant -> (relation, {role: parent})
_LINEAGE: dict[str, tuple[Any, dict[str, str]]] = {
    "teacher": ("root", {}),
    "int8": ("quantized", {"source": "teacher"}),
    "distilled": ("distilled", {"teacher": "teacher"}),
    "distilled-int8": ("quantized", {"source": "distilled", "teacher": "teacher"}),
    "distilled-torch": ("distilled", {"teacher": "teacher"}),
    "broken": ("damaged", {"source": "distilled"}),
}


class TextPlan(Plan[TextRecipe]):
    """Teacher and INT8, student and INT8, a TF-IDF yardstick, and a damaged student."""

    splits = (
        "weights come from train, INT8 ranges and temperatures from calibration, the strength of the damage from "
        "validation"
    )

    def run(self) -> list[Variant]:
        recipe, labels = self.recipe, list(self.recipe.labels)
        common = {"labels": labels, "max_chars": recipe.tokenizer.max_chars}
        file = {"file": self.folder / recipe.data.file}
        data = self.step("data", check_data, {"labels": labels}, {}, _DATA, file)
        tokenizer = self._tokenizer(data)
        base = {"data": data, "tokenizer": tokenizer}
        teacher = self._teacher(base, common)
        teacher_onnx = self._export("teacher-onnx", teacher)
        variants = [self._variant("teacher", "onnx", teacher_onnx, None)]
        judge = variants[0]
        int8 = self._int8(teacher, teacher_onnx, base)
        variants.append(self._variant("int8", "onnx", int8, judge))

        student = self.step(
            "student",
            train_students,
            {**common, "student": recipe.student.model_dump(mode="json"), "threads": recipe.threads},
            {**base, "teacher": teacher},
            (*_NETWORKS, _RUNTIMES / "torch.py"),
        )
        student_onnx = self._export("student-onnx", student)
        variants.append(self._variant("distilled", "onnx", student_onnx, judge))
        small = self._quantize("student-int8-onnx", student_onnx, base)
        variants.append(self._variant("distilled-int8", "onnx", small, judge))
        variants.append(self._variant("distilled-torch", "torch", student, judge))
        self.step("reference", train_reference, {"labels": labels, "min_df": 2}, {"data": data}, _DATA)
        if recipe.damage is not None:
            damaged = self.step(
                "damage",
                damage,
                {**common, "damage": recipe.damage.model_dump(mode="json"), "threads": recipe.threads},
                {**base, "student": student, "teacher": teacher},
                _NETWORKS,
            )
            broken = self._export("broken-onnx", damaged)
            # Nobody recalibrated it: it is served with the temperature of its parent.
            # What it brings along is its parent's too: nobody knows yet what it answers.
            variants.append(self._variant("broken", "onnx", broken, judge, parent=variants[2]))
        return variants

    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = self.made["data"].read("data.json")
        if (given := self.recipe.pretrained) is not None:
            named = {"architecture", "weights_sha256", "tokenizer_sha256", "source", "licence"}
            found["pretrained"] = given.model_dump(mode="json", include=named)
        return found

    def findings(self, variants: Sequence[Variant]) -> dict[str, Any]:
        made = self.made
        return {
            "reference": made["reference"].read("reference.json"),
            "against_reference": self._against_reference(variants),
            "students": made["student"].read("students.json"),
            "teacher": made["teacher"].read("history.json"),
            "damage": made["damage"].read("damage.json") if "damage" in made else None,
        }

    def parts(self, document: Mapping[str, Any]) -> list[Part]:
        return report.parts(document)

    def notes(self, document: Mapping[str, Any]) -> list[str]:
        return report.notes(document)

    # ------------------------------------------------------------ helpers

    def _tokenizer(self, data: Made) -> Made:
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
        return self.step("tokenizer", train_tokenizer, parameters, {"data": data}, _DATA)

    def _teacher(self, base: Mapping[str, Made], common: Mapping[str, Any]) -> Made:
        recipe = self.recipe
        parameters = {
            **common,
            "max_tokens": recipe.tokenizer.max_tokens,
            "seed": recipe.seed,
            "threads": recipe.threads,
        }
        if (given := recipe.pretrained) is not None:
            parameters["pretrained"] = given.model_dump(mode="json")
            files = {"weights": self.folder / given.weights}
            return self.step("teacher", finetune_teacher, parameters, base, _NETWORKS, files)
        assert recipe.teacher is not None  # one of the two is given
        parameters["teacher"] = recipe.teacher.model_dump(mode="json")
        return self.step("teacher", train_teacher, parameters, base, _NETWORKS)

    def _export(self, name: str, module: Made) -> Made:
        return self.step(
            name,
            export_onnx,
            {"weights": "model.safetensors", **GRAPH},
            {"module": module},
            (*_NETWORKS[:3], *_DATA),
        )

    def _int8(self, module: Made, source: Made, base: dict[str, Made]) -> Made:
        """The teacher's INT8: as the recipe says, or what its search takes."""
        if self.recipe.search is None:
            return self._quantize("int8-onnx", source, base)
        subject = Subject(
            "int8",
            source,
            module,
            text_interface(self.recipe.labels, self.recipe.tokenizer),
            {TOKENIZER: base["tokenizer"].folder / TOKENIZER},
            lambda name, changes: self._quantize(name, source, base, changes),
            self.recipe.quantize.model_dump(mode="json"),
        )
        made, self.searched = search(self, self.recipe.search, subject)
        return made

    def _quantize(
        self, name: str, model: Made, base: dict[str, Made], changes: Mapping[str, Any] | None = None
    ) -> Made:
        parameters = {
            "labels": list(self.recipe.labels),
            "max_chars": self.recipe.tokenizer.max_chars,
            "buckets": list(self.recipe.tokenizer.buckets),
            "quantize": self.recipe.quantize.model_dump(mode="json") | dict(changes or {}),
            "cpu": cpu_info()["flags"],
        }
        sources = (_HERE / "train.py", _HERE.parent / "quantize.py", _HERE.parent / "cpu.py")
        return self.step(name, quantize, parameters, {**base, "model": model}, sources)

    def _variant(
        self, name: str, format: str, model: Made, judge: Variant | None, parent: Variant | None = None
    ) -> Variant:
        interface = text_interface(self.recipe.labels, self.recipe.tokenizer)
        tokenizer = self.made["tokenizer"]
        parameters = {
            "labels": list(self.recipe.labels),
            "variant": name,
            "format": format,
            "interface": interface.as_json(),
            "files": [TOKENIZER],
            "cpu": cpu_info(),
        }
        needs = {"data": self.made["data"], "files": tokenizer, "model": model}
        sources = (*MEASURING, *_DATA)
        calibration = parent.calibration if parent is not None else None
        if calibration is None:
            seen = {"teacher": judge.calibration} if judge is not None and judge.calibration is not None else {}
            calibration = self.step(f"{name}-temperature", calibrate, parameters, {**needs, **seen}, sources)
        needs["calibration"] = calibration
        if parent is None:
            rows = {"golden_rows": self.recipe.golden_rows}
            made = self.step(f"{name}-snapshot", snapshot, {**parameters, **rows}, needs, (*SOURCES, *_DATA))
            files = {TOKENIZER: tokenizer.folder / TOKENIZER}
            files |= {file: made.folder / file for file in (REFERENCE_FILE, GOLDEN_FILE)}
        else:
            files = dict(parent.files)
        if judge is not None:
            needs["teacher"] = judge.evaluation
        evaluation = self.step(f"{name}-evaluation", evaluate, parameters, needs, sources)
        relation, parents = _LINEAGE[name]
        if relation == "root" and self.recipe.pretrained is not None:
            relation = "finetuned"
        return Variant(
            name,
            format,
            model,
            evaluation,
            interface,
            relation,
            parents,
            calibration,
            files,
            lambda: self._about(relation, model),
            self.made["damage"] if relation == "damaged" else None,
        )

    def _about(self, relation: str, model: Made) -> dict[str, Any]:
        if relation == "quantized":
            return {"quantization": model.read("quantization.json")}
        return {"distillation": self._distillation()} if relation == "distilled" else {}

    def _distillation(self) -> dict[str, Any]:
        document = self.made["student"].read("students.json")
        served, control = document["runs"][:2]
        return {
            "loss": "alpha * T^2 * KL(teacher || student) + (1 - alpha) * cross-entropy",
            "alpha": self.recipe.student.alpha,
            "temperature": self.recipe.student.temperature,
            "seed": served["seed"],
            "parameters": document["parameters"],
            "mean_kl": served["train_kl"],
            "control": {"loss": "cross-entropy", "accuracy": control["accuracy"], "seed": control["seed"]},
        }

    def check(self, variants: Sequence[Variant]) -> None:
        recipe = self.recipe.damage
        if recipe is None:
            return
        disagreement = variants[-1].evaluation.read("evaluation.json")["teacher_disagreement"]
        if disagreement < recipe.least_disagreement:
            raise BuildError(
                f"the damaged variant differs from the teacher on {disagreement:.1%} of the test split, "
                f"under damage.least_disagreement {recipe.least_disagreement:.0%}; set another damage.seed"
            )

    def _against_reference(self, variants: Sequence[Variant]) -> dict[str, Any]:
        """For each variant: rows that only it, and only the reference, gets right, and the exact sign test."""
        answers = np.load(self.made["reference"].folder / "answers.npy")
        truth = read_split(self.made["data"].folder / ROWS, "test", self.recipe.labels).classes
        compared = {}
        for variant in variants:
            right = np.load(variant.evaluation.folder / "logits.npy").argmax(axis=1) == truth
            ours = int((right & (answers != truth)).sum())
            theirs = int((~right & (answers == truth)).sum())
            compared[variant.name] = {
                "only_this": ours,
                "only_reference": theirs,
                "p_value": metrics.sign_test(ours, theirs),
            }
        return compared
