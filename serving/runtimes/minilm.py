"""MiniLM (Wang et al., NeurIPS 2020), which is BERT's encoder (Devlin et al., NAACL 2019), with a classifier's head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from serving.runtimes.attention import HIDDEN, Attention, masked_mean

_EPSILON = 1e-12


class _Layer(nn.Module):
    """A post-norm encoder layer."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm_attention = nn.LayerNorm(width, _EPSILON)
        self.feedforward = nn.Sequential(nn.Linear(width, feedforward), nn.GELU(), nn.Linear(feedforward, width))
        self.norm_feedforward = nn.LayerNorm(width, _EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.norm_attention(x + self.dropout(self.attention(x, bias)))
        x = self.norm_feedforward(x + self.dropout(self.feedforward(x)))
        return x


class MiniLMClassifier(nn.Module):
    """Token ids int64 [n, T], padded with 0, to logits float32 [n, C]: encoder, masked mean, linear head."""

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        width: int = 384,
        layers: int = 6,
        heads: int = 12,
        feedforward: int = 1536,
        tokens: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.zeros(tokens, width))
        self.norm = nn.LayerNorm(width, _EPSILON)
        self.layers = nn.ModuleList(_Layer(width, heads, feedforward, dropout) for _ in range(layers))
        self.head = nn.Linear(width, classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        mask = (input_ids != 0).to(torch.float32)
        bias = ((1.0 - mask) * HIDDEN)[:, None, None, :]
        x = self.dropout(self.norm(self.embedding(input_ids) + self.position[: input_ids.shape[1]]))
        for layer in self.layers:
            x = layer(x, bias)
        logits: Tensor = self.head(self.dropout(masked_mean(x, mask)))
        return logits


def weights_of_bert(stored: dict[str, Tensor], layers: int, tokens: int) -> dict[str, Tensor]:
    """The weights of a BERT checkpoint by the names of this module, its head left out.

    Args:
        stored: tensors by the names that Hugging Face's `BertModel` gives them.
        tokens: positions that are kept. All texts are of one segment, whose embedding is added to the positions.

    Raises:
        KeyError: a tensor is missing.
    """
    taken = {name.removeprefix("bert."): value.float() for name, value in stored.items()}
    found = {
        "embedding.weight": taken["embeddings.word_embeddings.weight"],
        "position": taken["embeddings.position_embeddings.weight"][:tokens]
        + taken["embeddings.token_type_embeddings.weight"][0],
    }
    for kind in ("weight", "bias"):
        found[f"norm.{kind}"] = taken[f"embeddings.LayerNorm.{kind}"]
        for index in range(layers):
            theirs, ours = f"encoder.layer.{index}", f"layers.{index}"
            parts = [taken[f"{theirs}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            found[f"{ours}.attention.query_key_value.{kind}"] = torch.cat(parts)
            found[f"{ours}.attention.out.{kind}"] = taken[f"{theirs}.attention.output.dense.{kind}"]
            found[f"{ours}.norm_attention.{kind}"] = taken[f"{theirs}.attention.output.LayerNorm.{kind}"]
            found[f"{ours}.feedforward.0.{kind}"] = taken[f"{theirs}.intermediate.dense.{kind}"]
            found[f"{ours}.feedforward.2.{kind}"] = taken[f"{theirs}.output.dense.{kind}"]
            found[f"{ours}.norm_feedforward.{kind}"] = taken[f"{theirs}.output.LayerNorm.{kind}"]
    return found
