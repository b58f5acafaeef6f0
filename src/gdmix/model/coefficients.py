"""Coefficients of one coordinate. The intercept is the first one, in memory and on disk.

Columns of a coordinate are numbered from the intercept, 0, through the features of its bags in
order: feature j of the design is column 1 + j.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gdmix import memory
from gdmix.data.derived_keys import part_kinds
from gdmix.data.keys import Keys, renumbered
from gdmix.errors import DataError
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.ragged import Ragged, lay_out, lay_out_triangles, renumber_columns, take_models
from gdmix.glm.scoring import score_fixed, score_random
from gdmix.glm.variance import packed_lower, unpacked

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class FixedCoefficients:
    """Coefficients of a fixed effect.

    Attributes
    ----------
    values
        (1 + features,) float64, intercept first; it is 0 in a model without one.
    variances
        The same shape, if they were asked for.
    hessian
        Lower triangle of the Hessian, row by row, if it was asked for.
    """

    values: F64
    variances: F64 | None = None
    hessian: F64 | None = None

    def __len__(self) -> int:
        return 1

    def score(self, design: CsrMatrix, threads: int = 1) -> F64:
        """Return each row's score, (n,)."""
        return score_fixed(design, self.values, threads)

    def renumbered(self, numbers: NDArray[np.int64], width: int) -> FixedCoefficients:
        """Return the same under other column numbers, of `width` columns; negative: left out."""
        kept = numbers >= 0

        def laid_out(own: F64) -> F64:
            result = np.zeros(width)
            result[numbers[kept]] = own[kept]
            return result

        variances = None if self.variances is None else laid_out(self.variances)
        hessian = None
        if self.hessian is not None:
            whole = np.zeros((width, width))
            whole[np.ix_(numbers[kept], numbers[kept])] = unpacked(self.hessian)[np.ix_(kept, kept)]
            hessian = packed_lower(whole)
        return FixedCoefficients(laid_out(self.values), variances, hessian)


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
    variances
        Of the values, if they were asked for; 0 where it is not known.
    hessian_ptr, hessians
        (E + 1,) int64 and float64: lower triangles of the Hessians, row by row, if they were
        asked for; that of an entity may be empty.
    """

    entities: pa.Array
    indptr: NDArray[np.int64]
    columns: NDArray[np.uint32]
    values: F64
    variances: F64 | None = None
    hessian_ptr: NDArray[np.int64] | None = None
    hessians: F64 | None = None

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
        indptr, columns, values = renumber_columns(self._ragged, numbers)
        variances = None
        if self.variances is not None:
            models = self.indptr, self.columns, self.variances
            variances = renumber_columns(models, numbers)[2]
        result = RandomCoefficients(self.entities, indptr, columns, values, variances)
        return result._with_hessians_of(self, np.arange(len(self)), numbers)

    def take(self, chosen: NDArray[np.int64]) -> RandomCoefficients:
        """Return the models of the chosen entities, whose numbers ascend."""
        indptr, columns, values = take_models(self._ragged, chosen)
        variances = None
        if self.variances is not None:
            models = self.indptr, self.columns, self.variances
            variances = take_models(models, chosen)[2]
        entities = self.entities.take(pa.array(chosen))
        result = RandomCoefficients(entities, indptr, columns, values, variances)
        return result._with_hessians_of(self, chosen)

    def united(self, other: RandomCoefficients) -> RandomCoefficients:
        """Return these models and those of other entities, with what these know of variances.

        Of another entity that lacks them variances are 0 and the Hessian is empty.
        """
        entities = pa.concat_arrays([self.entities, other.entities])
        both = RandomCoefficients(
            entities,
            memory.concatenate([self.indptr, other.indptr[1:] + self.indptr[-1]]),
            memory.concatenate([self.columns, other.columns]),
            memory.concatenate([self.values, other.values]),
        )
        if self.variances is not None:
            theirs = other.variances
            theirs = memory.zeros(other.values.size) if theirs is None else theirs
            both = replace(both, variances=memory.concatenate([self.variances, theirs]))
        if self.hessians is not None and self.hessian_ptr is not None:
            ends, theirs = other.hessian_ptr, other.hessians
            if ends is None or theirs is None:
                ends, theirs = memory.zeros(len(other) + 1, np.int64), np.empty(0)
            ends = ends[1:] + self.hessian_ptr[-1]
            both = replace(
                both,
                hessian_ptr=memory.concatenate([self.hessian_ptr, ends]),
                hessians=memory.concatenate([self.hessians, theirs]),
            )
        return both.take(pc.sort_indices(entities).to_numpy().astype(np.int64))

    def values_of(
        self,
        chosen: NDArray[np.int64],
        indptr: NDArray[np.int64],
        columns: NDArray[np.uint32],
        values: F64 | None = None,
    ) -> F64:
        """Return coefficients in another layout of entities and columns; 0 where there is none.

        Parameters
        ----------
        chosen
            (E,) number, here, of each of the other layout's entities; -1 where it is unknown.
        values
            Laid out like the coefficients, to be returned instead of them.
        """
        own = self.values if values is None else values
        return lay_out((self.indptr, self.columns, own), chosen, indptr, columns)

    def _with_hessians_of(
        self,
        other: RandomCoefficients,
        chosen: NDArray[np.int64],
        numbers: NDArray[np.int64] | None = None,
    ) -> RandomCoefficients:
        """Return these models with the Hessians of other ones, if those have any.

        Parameters
        ----------
        chosen
            (E,) number, there, of each entity; -1 of one without.
        numbers
            The number, here, of each column there; the same by default.
        """
        if other.hessians is None or other.hessian_ptr is None:
            return self
        width = 1 + int(max(other.columns.max(initial=0), self.columns.max(initial=0)))
        hessian_ptr, hessians = lay_out_triangles(
            (other.indptr, other.columns, other.values),
            (other.hessian_ptr, other.hessians),
            chosen,
            np.arange(width) if numbers is None else numbers,
            self.indptr,
            self.columns,
        )
        return replace(self, hessian_ptr=hessian_ptr, hessians=hessians)

    def hessians_of(
        self,
        chosen: NDArray[np.int64],
        indptr: NDArray[np.int64],
        columns: NDArray[np.uint32],
    ) -> tuple[NDArray[np.int64], F64] | None:
        """Return pointers and Hessians in another layout, as `values_of` does with values."""
        blank = RandomCoefficients(self.entities, indptr, columns, self.values)
        found = blank._with_hessians_of(self, chosen)
        if found.hessians is None or found.hessian_ptr is None:
            return None
        return found.hessian_ptr, found.hessians

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


def concatenated(parts: Sequence[RandomCoefficients]) -> RandomCoefficients:
    """Return the models of all parts, which are of different entities, without Hessians.

    Parameters
    ----------
    parts
        At least one; either all of them have variances or none has.
    """
    starts = np.cumsum([0, *(part.values.size for part in parts)])
    entities = pa.concat_arrays([part.entities for part in parts])
    ends = [part.indptr[1:] + first for part, first in zip(parts, starts, strict=False)]
    together = RandomCoefficients(
        entities,
        memory.concatenate([parts[0].indptr[:1], *ends]),
        memory.concatenate([part.columns for part in parts]),
        memory.concatenate([part.values for part in parts]),
    )
    variances = [part.variances for part in parts if part.variances is not None]
    if variances:
        together = replace(together, variances=memory.concatenate(variances))
    return together.take(pc.sort_indices(entities).to_numpy().astype(np.int64))


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
