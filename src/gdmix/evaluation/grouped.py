"""Metrics within groups of rows, such as the rows of one user.

`rank_rows` sorts once; every metric of the same grouping reuses its `Ranking`. A metric
returns one value per group, in the order of the group codes, with NaN where it is
undefined; a `GroupSum` averages the defined ones, each group counting the same whatever its
size or weight.

The order of rows of equal score is unknown, so `precision_at`, `ndcg_at` and
`reciprocal_rank` take what a random order of them is expected to give, in closed form.
They ignore row weights. They are undefined for a group without a positive response.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from gdmix.config import MetricSpec
from gdmix.evaluation.checks import Rows
from gdmix.evaluation.metrics import changes
from gdmix.evaluation.sums import GroupSum


class Ranking(NamedTuple):
    """Rows in order of group, then of falling score, cut into blocks of equal score.

    Attributes
    ----------
    order
        (n,) the row at each place of the sorted order.
    position
        (n,) how many rows of its group precede the row at each place.
    block_start
        (b,) the place where each block of equal score within a group starts.
    group_block
        (g,) the block that each non-empty group starts with.
    """

    order: NDArray[np.intp]
    position: NDArray[np.intp]
    block_start: NDArray[np.intp]
    group_block: NDArray[np.intp]

    @property
    def block_size(self) -> NDArray[np.intp]:
        """(b,) number of rows of each block."""
        return np.diff(self.block_start, append=self.order.size)

    @property
    def group_size(self) -> NDArray[np.intp]:
        """(g,) number of rows of each group."""
        return np.diff(self.block_start[self.group_block], append=self.order.size)

    def by_block(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum (n,) sorted values over each block."""
        return np.add.reduceat(values, self.block_start)

    def by_group(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum (b,) values of blocks over each group."""
        return np.add.reduceat(values, self.group_block)


def rank_rows(score: NDArray[np.float64], code: NDArray[np.int32]) -> Ranking:
    """Rank the rows of each group by falling score.

    Parameters
    ----------
    score
        (n,) without NaN.
    code
        (n,) non-negative group codes, best dense: the cost grows with their digits.
    """
    order = np.argsort(score)[::-1]
    order = order[_stable_argsort(code[order])]
    score, code = score[order], code[order]
    new_group = changes(code)
    block_start = np.flatnonzero(new_group | changes(score))
    group_start = np.flatnonzero(new_group)
    group_size = np.diff(group_start, append=order.size)
    return Ranking(
        order=order,
        position=np.arange(order.size) - np.repeat(group_start, group_size),
        block_start=block_start,
        group_block=np.flatnonzero(new_group[block_start]),
    )


def _stable_argsort(code: NDArray[np.int32]) -> NDArray[np.intp]:
    # NumPy's stable sort is a radix sort for 16-bit keys only: four times as fast as int64.
    bits = int(code.max(initial=1)).bit_length()
    return np.lexsort([(code >> shift).astype(np.uint16) for shift in range(0, bits, 16)])


def group_auc(
    ranking: Ranking, response: NDArray[np.float64], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weighted ROC AUC within each group (Fawcett 2006), as `metrics.roc_auc`.

    Undefined for a group whose rows are all of one class.

    Parameters
    ----------
    ranking
        Of the rows by score.
    response, weight
        (n,) each, in the original order of the rows; the response is 0 or 1.
    """
    weight = weight[ranking.order]
    positive = weight * response[ranking.order]
    auc: NDArray[np.float64] = _auc_of_blocks(
        ranking.by_block(positive), ranking.by_block(weight - positive), ranking.group_block
    )
    return auc


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _auc_of_blocks(
    positive: NDArray[np.float64], negative: NDArray[np.float64], group_block: NDArray[np.intp]
) -> NDArray[np.float64]:
    # A loop, because the running sum has to start anew in each group: differences of one
    # running sum over all groups would carry the rounding of the heavy groups to the light.
    auc = np.empty(group_block.size)
    for group in range(group_block.size):
        last = group + 1 == group_block.size
        end = positive.size if last else group_block[group + 1]
        positives = negatives = concordant = 0.0
        for block in range(group_block[group], end):
            concordant += negative[block] * (positives + 0.5 * positive[block])
            positives += positive[block]
            negatives += negative[block]
        defined = positives > 0.0 and negatives > 0.0
        auc[group] = concordant / positives / negatives if defined else np.nan
    return auc


def precision_at(ranking: Ranking, response: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Share of positives among the first k rows of each group.

    A group of fewer than k rows is divided by its number of rows (Manning, Raghavan &
    Schütze 2008, "Introduction to Information Retrieval", section 8.4, but for that).

    Parameters
    ----------
    ranking
        Of the rows by score.
    response
        (n,) in the original order of the rows; 0 or 1.
    k
        Length of the list, at least 1.
    """
    response = response[ranking.order]
    hits = _expected_sum(ranking, response, (ranking.position < k).astype(np.float64))
    return _where_positive(ranking, response, hits / np.minimum(k, ranking.group_size))


def ndcg_at(
    ranking: Ranking, ideal: Ranking, response: NDArray[np.float64], k: int
) -> NDArray[np.float64]:
    """Normalised discounted cumulative gain of the first k rows of each group.

    The gain is the response itself, the discount of rank r is 1/log2(1 + r), and the sum
    is divided by that of the best order of the same rows (Järvelin & Kekäläinen 2002,
    "Cumulated gain-based evaluation of IR techniques"). Rows of equal score share their
    mean gain (McSherry & Najork 2008, "Computing information retrieval performance
    measures efficiently in the presence of tied scores").

    Parameters
    ----------
    ranking
        Of the rows by score.
    ideal
        Of the same rows and groups by response.
    response
        (n,) non-negative gains in the original order of the rows, binary or graded.
    k
        Length of the list, at least 1.
    """
    best = _discounted_gain(ideal, response, k)
    return np.divide(
        _discounted_gain(ranking, response, k),
        best,
        out=np.full_like(best, np.nan),
        where=best > 0,
    )


def reciprocal_rank(ranking: Ranking, response: NDArray[np.float64]) -> NDArray[np.float64]:
    """One over the expected rank of the first positive row of each group.

    With p positives in a block of t rows of equal score the first of them is expected at
    place (t + 1)/(p + 1) of the block: the mean of the minimum of p draws without
    replacement from 1..t. The mean over groups is the MRR (Voorhees 1999, "The TREC-8
    question answering track report").

    Parameters
    ----------
    ranking
        Of the rows by score.
    response
        (n,) in the original order of the rows; 0 or 1.
    """
    positives = ranking.by_block(response[ranking.order])
    groups = np.repeat(
        np.arange(ranking.group_block.size),
        np.diff(ranking.group_block, append=ranking.block_start.size),
    )
    hit = np.flatnonzero(positives > 0)
    first = hit[changes(groups[hit])]
    above = ranking.position[ranking.block_start[first]]
    rank = above + (ranking.block_size[first] + 1) / (positives[first] + 1)
    values = np.full(ranking.group_block.size, np.nan)
    values[groups[first]] = 1 / rank
    return values


def group_sums(
    specs: Mapping[str, MetricSpec], rows: Rows, code: NDArray[np.int32]
) -> dict[str, GroupSum]:
    """Add up metrics of the same grouping over groups.

    Parameters
    ----------
    specs
        Grouped metrics by name.
    rows
        All of positive weight.
    code
        (n,) non-negative group codes, best dense.
    """
    score, response, weight = rows.score, rows.response, rows.weight
    ranking = rank_rows(score, code)

    @cache
    def ideal() -> Ranking:
        return rank_rows(response, code)

    def values(spec: MetricSpec) -> NDArray[np.float64]:
        match spec.kind, spec.k:
            case "auc", _:
                return group_auc(ranking, response, weight)
            case "precision", int(k):
                return precision_at(ranking, response, k)
            case "ndcg", int(k):
                return ndcg_at(ranking, ideal(), response, k)
            case _:
                return reciprocal_rank(ranking, response)

    return {name: GroupSum.of(values(spec)) for name, spec in specs.items()}


def _discounted_gain(
    ranking: Ranking, response: NDArray[np.float64], k: int
) -> NDArray[np.float64]:
    discount = np.where(ranking.position < k, 1 / np.log2(ranking.position + 2), 0.0)
    return _expected_sum(ranking, response[ranking.order], discount)


def _expected_sum(
    ranking: Ranking, gain: NDArray[np.float64], factor: NDArray[np.float64]
) -> NDArray[np.float64]:
    # The mean over all orders of the ties of sum(gain * factor), where the factor belongs to
    # the place and the gain to the row: within a block each gain meets each factor alike.
    blocks = ranking.by_block(gain) * ranking.by_block(factor) / ranking.block_size
    return ranking.by_group(blocks)


def _where_positive(
    ranking: Ranking, response: NDArray[np.float64], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.where(ranking.by_group(ranking.by_block(response)) > 0, values, np.nan)
