"""What a recipe may search over. Everything is chosen on the validation split and reported on test."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from serving.build.recipe import Section

Ranges = Literal["minmax", "entropy", "percentile-99.9", "percentile-99.99", "percentile-99.999"]
Format = Literal["dynamic-int8", "fp16", "torch", "torch-bf16", "torch-compile"]


class QuantizeSearch(Section):
    """Settings of static INT8, tried in every combination up to `candidates`."""

    ranges: Annotated[tuple[Ranges, ...], Field(min_length=1)] = ("minmax", "percentile-99.99", "entropy")
    per_channel: Annotated[tuple[bool, ...], Field(min_length=1)] = (True,)
    #: How many of the layers that suffer most from rounding stay in float.
    float_layers: Annotated[tuple[Annotated[int, Field(ge=0, le=64)], ...], Field(min_length=1)] = (0,)

    def settings(self) -> list[dict[str, Any]]:
        """Every combination: `name`, `float_layers`, and what it sets in a `QuantizeRecipe`."""
        found = []
        for ranges in self.ranges:
            method, _, percentile = ranges.partition("-")
            for per_channel in self.per_channel:
                for layers in self.float_layers:
                    name = ranges + ("" if per_channel else "-per-tensor") + (f"-float-{layers}" if layers else "")
                    found.append(
                        {
                            "name": name,
                            "float_layers": layers,
                            "quantize": {"ranges": method, "per_channel": per_channel}
                            | ({"percentile": float(percentile)} if percentile else {}),
                        }
                    )
        return found


class SearchRecipe(Section):
    """The search of a recipe.

    `candidates` bounds the settings: of more, the first and a random sample are tried. `prefer` decides between those
    that meet the requirements: `fidelity` takes the one nearest to the model it stands in for, `size` and `speed` the
    smallest or fastest of those as accurate as the most accurate up to one standard error. Speed is measured, so that
    `speed` may choose otherwise on another machine. `formats` are measured beside them, not registered.
    """

    candidates: Annotated[int, Field(ge=1, le=200)] = 12
    prefer: Literal["fidelity", "size", "speed"] = "fidelity"
    quantize: QuantizeSearch | None = None
    formats: tuple[Format, ...] = ()
