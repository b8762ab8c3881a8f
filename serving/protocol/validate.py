"""Whether a request fits a model: names, datatypes, shapes, one batch size, finite numbers, known outputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serving.errors import RequestError, bad_request
from serving.protocol.tensors import all_finite, position
from serving.protocol.types import FLOATS, InferRequest, SignatureLike, Tensor, TensorHead, TensorSpecLike, shown


def validate(request: InferRequest, signature: SignatureLike, model: str, *, allow_nonfinite: bool = False) -> int:
    """Check a decoded request against a model's signature.

    Args:
        request: what the client sent.
        signature: what the model takes and gives; -1 is any size, the first one of a tensor the batch.
        model: the model's name, for messages.
        allow_nonfinite: let NaN and infinities in floating-point inputs pass.

    Returns:
        Rows: the common batch dimension of the inputs, 1 for a model without one.

    Raises:
        RequestError: bad request; the message names the input, what was expected and what came.
    """
    rows = check_heads(request.inputs, signature, model)
    if not allow_nonfinite:
        for given in request.inputs:
            if given.datatype in FLOATS and not all_finite(given.data):
                raise _nonfinite(given)
    if request.outputs is not None:
        known = [spec.name for spec in signature.outputs]
        for output in request.outputs:
            if output.name not in known:
                raise bad_request(
                    f"output {shown(output.name)} is unknown: model {shown(model)} gives {', '.join(known)}"
                )
    return rows


def check_heads(inputs: Sequence[Tensor] | Sequence[TensorHead], signature: SignatureLike, model: str) -> int:
    """Check all of a request's inputs but their elements, as `validate` does.

    Returns:
        Rows.
    """
    tensors = {tensor.name: tensor for tensor in inputs}
    rows, counted = 1, ""
    for spec in signature.inputs:
        tensor = tensors.pop(spec.name, None)
        if tensor is None:
            raise bad_request(f"input {shown(spec.name)} is missing: model {shown(model)} takes {_all(signature)}")
        if tensor.datatype != spec.datatype or not _fits(tensor.shape, spec.shape):
            raise bad_request(
                f"input {shown(spec.name)}: expected {_kind(spec)}, got {tensor.datatype} {list(tensor.shape)}"
            )
        if -1 in spec.shape:
            given = tensor.shape[tuple(spec.shape).index(-1)]
            if counted and given != rows:
                raise bad_request(
                    f"input {shown(spec.name)}: expected the same batch size as input {shown(counted)}, {rows}, "
                    f"got {given}"
                )
            rows, counted = given, spec.name
            if not rows:
                raise bad_request(
                    f"input {shown(spec.name)}: expected at least one row, got shape {list(tensor.shape)}"
                )
    if tensors:
        raise bad_request(
            f"input {shown(next(iter(tensors)))} is unknown: model {shown(model)} takes {_all(signature)}"
        )
    return rows


def select_outputs(
    request: InferRequest, outputs: Sequence[Tensor], labels: Sequence[str] = ()
) -> tuple[list[Tensor], frozenset[str]]:
    """The outputs that the client asked for, in its order, and the names of those to be sent as binary data.

    Args:
        outputs: all that the model gave.
        labels: class names by index, for `parameters.classification`.

    Raises:
        RequestError: bad request, when an output is unknown or cannot be given as classes.
    """
    if request.outputs is None:
        chosen = list(outputs)
        return chosen, frozenset(tensor.name for tensor in chosen) if request.binary_default else frozenset()
    named = {tensor.name: tensor for tensor in outputs}
    chosen, binary = [], []
    for wanted in request.outputs:
        tensor = named.get(wanted.name)
        if tensor is None:
            raise bad_request(f"output {shown(wanted.name)} is unknown, expected one of {', '.join(named)}")
        chosen.append(_classes(tensor, wanted.classification, labels) if wanted.classification else tensor)
        if wanted.binary:
            binary.append(wanted.name)
    return chosen, frozenset(binary)


def _fits(shape: tuple[int, ...], expected: Sequence[int]) -> bool:
    return len(shape) == len(expected) and all(
        want in (-1, dimension) for dimension, want in zip(shape, expected, strict=True)
    )


def _kind(spec: TensorSpecLike) -> str:
    return f"{spec.datatype} {list(spec.shape)}"


def _all(signature: SignatureLike) -> str:
    return ", ".join(f"{spec.name} {_kind(spec)}" for spec in signature.inputs)


def _nonfinite(tensor: Tensor) -> RequestError:
    at = int(np.argmin(np.isfinite(tensor.data)))
    value = tensor.data.ravel()[at]
    return bad_request(
        f"input {shown(tensor.name)}: expected finite numbers, got {value} at {position(at, tensor.shape)}"
    )


def _classes(tensor: Tensor, count: int, labels: Sequence[str]) -> Tensor:
    """Triton's classification extension: the `count` best of the last axis as `value:index[:label]`."""
    if tensor.datatype == "BYTES" or not tensor.shape:
        raise bad_request(
            f"output {shown(tensor.name)}: classification needs numbers, got {tensor.datatype} {list(tensor.shape)}"
        )
    order = np.argsort(-tensor.data.astype(np.float64), axis=-1, kind="stable")[..., :count]
    values = np.take_along_axis(tensor.data, order, axis=-1)
    texts = [
        f"{value:f}:{index}:{labels[index]}".encode() if index < len(labels) else f"{value:f}:{index}".encode()
        for value, index in zip(values.ravel().tolist(), order.ravel().tolist(), strict=True)
    ]
    return Tensor(tensor.name, "BYTES", order.shape, np.array(texts, dtype=object).reshape(order.shape))
