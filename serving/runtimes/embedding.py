"""How far from what a model was trained on an input is, in the model's own terms.

The embedding of a row is what goes into the last linear layer of its network. Its distance is the one of Mahalanobis to
the nearest class: sqrt(min over classes c of (f - m_c)' S^-1 (f - m_c)), with the means m_c and the common covariance S
of training rows. Source: Lee et al., "A simple unified framework for detecting out-of-distribution samples and
adversarial attacks" (NeurIPS 2018).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

#: Numbers that distances hold at a time, beside their inputs and one class of gaps.
_GAPS = 1 << 20
#: Nodes that multiply with weights; the last one before an output is its linear layer.
_LINEAR = ("MatMul", "Gemm", "MatMulInteger")
#: Nodes whose output is only their first input in another form.
_FORMS = ("DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear", "Cast", "Transpose", "Identity")


class Familiar(NamedTuple):
    """What the distance of an embedding is measured by.

    Attributes:
        means: of each class, float32 [C, d].
        whitening: W with W W' = S^-1, float32 [d, d].
        threshold: the distance that 1 % of held-out rows exceeded, > 0.
    """

    means: np.ndarray
    whitening: np.ndarray
    threshold: float

    def distances(self, embeddings: np.ndarray) -> np.ndarray:
        """Of each row [n, d], float64 [n], in units of the threshold.

        >>> familiar = Familiar(np.zeros((1, 2), np.float32), np.eye(2, dtype=np.float32), 2.5)
        >>> familiar.distances(np.array([[3.0, 4.0]])).tolist()
        [2.0]
        """
        white = self.whitening.astype(np.float64)
        rows, means = embeddings.astype(np.float64) @ white, self.means.astype(np.float64) @ white
        nearest = np.full(len(rows), np.inf)
        # All at once the gaps would be [n, C, d]: gigabytes where there are many classes.
        step = max(1, _GAPS // max(rows.size, 1))
        for at in range(0, len(means), step):
            gaps = rows[:, None] - means[at : at + step]
            np.minimum(nearest, np.einsum("ncd,ncd->nc", gaps, gaps).min(axis=1), out=nearest)
        return np.asarray(np.sqrt(nearest) / self.threshold)

    def write(self, path: Path) -> None:
        from safetensors.numpy import save_file

        parts = {"means": self.means, "whitening": self.whitening, "threshold": np.array([self.threshold])}
        save_file({name: np.ascontiguousarray(part) for name, part in parts.items()}, path)

    @classmethod
    def read(cls, path: Path) -> Familiar:
        """Raises `ValueError` if the file does not hold what `write` writes."""
        return cls.parse(path.read_bytes(), path.name)

    @classmethod
    def parse(cls, data: bytes, name: str) -> Familiar:
        """`read` of the bytes of a file."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            parts = load(data)
            means, whitening, threshold = parts["means"], parts["whitening"], float(parts["threshold"].item())
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{name}: not a reference of embeddings: {error}") from None
        if means.ndim != 2 or whitening.shape != (means.shape[1],) * 2 or not threshold > 0:
            raise ValueError(f"{name}: means {means.shape}, whitening {whitening.shape}, threshold {threshold}")
        return cls(means, whitening, threshold)


def pooled(values: np.ndarray) -> np.ndarray:
    """The embedding of each row, [n, d]: the mean over whatever lies between the rows and the last axis."""
    return values if values.ndim == 2 else values.reshape(len(values), -1, values.shape[-1]).mean(axis=1)


def tail_of(model: Any, output: str) -> str:
    """The tensor that goes into the last linear layer before an output of an ONNX model.

    Raises:
        ValueError: there is no such layer.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:  # in topological order, as the format demands
        if node.op_type == "Constant" or (node.op_type in _FORMS and node.input[0] in constants):
            constants.update(node.output)
    name = output
    while (maker := makers.get(name)) is not None:
        if maker.op_type in _LINEAR and maker.input[1] in constants:
            return _unformed(maker.input[0], makers)
        moving = [one for one in maker.input if one and one not in constants]
        if not moving:
            break
        name = moving[0]
    raise ValueError(f"no linear layer leads to {output!r}")


def _unformed(name: str, makers: dict[str, Any]) -> str:
    """The real numbers that an integer input of a layer was made of; what is no integer is left as it is."""
    maker = makers.get(name)
    return maker.input[0] if maker is not None and maker.op_type == "DynamicQuantizeLinear" else name
