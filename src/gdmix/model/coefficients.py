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
from gdmix.data.derived_keys import part_kinds
from gdmix.data.keys import Keys, renumbered
from gdmix.errors import DataError
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.ragged import Ragged, lay_out, renumber_columns, take_models
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

    def renumbered(self, numbers: NDArray[np.int64]) -> RandomCoefficients:
        """Return the same models under other column numbers; negative: left out."""
        return RandomCoefficients(self.entities, *renumber_columns(self._ragged, numbers))

    def take(self, chosen: NDArray[np.int64]) -> RandomCoefficients:
        """Return the models of the chosen entities, whose numbers ascend."""
        return RandomCoefficients(
            self.entities.take(pa.array(chosen)), *take_models(self._ragged, chosen)
        )

    def united(self, other: RandomCoefficients) -> RandomCoefficients:
        """Return these models and those of other entities."""
        entities = pa.concat_arrays([self.entities, other.entities])
        both = (
            memory.concatenate([self.indptr, other.indptr[1:] + self.indptr[-1]]),
            memory.concatenate([self.columns, other.columns]),
            memory.concatenate([self.values, other.values]),
        )
        order = pc.sort_indices(entities).to_numpy().astype(np.int64)
        return RandomCoefficients(entities.take(pa.array(order)), *take_models(both, order))

    def values_of(
        self, chosen: NDArray[np.int64], indptr: NDArray[np.int64], columns: NDArray[np.uint32]
    ) -> F64:
        """Return coefficients in another layout of entities and columns; 0 where there is none.

        Parameters
        ----------
        chosen
            (E,) number, here, of each of the other layout's entities; -1 where it is unknown.
        """
        return lay_out(self._ragged, chosen, indptr, columns)

    @property
    def _ragged(self) -> Ragged:
        return self.indptr, self.columns, self.values

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
    return renumbered(keys.codes, positions(keys, entities, column).astype(np.int32))


def positions(keys: Keys, entities: pa.Array, column: str) -> NDArray[np.int64]:
    """Return the position of each distinct key among `entities`, -1 where it is none; see above."""
    here, there = str(keys.values.type), str(entities.type)
    if keys.kinds and len(entities):
        here, there = ", ".join(keys.kinds), ", ".join(part_kinds(entities))
    if here != there:
        raise DataError(
            f"entity column '{column}' is {here} in these rows, but {there} "
            "in those the model was trained on; cast it"
        )
    found = pc.fill_null(pc.index_in(keys.values, value_set=entities), -1)
    return np.asarray(found.to_numpy(zero_copy_only=False).astype(np.int64))
