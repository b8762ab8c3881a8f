"""Anomaly detectors over rows of numbers, by score.

Each takes features float32 [n, columns] and gives logits float32 [n, 2]: zero for normal, scale · score + offset for
anomaly. What is fitted to data and not trained (mean and spread of normal rows, scale and offset) is kept in buffers,
so that it travels with the weights and into an exported graph.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn


class _Detector(nn.Module):
    mean: Tensor
    spread: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, columns: int, clip: float) -> None:
        super().__init__()
        self._clip = clip
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("spread", torch.ones(columns))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))

    def standardize(self, rows: np.ndarray) -> None:
        """Take mean and spread from rows float32 [n, columns]."""
        spread = rows.std(axis=0, dtype=np.float64)
        self.mean.copy_(torch.from_numpy(rows.mean(axis=0, dtype=np.float64)))
        self.spread.copy_(torch.from_numpy(np.where(spread > 0, spread, 1.0)))

    def set_line(self, scale: float, offset: float) -> None:
        """Set how a score becomes a logit."""
        self.scale.fill_(scale)
        self.offset.fill_(offset)

    def scaled(self, features: Tensor) -> Tensor:
        """Rows in standard deviations from the mean, cut to ± clip."""
        return ((features - self.mean) / self.spread).clamp(-self._clip, self._clip)

    @abstractmethod
    def score(self, features: Tensor) -> Tensor:
        """[n], higher for what is less normal."""

    def forward(self, features: Tensor) -> Tensor:
        logit = self.scale * self.score(features) + self.offset
        return torch.stack((torch.zeros_like(logit), logit), dim=1)


class AutoencoderDetector(_Detector):
    """The logarithm of the mean squared error with which a network of a narrow waist rebuilds a row."""

    def __init__(self, columns: int, hidden: Sequence[int], clip: float = 10.0) -> None:
        super().__init__(columns, clip)
        widths = [columns, *hidden, *reversed(hidden[:-1]), columns]
        layers: list[nn.Module] = []
        for at, (given, wanted) in enumerate(pairwise(widths)):
            layers.append(nn.Linear(given, wanted))
            # Neither the code nor the rebuilt row is bounded.
            if at not in (len(hidden) - 1, len(widths) - 2):
                layers.append(nn.ReLU())
        self.network = nn.Sequential(*layers)

    def rebuilt(self, scaled: Tensor) -> Tensor:
        """Rows as the network gives them back."""
        rebuilt: Tensor = self.network(scaled)
        return rebuilt

    def score(self, features: Tensor) -> Tensor:
        scaled = self.scaled(features)
        return torch.log((self.rebuilt(scaled) - scaled).square().mean(dim=1) + 1e-6)


class ScoreDetector(_Detector):
    """One hidden layer to one score; with 9 columns and 4 hidden units, 45 parameters."""

    def __init__(self, columns: int, hidden: int, clip: float = 10.0) -> None:
        super().__init__(columns, clip)
        self.hidden = nn.Linear(columns, hidden)
        self.out = nn.Linear(hidden, 1)

    def score(self, features: Tensor) -> Tensor:
        score: Tensor = self.out(torch.relu(self.hidden(self.scaled(features)))).squeeze(1)
        return score
