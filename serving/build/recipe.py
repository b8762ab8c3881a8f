"""The part of a build recipe that every kind shares: frozen, typed, unknown keys refused, errors carry their path.

What else a recipe holds, its `kind` says: see `serving.build.kinds`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from serving import yaml12
from serving.errors import ConfigError
from serving.governance.settings import CardConfig

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]

R = TypeVar("R", bound="Recipe")


class Section(BaseModel):
    """Base of every section. Numbers are finite: a limit that is not would be none, and JSON cannot hold it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataRecipe(Section):
    """The rows, in the file format of the recipe's kind; `file` is relative to the recipe."""

    file: str
    source: str
    licence: str
    pii: str


class QuantizeRecipe(Section):
    """Static QDQ quantization to INT8. `auto` reduces the range of weights where the CPU lacks VNNI."""

    ranges: Literal["minmax", "entropy", "percentile"] = "minmax"
    rows: Count = 256
    per_channel: bool = True
    #: Share of the values that `percentile` keeps within the range, in percent.
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.999
    reduce_range: bool | Literal["auto"] = "auto"
    operators: tuple[str, ...] = ("MatMul", "Gemm", "Conv", "Gather")


class RequirementsRecipe(Section):
    """What a variant must reach on the test split to be registered (one damaged on purpose aside).

    `policy` is a built-in policy or a file relative to the recipe; its approvals are given later.
    """

    accuracy_floor: Share = 0.0
    disagreement_ceiling: Share = 1.0
    policy: str | None = None
    #: Lowest accuracy on a slice of the test rows (of at least 20 rows).
    slice_floor: Share | None = None
    #: 99th percentile of the session's time for one row with one thread; it depends on the machine.
    p99_ms_ceiling: Positive | None = None
    #: Resident memory that loading and running the model adds to a process.
    memory_mb_ceiling: Positive | None = None


class Recipe(Section):
    """What every recipe says, whatever its kind."""

    apiVersion: Literal["canarium/recipe/v1"]
    kind: str = "text"
    model: str
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    seed: int = 7
    threads: Annotated[int, Field(ge=1, le=64)] = 2
    data: DataRecipe
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


def read_document(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        document = yaml12.load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected a mapping with apiVersion, model, data, …, got {type(document).__name__}")
    return document


def parse(path: Path, document: dict[str, Any], schema: type[R]) -> R:
    """A checked recipe.

    Raises:
        ConfigError: one line a fault, each starting with file and path.
    """
    try:
        return schema.model_validate(document)
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
