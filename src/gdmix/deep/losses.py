"""What training minimises, as a sum over rows or over pairs of rows of a group.

==========  ==========================================  ==========================
loss        of a row, or of a group                     response
==========  ==========================================  ==========================
logistic    log(1 + e^z) - y z                          y in {0, 1}
squared     (z - y)^2 / 2                               any real number
poisson     e^z - y z                                   y >= 0
softmax     sum_i w_i y_i (log sum_j w_j e^z_j - z_i)   relevance y >= 0
pairwise    sum over y_i > y_j of log(1 + e^(z_j-z_i))  any order
lambdarank  the same times |change of NDCG|             relevance 0 <= y <= 30
==========  ==========================================  ==========================

The first three are those of `gdmix.glm.losses`, times the row's weight w. softmax is the listwise
loss of Cao et al. (ICML 2007), pairwise that of RankNet (Burges et al., ICML 2005), lambdarank
that of Burges (MSR-TR-2010-82) as a loss (Wang et al., CIKM 2018): pairs are weighted by how much
NDCG would change if the two swapped their present ranks, and that weight has no gradient.

A pair weighs sqrt(w_i w_j). So in all of them a row of weight 0 is absent, and the gradient of a
group whose rows all weigh w is w times that of one whose rows weigh 1. All ordered pairs of a
batch's groups are in memory at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gdmix.errors import DataError

POINTWISE: Final = ("logistic", "squared", "poisson")
RANKING: Final = ("softmax", "pairwise", "lambdarank")
_LARGEST_RELEVANCE = 30  # its gain is 2^30 - 1

Loss = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""loss(score (n,), response (n,), weight (n,), group (n,) or None) -> the sum of weighted losses.

A score has the row's offset in it; rows of equal `group` are ranked with each other, wherever in
the batch they are.
"""


def logistic(score: Tensor, response: Tensor, weight: Tensor, group: Tensor | None) -> Tensor:
    """Return the sum of weighted logistic losses."""
    return (weight * (F.softplus(score) - response * score)).sum()


def squared(score: Tensor, response: Tensor, weight: Tensor, group: Tensor | None) -> Tensor:
    """Return the sum of weighted squared losses."""
    return (weight * (score - response).square()).sum() / 2


def poisson(score: Tensor, response: Tensor, weight: Tensor, group: Tensor | None) -> Tensor:
    """Return the sum of weighted Poisson losses."""
    return (weight * (score.exp() - response * score)).sum()


def softmax(score: Tensor, response: Tensor, weight: Tensor, group: Tensor | None) -> Tensor:
    """Return the sum over groups of weighted cross-entropies of relevance and softmax."""
    score, response, weight, group = _in_groups(score, response, weight, group)
    number = _numbers(group)
    fixed = score.detach()
    largest = torch.full_like(fixed, -torch.inf).scatter_reduce(0, number, fixed, "amax")[number]
    total = _totals(weight * (score - largest).exp(), number)
    return (weight * response * (total.log() + largest - score)).sum()


def pairwise(score: Tensor, response: Tensor, weight: Tensor, group: Tensor | None) -> Tensor:
    """Return the sum over pairs of a group of weighted logistic losses of their order."""
    score, response, weight, group = _in_groups(score, response, weight, group)
    better, worse = _pairs(response, group)
    root = weight.sqrt()
    return (root[better] * root[worse] * F.softplus(score[worse] - score[better])).sum()


def lambdarank(score: Tensor, response: Tensor, weight: Tensor, group: Tensor | None) -> Tensor:
    """Return the same sum, each pair times what swapping it would change NDCG by."""
    score, response, weight, group = _in_groups(score, response, weight, group)
    better, worse = _pairs(response, group)
    with torch.no_grad():
        gain = response.exp2() - 1.0
        best = _totals(gain * _discount(response, group), _numbers(group))
        discount = _discount(score, group)
        swap = (gain[better] - gain[worse]) * (discount[better] - discount[worse])
        root = weight.sqrt()
        pair_weight = root[better] * root[worse] * swap.abs() / best[better]
    return (pair_weight * F.softplus(score[worse] - score[better])).sum()


LOSSES: Final[dict[str, Loss]] = {
    "logistic": logistic,
    "squared": squared,
    "poisson": poisson,
    "softmax": softmax,
    "pairwise": pairwise,
    "lambdarank": lambdarank,
}


def check_relevance(loss: str, response: NDArray[np.floating]) -> None:
    """Refuse responses that a ranking loss has no meaning for.

    Raises
    ------
    DataError
        If one is negative, or for lambdarank above 30.
    """
    low, high = float(response.min(initial=0.0)), float(response.max(initial=0.0))
    if loss in ("softmax", "lambdarank") and low < 0.0:
        raise DataError(f"response: loss '{loss}' takes relevance of 0 or more (got {low:g})")
    if loss == "lambdarank" and high > _LARGEST_RELEVANCE:
        raise DataError(
            f"response: loss 'lambdarank' takes relevance up to {_LARGEST_RELEVANCE}, as its gain "
            f"is 2^relevance - 1 (got {high:g}); use 'pairwise' or 'softmax'"
        )


def _in_groups(
    score: Tensor, response: Tensor, weight: Tensor, group: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the rows that weigh something, those of a group together, in their order."""
    if group is None:
        raise ValueError("a ranking loss needs groups")
    kept = weight.nonzero().squeeze(1)
    order = kept[group[kept].argsort(stable=True)]
    return score[order], response[order], weight[order], group[order]


def _numbers(group: Tensor) -> Tensor:
    """Return sorted groups' numbers 0, 1, ... of each row."""
    places = torch.arange(group.numel(), device=group.device)
    return (_run_starts(group) == places).cumsum(0) - 1


def _totals(value: Tensor, number: Tensor) -> Tensor:
    """Return for each row the total of its group."""
    return torch.zeros_like(value).index_add(0, number, value)[number]


def _pairs(response: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of all pairs of sorted groups: the higher response's, the lower's."""
    order = response.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    response, group = response[order], group[order]
    # In this order a row's lower ones are its group's from the start to where its equals begin.
    start, equals = _run_starts(group), _run_starts(group, response)
    n_lower = equals - start
    better = torch.arange(group.numel(), device=group.device).repeat_interleave(n_lower)
    before = n_lower.cumsum(0) - n_lower
    place = torch.arange(better.numel(), device=group.device) - before[better]
    return order[better], order[start[better] + place]


def _run_starts(*keys: Tensor) -> Tensor:
    """Return for each place where the run of equal keys that it is in begins."""
    places = torch.arange(keys[0].numel(), device=keys[0].device)
    begins = torch.zeros_like(places)
    for key in keys:
        begins[1:] = torch.where(key[1:] != key[:-1], places[1:], begins[1:])
    return begins.cummax(0).values if begins.numel() else begins


def _discount(value: Tensor, group: Tensor) -> Tensor:
    """Return 1 / log2(1 + rank) by descending value within sorted groups; equals in row order."""
    order = value.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    places = torch.arange(value.numel(), device=value.device)
    rank = torch.empty_like(places)
    rank[order] = places - _run_starts(group) + 1
    return (1.0 + rank.to(value.dtype)).log2().reciprocal()
