"""What training rows say of features, and the columns that are left out for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gdmix.data.correlation import ResponseMoments, products_with
from gdmix.data.feature_selection import with_columns
from gdmix.data.feature_summary import moments
from gdmix.engines.spark.exchange import Addressed, addressed, opened
from gdmix.engines.spark.tasks.kinds import BAGS, HEAD, SUMS, TRAIN

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def summarize_bags(
    bags: Sequence[str], weighted: bool, home: int, pieces: Iterable[Addressed]
) -> Iterator[Addressed]:
    """Send the moments of the training rows' features, bag by bag, to where they are added up."""
    found = opened(pieces)
    rows, own = found[HEAD][home][TRAIN], found[BAGS][home][TRAIN]
    weight = rows.weight if weighted else None
    yield from addressed(0, SUMS, home, {bag: moments(own[bag], weight) for bag in bags})


def summarize_response(home: int, pieces: Iterable[Addressed]) -> Iterator[Addressed]:
    """Send the moments of the training rows' responses to where they are added up."""
    rows = opened(pieces)[HEAD][home][TRAIN]
    own = ResponseMoments.of(rows.response, rows.weight)
    yield from addressed(0, SUMS, home, {"response": own})


def add_products(
    response: ResponseMoments, means: Mapping[str, F64], home: int, pieces: Iterable[Addressed]
) -> Iterator[Addressed]:
    """Send what the training rows add to covariances with the response, bag by bag."""
    found = opened(pieces)
    rows, own = found[HEAD][home][TRAIN], found[BAGS][home][TRAIN]
    centred = response.centred(rows.response)
    sums = {bag: products_with(own[bag], centred, rows.weight, m) for bag, m in means.items()}
    yield from addressed(0, SUMS, home, sums)


def narrow(
    columns: Mapping[str, I64], home: int, pieces: Iterable[Addressed]
) -> Iterator[Addressed]:
    """Leave out columns of bags.

    Parameters
    ----------
    columns
        By bag, those that are kept, ascending.
    """
    bags = []
    for own in pieces:
        if own[1].kind == BAGS:
            bags.append(own)
        else:
            yield own
    narrowed = {
        role: {
            bag: with_columns(matrix, columns[bag]) if bag in columns else matrix
            for bag, matrix in of_role.items()
        }
        for role, of_role in opened(bags)[BAGS][home].items()
    }
    yield from addressed(home, BAGS, home, narrowed)
