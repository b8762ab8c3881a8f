"""The build recipe: frozen, typed, unknown keys refused, errors carry their path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from serving.config import CardConfig
from serving.errors import ConfigError

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataRecipe(_Section):
    """The rows: gzipped JSON lines {text, label, split}; `file` is relative to the recipe."""

    file: str
    source: str
    licence: str
    pii: str


class TokenizerRecipe(_Section):
    """A byte-pair vocabulary trained on the train split; lengths in tokens and characters."""

    vocabulary: Annotated[int, Field(ge=50, le=200_000)] = 20_000
    max_tokens: Annotated[int, Field(ge=2, le=4096)] = 96
    max_chars: Annotated[int, Field(ge=1, le=100_000)] = 700
    buckets: tuple[Count, ...] = (16, 32, 64, 96)

    @model_validator(mode="after")
    def _last_bucket_holds_all(self) -> TokenizerRecipe:
        if list(self.buckets) != sorted(set(self.buckets)) or (self.buckets and self.buckets[-1] != self.max_tokens):
            raise ValueError(f"buckets must ascend and end with max_tokens ({self.max_tokens}), got {self.buckets}")
        return self


class TrainRecipe(_Section):
    """One training run: AdamW with a one-cycle schedule."""

    epochs: Annotated[int, Field(ge=1, le=1000)]
    batch: Annotated[int, Field(ge=1, le=4096)] = 32
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.05
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    word_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class TeacherRecipe(_Section):
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


class StudentRecipe(_Section):
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


class QuantizeRecipe(_Section):
    """Static QDQ quantization to INT8. `auto` reduces the range of weights where the CPU lacks VNNI."""

    ranges: Literal["minmax", "entropy", "percentile"] = "minmax"
    rows: Count = 256
    per_channel: bool = True
    reduce_range: bool | Literal["auto"] = "auto"
    operators: tuple[str, ...] = ("MatMul", "Gemm", "Conv", "Gather")


class DamageRecipe(_Section):
    """A variant damaged on purpose, to watch a bad release being caught."""

    target_disagreement: Annotated[float, Field(gt=0, lt=1)] = 0.35
    least_disagreement: Annotated[float, Field(gt=0, lt=1)] = 0.25
    seed: int = 13


class RequirementsRecipe(_Section):
    """What a variant must reach on the test split to be registered (the damaged one aside).

    `policy` is a built-in policy or a file relative to the recipe; its approvals are given later.
    """

    accuracy_floor: Share = 0.0
    disagreement_ceiling: Share = 1.0
    policy: str | None = None


class Recipe(_Section):
    """A whole build: teacher, its INT8, a student, its INT8, and a damaged one."""

    apiVersion: Literal["canarium/recipe/v1"]
    model: str
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    seed: int = 7
    threads: Annotated[int, Field(ge=1, le=64)] = 2
    data: DataRecipe
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    teacher: TeacherRecipe
    student: StudentRecipe
    quantize: QuantizeRecipe = QuantizeRecipe()
    damage: DamageRecipe | None = None
    requirements: RequirementsRecipe = RequirementsRecipe()
    #: What people say of the variants, for their cards.
    card: CardConfig = CardConfig()

    @field_validator("model")
    @classmethod
    def _usable_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(f"{value!r}: use lower-case letters, digits and '-', at most 40")
        return value

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"each label may occur once, got {list(value)}")
        return value


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        ConfigError: the file cannot be read or used; one line a fault, each starting with file and path.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected a mapping with apiVersion, model, data, …, got {type(document).__name__}")
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {_fault(item)}" for item in error.errors())) from None


def _fault(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    given = item.get("input")
    if item["type"] == "extra_forbidden":
        what = "unknown key"
    elif item["type"] == "missing":
        what = "is required"
    elif item["type"] == "value_error":
        what = str(item["ctx"]["error"])
    else:
        what = f"{given!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
    return f"{where}: {what}" if where else what
