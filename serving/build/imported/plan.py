"""The steps of a model that is imported as it is, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.build.cache import Made
from serving.build.cpu import cpu_info
from serving.build.evidence.report import footprint
from serving.build.evidence.steps import SOURCES
from serving.build.imported.evaluate import evaluate_stream, scores_of
from serving.build.imported.model import halve, import_model, quantize
from serving.build.imported.recipe import ImportedRecipe, TensorRecipe
from serving.build.imported.sound import check_clips, read_clips
from serving.build.interface import Interface
from serving.build.plan import GOLDEN_ROWS, Answers, Part, Plan, Variant
from serving.build.rows import spread
from serving.registry.manifest import Manifest, Postprocess, Signature, TensorSpec

_HERE = Path(__file__).parent
_BUILD = _HERE.parent
_SOURCES = (_HERE / "sound.py", _HERE / "stream.py")
_MEASURING = (*SOURCES, *_SOURCES, _HERE / "clustered.py")


class ImportedPlan(Plan[ImportedRecipe]):
    """The file as it came (`fp32`), its weights in FP16 (`fp16`), its convolutions in INT8 (`int8`)."""

    splits = "nothing is trained; INT8 ranges come from calibration"
    role = "calibrate, test"
    intervals = "Intervals and the bound of negative flips are over clips: see the notes."
    paired_test = "exact sign-flip test over clips"

    def run(self) -> list[Variant]:
        recipe = self.recipe
        stream, inputs = self._fed()
        data = self.step(
            "data",
            check_clips,
            {"labels": list(recipe.labels), "window": recipe.stream.window, "context": recipe.stream.context},
            {},
            files={"file": self.folder / recipe.data.file},
        )
        source = {"file": self.folder / recipe.source.file}
        fp32 = self.step("import", import_model, {"sha256": recipe.source.sha256}, {}, files=source)
        fp16 = self.step("fp16-onnx", halve, {}, {"model": fp32})
        int8 = self.step(
            "int8-onnx",
            quantize,
            {
                "quantize": recipe.quantize.model_dump(mode="json"),
                "stream": stream,
                "inputs": inputs,
                "cpu": cpu_info()["flags"],
            },
            {"data": data, "model": fp32},
            (*_SOURCES, *(_BUILD / name for name in ("quantize.py", "cpu.py", "rows.py"))),
        )
        variants = [self._variant("fp32", fp32, None, stream, inputs)]
        for name, model in (("fp16", fp16), ("int8", int8)):
            variants.append(self._variant(name, model, variants[0], stream, inputs))
        return variants

    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = self.made["data"].read("data.json")
        found["imported"] = self.recipe.source.model_dump(mode="json", exclude={"file"})
        return found

    def golden(self, manifest: Manifest, folder: Path, data: Path) -> Answers:
        """The golden rows are the windows of evenly spread test clips, each from its beginning with its state."""
        from serving.runtimes.base import open_session
        from serving.runtimes.pipeline import Pipeline

        windows = read_clips(data, "test").windows
        clips = windows[spread(len(windows), max(1, GOLDEN_ROWS // windows.shape[1]))]
        pipeline = Pipeline(manifest, folder)
        session = open_session(manifest, folder, runtime="onnxruntime", threads=1)
        stream, inputs = self._fed()
        scores = scores_of(pipeline, session, clips, {"stream": stream, "inputs": inputs}).ravel()
        return Answers(np.stack((1 - scores, scores), axis=1), pipeline.classes({stream["score"]: scores}))

    def parts(self, document: Mapping[str, Any]) -> list[Part]:
        lines = [
            "| variant | mean difference | 99 % of windows within | largest |",
            "|---|---|---|---|",
        ]
        for name, row in document["variants"].items():
            found = row["measured"]["score_difference"]
            lines.append(f"| {name} | {found['mean']:.5f} | {found['p99']:.5f} | {found['max']:.5f} |")
        first, *_ = document["variants"]
        measured = {name: row["measured"] for name, row in document["variants"].items()}
        return [
            Part("Scores", [f"Difference of the score of a window from that of {first}:", "", *lines]),
            Part("Memory and overflow", footprint(measured)),
        ]

    def notes(self, document: Mapping[str, Any]) -> list[str]:
        source, measured = self.recipe.source, next(iter(document["variants"].values()))["measured"]
        best = measured["bounds_if_perfect"]
        return [
            f"- Imported: {source.origin} ({source.licence}), SHA-256 {source.sha256}.",
            f"- {measured['clips']} clips, each from its beginning with the state given back. Windows of one clip are "
            "alike, so intervals and bounds are over clips (Gaffke's), with one more clip in which all went as badly, "
            "or as well, as it can. Where nothing differs they are Clopper and Pearson's, here "
            f"{best['teacher_disagreement_ci'][1]:.1%} for what differs and {best['negative_flip_upper']:.1%} for "
            "negative flips: only more clips bring them down.",
            "- INT8 leaves the recurrent layer in FP32: its weights lie in a branch of the graph.",
        ]

    # ------------------------------------------------------------ helpers

    def _fed(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """How clips are fed to the graph: `stream` and `inputs` of the recipe as JSON values."""
        recipe = self.recipe
        return recipe.stream.model_dump(mode="json"), [spec.model_dump(mode="json") for spec in recipe.inputs]

    def _variant(
        self,
        name: str,
        model: Made,
        judge: Variant | None,
        stream: Mapping[str, Any],
        inputs: Sequence[Mapping[str, Any]],
    ) -> Variant:
        interface = stream_interface(self.recipe)
        parameters: dict[str, Any] = {
            "labels": list(self.recipe.labels),
            "variant": name,
            "format": "onnx",
            "interface": interface.as_json(),
            "files": [],
            "stream": stream,
            "inputs": inputs,
            "cpu": cpu_info(),
        }
        needs = {"data": self.made["data"], "model": model}
        if judge is not None:
            needs["teacher"] = judge.evaluation
        evaluation = self.step(f"{name}-evaluation", evaluate_stream, parameters, needs, _MEASURING)
        if judge is None:
            return Variant(name, "onnx", model, evaluation, interface)
        return Variant(
            name,
            "onnx",
            model,
            evaluation,
            interface,
            "quantized",
            {"source": judge.name},
            about=lambda: {"quantization": model.read("quantization.json")},
        )


def stream_interface(recipe: ImportedRecipe) -> Interface:
    """The tensors as they are; one of them decides the class."""
    signature = Signature(inputs=_specs(recipe.inputs), outputs=_specs(recipe.outputs))
    post = Postprocess(
        task="detection", labels=recipe.labels, score=recipe.stream.score, threshold=recipe.stream.threshold
    )
    return Interface(signature=signature, session=signature, postprocess=post)


def _specs(tensors: Sequence[TensorRecipe]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec.name, spec.datatype, spec.shape) for spec in tensors)
