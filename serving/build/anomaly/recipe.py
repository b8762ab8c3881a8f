"""The recipe of an anomaly detector over rows of numbers: an autoencoder, its INT8, and a tiny network taught by it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from serving.build.recipe import Count, QuantizeRecipe, Recipe, RequirementsRecipe, Section, Share


class TrainRecipe(Section):
    """One training run: Adam with a one-cycle schedule over mini-batches of rows."""

    epochs: Annotated[int, Field(ge=1, le=10_000)]
    batch: Annotated[int, Field(ge=1, le=65_536)] = 256
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3


class AutoencoderRecipe(Section):
    """The trusted model. It learns to rebuild normal rows; what it cannot rebuild is an anomaly.

    `hidden` are the widths of the encoder's layers, the last one the code; the decoder mirrors them. Rows are
    standardized on the train split's normal rows and cut to `clip` standard deviations inside the model.
    """

    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (256, 128, 4)
    clip: Annotated[float, Field(gt=0, le=1000)] = 10.0
    train: TrainRecipe


class StudentRecipe(Section):
    """One hidden layer, taught the teacher's score of every train row (squared error), never the labels.

    A control of the same size is trained from the same seeds on the labels alone (cross-entropy).
    """

    hidden: Count = 4
    train: TrainRecipe
    #: The first is served; the others tell how far two runs differ by chance.
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (1, 2, 3, 4, 5)


class AnomalyRequirements(RequirementsRecipe):
    """`average_precision_floor`: of the ranking by score on the test split."""

    average_precision_floor: Share = 0.0


class AnomalyRecipe(Recipe):
    """Rows: a gzipped CSV file with a header: `columns`, then `label` and `split`."""

    kind: Literal["anomaly"]
    columns: Annotated[tuple[str, ...], Field(min_length=1)]
    teacher: AutoencoderRecipe
    student: StudentRecipe
    quantize: QuantizeRecipe = QuantizeRecipe(operators=("MatMul", "Gemm"))
    #: Resamples of the test split for the intervals of average precision and ROC AUC.
    bootstrap_draws: Annotated[int, Field(ge=100, le=100_000)] = 1000
    requirements: AnomalyRequirements = AnomalyRequirements()
    #: Rows of the test split that go into the artifacts, to be asked again while they are served.
    golden_rows: Annotated[int, Field(ge=0, le=10_000)] = 128

    @model_validator(mode="after")
    def _two_labels(self) -> AnomalyRecipe:
        if len(self.labels) != 2:
            raise ValueError(f"labels: an anomaly detector has two, the normal one first, got {list(self.labels)}")
        return self
