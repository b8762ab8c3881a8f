"""The steps of an anomaly detector, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.build.anomaly import report
from serving.build.anomaly.evaluate import compare_students, evaluate_detector
from serving.build.anomaly.quantize import quantize
from serving.build.anomaly.recipe import AnomalyRecipe
from serving.build.anomaly.stored import check_stored
from serving.build.anomaly.train import train_autoencoder, train_students
from serving.build.cache import Made
from serving.build.cpu import cpu_info
from serving.build.evaluate import MEASURING, calibrate
from serving.build.export import export_onnx
from serving.build.interface import Interface
from serving.build.plan import Part, Plan, Variant
from serving.build.snapshot import SOURCES, brought, snapshot
from serving.registry.manifest import Postprocess, Signature, TensorSpec

_HERE = Path(__file__).parent
_BUILD = _HERE.parent
_RUNTIMES = _BUILD.parent / "runtimes"
_DATA = (_HERE / "data.py", _BUILD / "text" / "data.py")
_NETWORKS = (_RUNTIMES / "modules.py", _RUNTIMES / "detectors.py", _BUILD / "training.py", *_DATA)
_MEASURING = (*MEASURING, _HERE / "ranking.py")

_LINEAGE: dict[str, tuple[Any, dict[str, str]]] = {
    "teacher": ("root", {}),
    "int8": ("quantized", {"source": "teacher"}),
    "distilled": ("distilled", {"teacher": "teacher"}),
    "control": ("root", {}),
}


class AnomalyPlan(Plan[AnomalyRecipe]):
    """An autoencoder and its INT8; a tiny student of its score, and the control that saw only labels."""

    splits = (
        "weights come from train, INT8 ranges and the step from score to probability from calibration; validation is "
        "for choosing settings by hand"
    )

    temperatures = (
        "The step from score to probability is a part of each model and was fitted on the calibration split as well: "
        "this is not all that calibration does, but what a temperature adds, fitted on the same rows"
    )

    def run(self) -> list[Variant]:
        recipe = self.recipe
        data = self.step(
            "data",
            check_stored,
            {"labels": list(recipe.labels), "columns": list(recipe.columns)},
            {},
            _DATA,
            {"file": self.folder / recipe.data.file},
        )
        teacher = self.step(
            "teacher",
            train_autoencoder,
            {"teacher": recipe.teacher.model_dump(mode="json"), "seed": recipe.seed, "threads": recipe.threads},
            {"data": data},
            _NETWORKS,
        )
        teacher_onnx = self._export("teacher-onnx", teacher, "model.safetensors")
        variants = [self._variant("teacher", teacher_onnx, None)]
        judge = variants[0]
        int8 = self.step(
            "int8-onnx",
            quantize,
            {"quantize": recipe.quantize.model_dump(mode="json"), "cpu": cpu_info()["flags"]},
            {"data": data, "model": teacher_onnx},
            (*(_BUILD / name for name in ("quantize.py", "cpu.py", "rows.py")), *_DATA),
        )
        variants.append(self._variant("int8", int8, judge, lambda: {"quantization": int8.read("quantization.json")}))
        students = self.step(
            "student",
            train_students,
            {
                "student": recipe.student.model_dump(mode="json"),
                "clip": recipe.teacher.clip,
                "threads": recipe.threads,
            },
            {"data": data, "teacher": teacher},
            _NETWORKS,
        )
        compared = self.step(
            "comparison",
            compare_students,
            {"draws": recipe.bootstrap_draws, "seed": recipe.seed},
            {"data": data, "students": students, "teacher": judge.evaluation},
            (_HERE / "ranking.py", *_DATA),
        )
        student = self._export("student-onnx", students, "model.safetensors")
        variants.append(
            self._variant("distilled", student, judge, lambda: {"distillation": self._distillation(students, compared)})
        )
        control = self._export("control-onnx", students, "control.safetensors")
        variants.append(self._variant("control", control, judge))
        return variants

    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = self.made["data"].read("data.json")
        return found

    def findings(self, variants: Sequence[Variant]) -> dict[str, Any]:
        return {
            "teacher": self.made["teacher"].read("history.json"),
            "students": self.made["student"].read("students.json"),
            "comparison": self.made["comparison"].read("comparison.json"),
        }

    def parts(self, document: Mapping[str, Any]) -> list[Part]:
        return report.parts(document)

    def notes(self, document: Mapping[str, Any]) -> list[str]:
        return report.notes(document)

    # ------------------------------------------------------------ helpers

    def _export(self, name: str, module: Made, weights: str) -> Made:
        parameters = {
            "weights": weights,
            "example": [[0.0] * len(self.recipe.columns)] * 2,
            "inputs": ["features"],
            "outputs": ["logits"],
            "free": {"features": {"0": "batch"}, "logits": {"0": "batch"}},
        }
        return self.step(name, export_onnx, parameters, {"module": module}, _NETWORKS)

    def _variant(
        self, name: str, model: Made, judge: Variant | None, about: Callable[[], Mapping[str, Any]] = dict
    ) -> Variant:
        recipe = self.recipe
        interface = detector_interface(recipe.labels, len(recipe.columns))
        parameters: dict[str, Any] = {
            "labels": list(recipe.labels),
            "variant": name,
            "format": "onnx",
            "interface": interface.as_json(),
            "files": [],
            "cpu": cpu_info(),
        }
        needs = {"data": self.made["data"], "model": model}
        seen = {"teacher": judge.calibration} if judge is not None and judge.calibration is not None else {}
        calibration = self.step(f"{name}-temperature", calibrate, parameters, {**needs, **seen}, _MEASURING)
        needs["calibration"] = calibration
        seen_before = {**parameters, "golden_rows": recipe.golden_rows}
        files = brought(self.step(f"{name}-snapshot", snapshot, seen_before, needs, SOURCES).folder)
        if judge is not None:
            needs["teacher"] = judge.evaluation
        evaluation = self.step(
            f"{name}-evaluation",
            evaluate_detector,
            {**parameters, "draws": recipe.bootstrap_draws, "seed": recipe.seed},
            needs,
            _MEASURING,
        )
        relation, parents = _LINEAGE[name]
        return Variant(name, "onnx", model, evaluation, interface, relation, parents, calibration, files, about=about)

    def _distillation(self, students: Made, compared: Made) -> dict[str, Any]:
        document, comparison = students.read("students.json"), compared.read("comparison.json")
        served, control = comparison["runs"][:2]
        return {
            "loss": "mean squared error to the teacher's standardized score",
            "seed": served["seed"],
            "parameters": document["parameters"],
            "split": "test",
            "average_precision": served["average_precision"],
            "control": {
                "loss": "cross-entropy",
                "average_precision": control["average_precision"],
                "seed": control["seed"],
            },
        }


def detector_interface(labels: Sequence[str], columns: int) -> Interface:
    """`features` FP32 [n, columns] in, `probabilities` FP32 [n, 2] and `label` BYTES [n] out."""
    return Interface(
        signature=Signature(
            inputs=(TensorSpec("features", "FP32", (-1, columns)),),
            outputs=(TensorSpec("probabilities", "FP32", (-1, 2)), TensorSpec("label", "BYTES", (-1,))),
        ),
        session=Signature(
            inputs=(TensorSpec("features", "FP32", (-1, columns)),), outputs=(TensorSpec("logits", "FP32", (-1, 2)),)
        ),
        postprocess=Postprocess(task="classification", logits="logits", labels=tuple(labels)),
    )
