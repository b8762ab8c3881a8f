"""Tensors for `canarium infer`: read from JSON or a NumPy archive, fitted to a model's inputs, stepped through."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from serving.decoding import UNLOADABLE
from serving.errors import CanariumError

if TYPE_CHECKING:
    import numpy as np

Arrays = dict[str, "np.ndarray"]


class TensorError(CanariumError):
    """What was given cannot be sent; the message says why."""


class Given(NamedTuple):
    """An input of a model: name, element type (Open Inference Protocol) and shape, -1 for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


def inputs_of(metadata: Mapping[str, Any]) -> list[Given]:
    """The inputs in a model's metadata."""
    return [Given(spec["name"], spec["datatype"], tuple(spec["shape"])) for spec in metadata["inputs"]]


def read(text: str) -> Arrays | Any:
    """JSON, or what is in `@FILE`: JSON too, or arrays by name if it is an .npz file.

    Raises:
        TensorError: it is neither.
    """
    import numpy as np

    try:
        if text.startswith("@") and text.endswith(".npz"):
            with np.load(text[1:], allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        source = Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text
        return json.loads(source)
    except OSError as error:
        raise TensorError(f"{text[1:]}: {error.strerror or error}") from error
    except UNLOADABLE as error:
        raise TensorError(f"neither JSON nor @FILE.npz: {error}") from error


def fit(values: Any, wanted: list[Given], states: Mapping[str, str]) -> Arrays:
    """Arrays of the types that a model takes.

    Args:
        values: arrays by name, or one alone for a model with one input.
        wanted: the model's inputs.
        states: output -> the input it becomes; inputs that are missing among these begin as zeros of one row.

    Raises:
        TensorError: an input is missing or unknown, or does not become an array of its type.
    """
    import numpy as np

    from serving.runtimes.base import NUMPY_TYPES

    carried = set(states.values())
    named = values if isinstance(values, dict) else {_only(wanted, carried): values}
    known = {spec.name for spec in wanted}
    if unknown := sorted(({*named} | carried) - known):
        raise TensorError(f"no input {unknown[0]!r}: the model takes {', '.join(sorted(known))}")
    arrays: Arrays = {}
    for spec in wanted:
        if spec.datatype not in NUMPY_TYPES:
            raise TensorError(f"input {spec.name!r} takes {spec.datatype}, which is no number: leave out --tensors")
        if spec.name not in named:
            if spec.name not in carried:
                raise TensorError(f"input {spec.name!r} is missing: it takes {spec.datatype} {list(spec.shape)}")
            arrays[spec.name] = np.zeros([1 if size == -1 else size for size in spec.shape], NUMPY_TYPES[spec.datatype])
            continue
        try:
            array = np.asarray(named[spec.name], NUMPY_TYPES[spec.datatype])
        except (ValueError, TypeError, OverflowError) as error:
            raise TensorError(f"input {spec.name!r}: no array of {spec.datatype}: {error}") from error
        one_row = spec.shape[:1] == (-1,) and array.ndim == len(spec.shape) - 1
        arrays[spec.name] = array[None] if one_row else array
    return arrays


def steps(arrays: Arrays, wanted: list[Given]) -> Iterator[Arrays]:
    """The arrays as they are, or, of those with one axis more than the model takes, one after the other on that axis.

    Raises:
        TensorError: two of them have another number of steps.
    """
    ranks = {spec.name: len(spec.shape) for spec in wanted}
    long = {name: len(array) for name, array in arrays.items() if array.ndim == ranks[name] + 1}
    if len(set(long.values())) > 1:
        raise TensorError(f"inputs of another number of steps: {', '.join(f'{n} {c}' for n, c in long.items())}")
    for step in range(next(iter(long.values()), 1)):
        yield {name: array[step] if name in long else array for name, array in arrays.items()}


def encode(arrays: Arrays, wanted: list[Given]) -> list[dict[str, Any]]:
    """The protocol's JSON form."""
    return [
        {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": list(arrays[spec.name].shape),
            "data": arrays[spec.name].ravel().tolist(),
        }
        for spec in wanted
    ]


def carry(answer: Mapping[str, Any], states: Mapping[str, str], wanted: list[Given]) -> Arrays:
    """The inputs of the next step that this answer gives. Raises `TensorError`: it has no such output."""
    import numpy as np

    from serving.runtimes.base import NUMPY_TYPES

    outputs = {output["name"]: output for output in answer.get("outputs", [])}
    types = {spec.name: NUMPY_TYPES[spec.datatype] for spec in wanted if spec.datatype in NUMPY_TYPES}
    carried: Arrays = {}
    for output, name in states.items():
        if output not in outputs:
            raise TensorError(f"--state {output}={name}: the model gives {', '.join(outputs)}")
        carried[name] = np.array(outputs[output]["data"], types[name]).reshape(outputs[output]["shape"])
    return carried


def parse_states(pairs: tuple[str, ...]) -> dict[str, str]:
    """`OUTPUT=INPUT` pairs. Raises `TensorError`."""
    states = {}
    for pair in pairs:
        output, equals, name = pair.partition("=")
        if not (output and equals and name):
            raise TensorError(f"--state {pair}: expected OUTPUT=INPUT")
        states[output] = name
    return states


def _only(wanted: list[Given], carried: set[str]) -> str:
    free = [spec.name for spec in wanted if spec.name not in carried]
    if len(free) != 1:
        raise TensorError(f"the model takes {', '.join(free)}: give an object of arrays by name")
    return free[0]
