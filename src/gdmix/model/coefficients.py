"""Coefficients of one coordinate. The intercept is the first one, in memory and on disk.

Columns of a coordinate are numbered from the intercept, 0, through the features of its bags in
order: feature j of the design is column 1 + j.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gdmix import memory
from gdmix.data.keys import Keys
from gdmix.errors import DataError
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.scoring import score_fixed, score_random

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class FixedCoefficients:
    """Coefficients of a fixed effect.

    Attributes
    ----------
    values
        (1 + features,) float64, intercept first; it is 0 in a model without one.
    """

    values: F64

    def __len__(self) -> int:
        return 1

    def score(self, design: CsrMatrix, threads: int = 1) -> F64:
        """Return each row's score, (n,)."""
        return score_fixed(design, self.values, threads)


@dataclass(frozen=True)
class RandomCoefficients:
    """Coefficients of a random effect: a small model per entity.

    Attributes
    ----------
    entities
        (E,) Arrow array of distinct int64 or large_string, ascending.
    indptr
        (E + 1,) int64; entity e has the slice ``indptr[e]:indptr[e + 1]`` of the next two.
    columns
        uint32 column of each coefficient, ascending within an entity, intercept (0) first.
    values
        float64.
    """

    entities: pa.Array
    indptr: NDArray[np.int64]
    columns: NDArray[np.uint32]
    values: F64

    def __len__(self) -> int:
        return len(self.entities)

    def score(self, design: CsrMatrix, numbers: NDArray[np.int32], threads: int = 1) -> F64:
        """Return each row's score under its entity's model, (n,); 0 for an unseen entity.

        Parameters
        ----------
        numbers
            (n,) number of each row's entity, from `entity_numbers`.
        """
        return score_random(design, numbers, self.indptr, self.columns, self.values, threads)

    def find(self, entity: object) -> int:
        """Return the number of an entity, -1 if it has no model."""
        try:
            scalar = pa.scalar(entity).cast(self.entities.type)
        except (pa.ArrowException, TypeError, ValueError):
            return -1
        return int(pc.index(self.entities, scalar).as_py())


def entity_numbers(keys: Keys, entities: pa.Array, column: str) -> NDArray[np.int32]:
    """Return the position of each row's key among `entities`, (n,), -1 where it is none of them.

    Parameters
    ----------
    column
        What messages call the keys.

    Raises
    ------
    DataError
        If one side is integers and the other strings.
    """
    if keys.values.type != entities.type:
        raise DataError(
            f"entity column '{column}' is {keys.values.type} in these rows, but {entities.type} "
            "in those the model was trained on; cast it"
        )
    found = pc.fill_null(pc.index_in(keys.values, value_set=entities), -1)
    numbers = np.append(found.to_numpy(zero_copy_only=False), -1).astype(np.int32)
    result = memory.empty(keys.codes.size, np.int32)
    return np.take(numbers, keys.codes, out=result, mode="wrap")
