"""The recipe of a text classifier: a teacher trained here or elsewhere, a student, INT8 of both, a damaged student."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from serving.build.recipe import Count, Positive, QuantizeRecipe, Recipe, Section, Share
from serving.build.search.recipe import SearchRecipe


class TokenizerRecipe(Section):
    """A byte-pair vocabulary trained on the train split; lengths in tokens and characters.

    With a pre-trained teacher its own tokenizer is taken, and `vocabulary` is not given.
    """

    vocabulary: Annotated[int, Field(ge=50, le=200_000)] = 20_000
    max_tokens: Annotated[int, Field(ge=2, le=4096)] = 96
    max_chars: Annotated[int, Field(ge=1, le=100_000)] = 700
    buckets: tuple[Count, ...] = (16, 32, 64, 96)

    @model_validator(mode="after")
    def _last_bucket_holds_all(self) -> TokenizerRecipe:
        if list(self.buckets) != sorted(set(self.buckets)) or (self.buckets and self.buckets[-1] != self.max_tokens):
            raise ValueError(f"buckets must ascend and end with max_tokens ({self.max_tokens}), got {self.buckets}")
        return self


class TrainRecipe(Section):
    """One training run: AdamW with a one-cycle schedule."""

    epochs: Annotated[int, Field(ge=1, le=1000)]
    batch: Annotated[int, Field(ge=1, le=4096)] = 32
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.05
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    word_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    #: Batches of texts of about one length, which need less padding.
    by_length: bool = False


class TeacherRecipe(Section):
    """The transformer that is trusted."""

    width: Count = 192
    layers: Annotated[int, Field(ge=1, le=24)] = 2
    heads: Annotated[int, Field(ge=1, le=64)] = 4
    feedforward: Count = 384
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    train: TrainRecipe

    @model_validator(mode="after")
    def _heads_divide(self) -> TeacherRecipe:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width {self.width}")
        return self


class PretrainedRecipe(Section):
    """A teacher from elsewhere: its tokenizer as it is, its last layers and a new head trained here.

    `weights` is a safetensors file with the names of Hugging Face's `BertModel`, `tokenizer` a `tokenizer.json`; both
    are relative to the recipe and refused with another digest.
    """

    architecture: Literal["minilm"]
    weights: str
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    tokenizer: str
    tokenizer_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    source: str
    licence: str
    trained_layers: Annotated[int, Field(ge=0, le=6)] = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    train: TrainRecipe


class StudentRecipe(Section):
    """The small model. Loss: alpha · T² · KL(teacher_T ‖ student_T) + (1 - alpha) · cross-entropy
    (Hinton et al., 2015). A control with alpha 0 is trained from the same seeds."""

    width: Count = 16
    hidden: Count = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    train: TrainRecipe
    temperature: Positive = 2.0
    alpha: Share = 0.5
    #: The first is served; the others tell how far two runs differ by chance.
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (1, 2, 3)
    #: A further training run, with the rounding of INT8 in it, of the student that is served: quantization-aware
    #: distillation. Its control goes on by the labels alone.
    qad: TrainRecipe | None = None


class DamageRecipe(Section):
    """A variant damaged on purpose, to watch a bad release being caught."""

    target_disagreement: Annotated[float, Field(gt=0, lt=1)] = 0.35
    least_disagreement: Annotated[float, Field(gt=0, lt=1)] = 0.25
    seed: int = 13


class TextRecipe(Recipe):
    """Rows: gzipped JSON lines {text, label, split}."""

    kind: Literal["text"] = "text"
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    #: One of the two: trained from scratch, or from elsewhere.
    teacher: TeacherRecipe | None = None
    pretrained: PretrainedRecipe | None = None
    student: StudentRecipe
    quantize: QuantizeRecipe = QuantizeRecipe()
    search: SearchRecipe | None = None
    damage: DamageRecipe | None = None
    #: Measure what each choice is worth: the same without it.
    ablations: bool = False
    #: Rows of the test split that go into the artifacts, texts and all, to be asked again while they are served.
    golden_rows: Annotated[int, Field(ge=0, le=10_000)] = 128

    @model_validator(mode="after")
    def _one_teacher(self) -> TextRecipe:
        if (self.teacher is None) == (self.pretrained is None):
            raise ValueError("give either teacher (trained from scratch) or pretrained (trained elsewhere)")
        if self.pretrained is not None and "vocabulary" in self.tokenizer.model_fields_set:
            raise ValueError("tokenizer.vocabulary: the pre-trained teacher brings its own vocabulary")
        return self
