"""The matrix that an estimator of the user's own sees of rows: feature bags, then id columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix.data.dataset import Dataset
from gdmix.data.feature_index import FeatureIndex
from gdmix.errors import DataError
from gdmix.glm.matrix import CsrMatrix
from gdmix.model.coefficients import entity_numbers
from gdmix.model.predictors import missing

F32 = NDArray[np.float32]

_MOST_VALUES = 1 << 24  # that single precision tells apart


def input_matrix(
    rows: Dataset, features: Sequence[str], categories: Mapping[str, pa.Array], dense: bool
) -> Any:
    """Return the matrix of rows, (n, features + categories) of float32.

    Parameters
    ----------
    features
        Bags, whose features are the first columns.
    categories
        Values of each id column in the order of their numbers. A value is told as its number
        from 1 on; one that is not among them, or a null, as NaN.
    dense
        Return an array rather than a sparse matrix, also where a bag is sparse.

    Returns
    -------
    numpy.ndarray or scipy.sparse.csr_matrix
        An array if there is no sparse bag, or if asked for.

    Raises
    ------
    DataError
        If an id column is of another type than in training.
    """
    design = rows.design(features)
    ids = np.empty((rows.n_rows, len(categories)), np.float32)
    for j, (column, values) in enumerate(categories.items()):
        if len(values) >= _MOST_VALUES:
            raise DataError(
                f"{rows.label}: column '{column}' has {len(values):,} values, too many for a "
                "categorical column; make it a random effect's entity"
            )
        numbers = entity_numbers(rows.keys[column], values, column)
        ids[:, j] = np.where(numbers < 0, np.nan, numbers + 1)
    if not features:
        return ids
    if dense or design.is_dense:
        return np.hstack([_as_array(design), ids])
    try:
        from scipy import sparse
    except ModuleNotFoundError:
        raise DataError(f"a sparse matrix {missing('scikit-learn')}") from None
    # Column numbers are below 2**31: the same bytes as signed integers.
    parts = design.values, design.indices.view(np.int32), design.indptr
    matrix = sparse.csr_matrix(parts, shape=(design.n_rows, design.n_columns))
    return sparse.hstack([matrix, sparse.csr_matrix(ids)], format="csr") if categories else matrix


def input_names(
    indices: Mapping[str, FeatureIndex], features: Sequence[str], categorical: Sequence[str]
) -> list[str]:
    """Return the name of each column: ``name``, ``name:term``, or the id column's."""
    pairs = (
        pair
        for bag in features
        for pair in zip(indices[bag].names.to_pylist(), indices[bag].terms.to_pylist(), strict=True)
    )
    return [f"{name}:{term}" if term else name for name, term in pairs] + list(categorical)


def _as_array(design: CsrMatrix) -> F32:
    if design.is_dense:
        rows = design.indptr[:-1] // design.n_columns
        return design.values.reshape(-1, design.n_columns)[rows]
    array = np.zeros((design.n_rows, design.n_columns), np.float32)
    array[np.repeat(np.arange(design.n_rows), np.diff(design.indptr)), design.indices] = (
        design.values
    )
    return array
