"""Training with the rounding of INT8 in it, so that the weights learn to bear it (Jacob et al., CVPR 2018).

What is rounded, and how, follows the static QDQ quantization that comes afterwards: weights symmetric, one scale for
each output of a product and one for an embedding; what goes into a product asymmetric in 8 bits, over the range seen.
Rounding has no gradient: it is passed on as if there were none (the straight-through estimator).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

#: Steps of a weight on each side of 0: all of INT8, or 7 bits where two products could overflow (`reduce_range`).
STEPS, REDUCED_STEPS = 127, 64
_LEVELS = 255
#: How much of the range seen so far a batch leaves in place.
_KEPT = 0.98


class _RoundedWeight(nn.Module):
    """A weight as INT8 stores it: one scale for each index of `axis`, or one for all."""

    def __init__(self, axis: int | None, steps: int) -> None:
        super().__init__()
        self._axis, self._steps = axis, steps

    def forward(self, weight: Tensor) -> Tensor:
        others = [at for at in range(weight.dim()) if at != self._axis]
        scale = weight.detach().abs().amax(dim=others, keepdim=True).clamp(min=1e-12) / self._steps
        return _straight_through(weight, (weight / scale).round() * scale)


class _RoundedInput:
    """What goes into a product, rounded over a range that follows the batches; fixed when the module is not trained."""

    def __init__(self) -> None:
        self._low = self._high = 0.0
        self._seen = False

    def __call__(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor]:
        (values,) = given
        if module.training:
            low, high = min(0.0, float(values.detach().min())), max(0.0, float(values.detach().max()))
            kept = _KEPT if self._seen else 0.0
            self._low, self._high = kept * self._low + (1 - kept) * low, kept * self._high + (1 - kept) * high
            self._seen = True
        if not self._seen:
            return (values,)
        scale = max(self._high - self._low, 1e-12) / _LEVELS
        zero = round(-self._low / scale)
        rounded = ((values / scale).round() + zero).clamp(0, _LEVELS)
        return (_straight_through(values, (rounded - zero) * scale),)


def _straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    return value + (rounded - value).detach()


@contextmanager
def rounding(module: nn.Module, steps: int) -> Iterator[None]:
    """Round all weights of products and embeddings, and all inputs of products; at the end the weights stay rounded.

    Args:
        module: changed in place.
        steps: `STEPS` or `REDUCED_STEPS`.
    """
    products = [part for part in module.modules() if isinstance(part, nn.Linear)]
    embeddings = [part for part in module.modules() if isinstance(part, nn.Embedding)]
    hooks = [part.register_forward_pre_hook(_RoundedInput()) for part in products]
    rounded: list[tuple[nn.Module, int | None]] = [(part, 0) for part in products]
    rounded += [(part, None) for part in embeddings]
    for layer, axis in rounded:
        parametrize.register_parametrization(layer, "weight", _RoundedWeight(axis, steps))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, _ in rounded:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
