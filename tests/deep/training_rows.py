"""A linear network on rows held in arrays: what tests of the trainer train."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Rows:
    """A batch source of dense features: x, (n, d)."""

    def __init__(
        self,
        x: NDArray[np.float64],
        response: NDArray[np.float64],
        weight: NDArray[np.float64] | None = None,
        offset: NDArray[np.float64] | None = None,
        group: NDArray[np.int64] | None = None,
        block_rows: int | None = None,
    ) -> None:
        n = response.size
        self.x, self.response = x, response
        self.weight = np.ones(n) if weight is None else weight
        self.offset = np.zeros(n) if offset is None else offset
        self.group, self.block_rows, self.n_rows = group, block_rows, n
        self.uid = np.arange(n)
        self.asked: list[NDArray[np.int64]] = []

    def batch(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        assert rows.size
        self.asked.append(rows)
        columns = {k: getattr(self, k)[rows] for k in ("x", "response", "weight", "offset")}
        batch = {k: torch.from_numpy(v.astype(np.float32)) for k, v in columns.items()}
        if self.group is not None:
            batch["group"] = torch.from_numpy(self.group[rows])
        return batch


def logistic_rows(n: int = 400, d: int = 5, seed: int = 0, **more: object) -> Rows:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    offset = rng.normal(size=n)
    z = x @ rng.normal(size=d) + 0.3 + offset
    response = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(np.float64)
    weight = rng.choice([0.5, 1.0, 3.0], n)
    return Rows(x, response, **{"weight": weight, "offset": offset, **more})  # type: ignore[arg-type]


class Linear(nn.Module):
    """Intercept and slopes, and dropout of the inputs if it is asked for."""

    def __init__(self, d: int = 5, dropout: float = 0.0) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.zeros(d))
        self.intercept = nn.Parameter(torch.zeros(()))
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.dropout(batch["x"]).to(self.slopes.dtype) @ self.slopes + self.intercept


class TwoLayers(nn.Module):
    """A small network with dropout, its weights drawn from a seed."""

    def __init__(self, d: int = 5, width: int = 8, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(d, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 1)
            )

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.layers(batch["x"]).squeeze(1)


def logistic_loss(
    score: Tensor, response: Tensor, weight: Tensor, group: Tensor | None = None
) -> Tensor:
    return (weight * (nn.functional.softplus(score) - response * score)).sum()


def softmax_loss(score: Tensor, response: Tensor, weight: Tensor, group: Tensor | None) -> Tensor:
    """Listwise softmax; refuses groups that are not whole by their known size of 4."""
    assert group is not None
    total = score.new_zeros(())
    for number in group.unique():
        own = group == number
        assert int(own.sum()) == 4
        target = response[own] * weight[own]
        total = total - (target * score[own].log_softmax(0)).sum()
    return total


def weights_of(network: nn.Module) -> NDArray[np.float64]:
    return np.concatenate([p.detach().double().numpy().ravel() for p in network.parameters()])
