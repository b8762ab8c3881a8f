"""What every transformer over token ids is made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HIDDEN = -1e4  # added to the attention score of padding; -inf would make a row of padding NaN


class Attention(nn.Module):
    """Multi-head self-attention, written out so that it exports as plain MatMuls."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        size = width // self.heads
        q, k, v = self.query_key_value(x).reshape(rows, tokens, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) * size**-0.5 + bias
        mixed = torch.softmax(scores, dim=-1) @ v
        merged: Tensor = self.out(mixed.transpose(1, 2).reshape(rows, tokens, width))
        return merged


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x [n, T, d] over the positions where mask [n, T] is 1; zero if there are none."""
    total = (x * mask[:, :, None]).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1.0)
