"""What every section of a configuration file is built from."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict

Percent = Annotated[float, Strict(), Field(ge=0, le=100)]


class Section(BaseModel):
    """Frozen; unknown keys are refused, and numbers that are not finite: the JSON that processes pass on has none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
