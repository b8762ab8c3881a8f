"""The recipe of a model that is imported as it is: no training; its smaller siblings are made here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from serving.build.recipe import Count, QuantizeRecipe, Recipe, Section


class SourceRecipe(Section):
    """The ONNX file, relative to the recipe, and where it comes from. It is refused unless its SHA-256 is this."""

    file: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    origin: str
    licence: str


class TensorRecipe(Section):
    """A tensor of the graph. The first -1 is the batch; no -1: one value for all rows."""

    name: str
    datatype: Literal["FP32", "FP64", "INT32", "INT64"]
    shape: tuple[Annotated[int, Field(ge=-1)], ...]


class StreamRecipe(Section):
    """How sound becomes the model's inputs, window by window; output `score` is the probability of the second label.

    A window is the last `context` samples of the one before it and `window` new ones. `states` maps an output to the
    input that gets it with the next window, zero at first; `constants` are inputs that never change.
    """

    input: str
    window: Count
    context: Annotated[int, Field(ge=0, le=100_000)] = 0
    states: dict[str, str] = Field(default_factory=dict)
    constants: dict[str, int | float] = Field(default_factory=dict)
    score: str
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5


class ImportedRecipe(Recipe):
    """Rows: an .npz file, for each of the splits calibration and test `SPLIT-sound` uint8 [clips, samples] (mu-law) and
    `SPLIT-classes` uint8 [clips, windows]."""

    kind: Literal["imported"]
    source: SourceRecipe
    inputs: Annotated[tuple[TensorRecipe, ...], Field(min_length=1)]
    outputs: Annotated[tuple[TensorRecipe, ...], Field(min_length=1)]
    stream: StreamRecipe
    quantize: QuantizeRecipe = QuantizeRecipe(operators=("Conv",))

    @model_validator(mode="after")
    def _stream_names_tensors(self) -> ImportedRecipe:
        inputs, outputs = {spec.name for spec in self.inputs}, {spec.name for spec in self.outputs}
        stream = self.stream
        fed = {stream.input, *stream.states.values(), *stream.constants}
        if fed != inputs:
            raise ValueError(
                f"stream: input, states and constants must feed exactly the inputs ({', '.join(sorted(inputs))}), "
                f"they feed {', '.join(sorted(fed))}"
            )
        if unknown := ({stream.score} | set(stream.states)) - outputs:
            raise ValueError(f"stream: {', '.join(sorted(unknown))} is not among the outputs")
        if len(self.labels) != 2:
            raise ValueError(f"labels: a detector has two, got {list(self.labels)}")
        return self
