"""The network classes that torch artifacts may name: those of text here, detectors of anomalies beside them.

Those of text take token ids int64 [n, T], padded with 0, and give logits float32 [n, C]; the mask is derived
inside, so that padding never changes an answer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from serving.runtimes.attention import HIDDEN, Attention, masked_mean
from serving.runtimes.detectors import AutoencoderDetector, ScoreDetector
from serving.runtimes.minilm import MiniLMClassifier


class _Layer(nn.Module):
    """A pre-norm transformer encoder layer (Xiong et al., ICML 2020)."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_feedforward = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(nn.Linear(width, feedforward), nn.ReLU(), nn.Linear(feedforward, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm_attention(x), bias))
        x = x + self.dropout(self.feedforward(self.norm_feedforward(x)))
        return x


class TransformerClassifier(nn.Module):
    """Token and position embeddings, `layers` encoder layers, masked mean, linear head."""

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        width: int = 192,
        layers: int = 2,
        heads: int = 4,
        feedforward: int = 384,
        tokens: int = 96,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.zeros(tokens, width))
        self.layers = nn.ModuleList(_Layer(width, heads, feedforward, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.embedding.weight, std=0.05)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, input_ids: Tensor) -> Tensor:
        mask = (input_ids != 0).to(torch.float32)
        bias = ((1.0 - mask) * HIDDEN)[:, None, None, :]
        x = self.dropout(self.embedding(input_ids) + self.position[: input_ids.shape[1]])
        for layer in self.layers:
            x = layer(x, bias)
        logits: Tensor = self.head(self.dropout(masked_mean(self.norm(x), mask)))
        return logits


class MeanEmbeddingClassifier(nn.Module):
    """Mean of the token embeddings, one hidden layer, linear head (after Joulin et al., EACL 2017)."""

    def __init__(self, vocabulary: int, classes: int, width: int = 16, hidden: int = 32, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.hidden = nn.Linear(width, hidden)
        self.head = nn.Linear(hidden, classes)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, input_ids: Tensor) -> Tensor:
        mask = (input_ids != 0).to(torch.float32)
        mean = masked_mean(self.embedding(input_ids), mask)
        logits: Tensor = self.head(torch.relu(self.hidden(self.dropout(mean))))
        return logits


CLASSES: dict[str, type[nn.Module]] = {
    "autoencoder-detector": AutoencoderDetector,
    "mean-embedding": MeanEmbeddingClassifier,
    "minilm": MiniLMClassifier,
    "score-detector": ScoreDetector,
    "transformer": TransformerClassifier,
}
