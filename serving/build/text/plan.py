"""The steps of a text classifier, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.build import metrics
from serving.build.cache import BuildError, Made
from serving.build.plan import Part, Variant
from serving.build.quantize import reduces_range
from serving.build.search.run import Subject, search
from serving.build.text import ablations, report
from serving.build.text.damage import damage
from serving.build.text.data import ROWS, read_split
from serving.build.text.distill import train_students
from serving.build.text.interface import TOKENIZER, text_interface
from serving.build.text.qad import compared, train_rounded
from serving.build.text.recipe import StudentRecipe
from serving.build.text.reference import train_reference
from serving.build.text.steps import DATA, NETWORKS, RUNTIMES, TextSteps
from serving.build.text.students import search_students
from serving.registry.manifest import Relation

_QAT = Path(__file__).parents[1] / "qat.py"
#: variant -> (relation, {role: parent})
_LINEAGE: dict[str, tuple[Relation, dict[str, str]]] = {
    "teacher": ("root", {}),
    "int8": ("quantized", {"source": "teacher"}),
    "distilled": ("distilled", {"teacher": "teacher"}),
    "distilled-int8": ("quantized", {"source": "distilled", "teacher": "teacher"}),
    "distilled-torch": ("distilled", {"teacher": "teacher"}),
    # Not its `source`: those weights were trained on, and its ranges are calibrated for what came of them.
    "distilled-qad": ("qad", {"start": "distilled", "teacher": "teacher"}),
    "broken": ("damaged", {"source": "distilled"}),
}


class TextPlan(TextSteps):
    """Teacher and INT8, student and INT8, a TF-IDF yardstick, and a damaged student."""

    splits = (
        "weights come from train, INT8 ranges and temperatures from calibration, the strength of the damage from "
        "validation"
    )
    _student: StudentRecipe
    _student_search: dict[str, Any] | None = None

    def run(self) -> list[Variant]:
        recipe = self.recipe
        self.checked_data()
        self.tokenizer()
        teacher = self.teacher()
        teacher_onnx = self.export("teacher-onnx", teacher)
        relation: Relation = "finetuned" if recipe.pretrained is not None else "root"
        judge = self.variant("teacher", "onnx", teacher_onnx, None, (relation, {}))
        variants = [judge, self._variant("int8", self._int8(teacher, teacher_onnx), judge)]

        self._student = recipe.student
        if recipe.search is not None and recipe.search.students is not None:
            self._student, self._student_search = search_students(self, recipe.search, teacher, teacher_onnx)
        taught = {**self.common, "student": self._student.model_dump(mode="json"), "threads": recipe.threads}
        needs = {**self.base, "teacher": teacher}
        student = self.step("student", train_students, taught, needs, (*NETWORKS, RUNTIMES / "torch.py"))
        distilled = self._variant("distilled", self.export("student-onnx", student), judge)
        small = self.quantized("student-int8-onnx", distilled.model)
        variants += [distilled, self._variant("distilled-int8", small, judge)]
        variants.append(self._variant("distilled-torch", student, judge, format="torch"))
        if recipe.student.qad is not None:
            variants.append(self._qad(taught, {**needs, "student": student}, judge))
        if recipe.ablations:
            ablations.make(self, student, teacher_onnx, variants[1].model, judge)
        labels = list(recipe.labels)
        self.step("reference", train_reference, {"labels": labels, "min_df": 2}, {"data": self.made["data"]}, DATA)
        if recipe.damage is not None:
            parameters = {**self.common, "damage": recipe.damage.model_dump(mode="json"), "threads": recipe.threads}
            damaged = self.step(
                "damage", damage, parameters, {**needs, "student": student}, (*NETWORKS, RUNTIMES / "torch.py")
            )
            # Nobody recalibrated it: it is served with the temperature of its parent.
            # What it brings along is its parent's too: nobody knows yet what it answers.
            broken = self.export("broken-onnx", damaged)
            variants.append(self._variant("broken", broken, judge, parent=distilled))
        return variants

    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = self.made["data"].read("data.json")
        if (given := self.recipe.pretrained) is not None:
            named = {"architecture", "weights_sha256", "tokenizer_sha256", "source", "licence"}
            found["pretrained"] = given.model_dump(mode="json", include=named)
        return found

    def beside(self, variants: Sequence[Variant]) -> Mapping[str, Mapping[str, Any]]:
        if not self.recipe.ablations:
            return {}
        return ablations.by_variant(ablations.compared(self, variants[1].model, self._truth()))

    def findings(self, variants: Sequence[Variant]) -> dict[str, Any]:
        made, truth = self.made, self._truth()
        return {
            "reference": made["reference"].read("reference.json"),
            "against_reference": self._against_reference(variants, truth),
            "students": made["student"].read("students.json"),
            "divergence": {
                variant.name: self._divergence(variant.evaluation)
                for variant in variants[1:]
                if variant.relation != "damaged"
            },
            "student_search": self._student_search,
            "teacher": made["teacher"].read("history.json"),
            "qad": compared(made, truth) if "qad" in made else None,
            "ablations": ablations.compared(self, variants[1].model, truth) if self.recipe.ablations else None,
            "damage": made["damage"].read("damage.json") if "damage" in made else None,
        }

    def parts(self, document: Mapping[str, Any]) -> list[Part]:
        return report.parts(document)

    def notes(self, document: Mapping[str, Any]) -> list[str]:
        return report.notes(document)

    # ------------------------------------------------------------ helpers

    def _variant(
        self, name: str, model: Made, judge: Variant, *, format: str = "onnx", parent: Variant | None = None
    ) -> Variant:
        return self.variant(name, format, model, judge, _LINEAGE[name], parent)

    def _int8(self, module: Made, source: Made) -> Made:
        """The teacher's INT8: as the recipe says, or what its search takes."""
        if self.recipe.search is None:
            return self.quantized("int8-onnx", source)
        subject = Subject(
            "int8",
            source,
            module,
            text_interface(self.recipe.labels, self.recipe.tokenizer),
            {TOKENIZER: self.made["tokenizer"].folder / TOKENIZER},
            lambda name, changes: self.quantized(name, source, changes),
            self.recipe.quantize.model_dump(mode="json"),
        )
        made, self.searched = search(self, self.recipe.search, subject)
        return made

    def _qad(self, taught: Mapping[str, Any], needs: Mapping[str, Made], judge: Variant) -> Variant:
        """The student trained on with rounding, in INT8; beside it, only measured, the control of that."""
        quantize = self.recipe.quantize.model_dump(mode="json")
        parameters = {**taught, "reduce_range": reduces_range(quantize)}
        made = self.step("qad", train_rounded, parameters, needs, (*NETWORKS, _QAT, RUNTIMES / "torch.py"))
        control = self.quantized("qad-control-int8-onnx", self.export("qad-control-onnx", made, "control.safetensors"))
        self.measured("qad-control", "onnx", control, judge)
        return self._variant("distilled-qad", self.quantized("qad-int8-onnx", self.export("qad-onnx", made)), judge)

    def about(self, relation: Relation, model: Made, evaluation: Made) -> dict[str, Any]:
        if relation == "quantized":
            return {"quantization": model.read("quantization.json")}
        if relation == "qad":
            trained = self.made["qad"].read("qad.json")
            control = self.made["qad-control-evaluation"].read("evaluation.json")
            rounded = {"quantization_aware": {"seed": trained["seed"], "reduce_range": trained["reduce_range"]}}
            distillation = self._distillation(evaluation, control["accuracy"], trained["seed"])
            return {"quantization": model.read("quantization.json"), "distillation": distillation | rounded}
        if relation == "distilled":
            control = self.made["student"].read("students.json")["runs"][1]
            return {"distillation": self._distillation(evaluation, control["accuracy"], control["seed"])}
        return {}

    def _distillation(self, evaluation: Made, control_accuracy: float, control_seed: int) -> dict[str, Any]:
        document = self.made["student"].read("students.json")
        return {
            "loss": "alpha * T^2 * KL(teacher || student) + (1 - alpha) * cross-entropy",
            "alpha": self._student.alpha,
            "temperature": self._student.temperature,
            "seed": document["runs"][0]["seed"],
            "parameters": document["parameters"],
            **self._divergence(evaluation),
            "control": {"loss": "cross-entropy", "accuracy": control_accuracy, "seed": control_seed},
        }

    def _divergence(self, evaluation: Made) -> dict[str, Any]:
        """How far a variant's answers are from the teacher's: mean KL(teacher ‖ variant) in nats, at temperature 1."""
        teacher, ours = (np.load(made.folder / "logits.npy") for made in (self.made["teacher-evaluation"], evaluation))
        split = evaluation.read("evaluation.json")["split"]
        return {"split": split, "rows": len(ours), "mean_kl": metrics.mean_kl(teacher, ours)}

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

    def _truth(self) -> np.ndarray:
        return read_split(self.made["data"].folder / ROWS, "test", self.recipe.labels).classes

    def _against_reference(self, variants: Sequence[Variant], truth: np.ndarray) -> dict[str, Any]:
        """For each variant: rows that only it, and only the reference, gets right, and the exact sign test."""
        answers = np.load(self.made["reference"].folder / "answers.npy")
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
