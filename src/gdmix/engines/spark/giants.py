"""Entities with far more rows than train their models: most of their rows never move.

Which rows train a model is decided by a hash of seed and uid (`data.active_rows`), so that a home
can tell of most of its rows that they are but scored. They stay there, and the models of these
few entities come to them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gdmix.config import RandomEffect
from gdmix.data.active_rows import RowsElsewhere, draws, sample_negatives
from gdmix.data.dataset import Dataset
from gdmix.data.entity_blocks import columns_of_rows
from gdmix.data.keys import Keys
from gdmix.data.partition import key_hashes
from gdmix.engines.spark.exchange import positions_of
from gdmix.model.coefficients import RandomCoefficients
from gdmix.model.linear import LinearModel

Bools = NDArray[np.bool_]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

# By hash of the entity: how many rows stay that might have trained, and the columns that rows
# which stay have.
Left = dict[int, tuple[int, I64]]


@dataclass(frozen=True)
class Giants:
    """The giant entities of a random effect.

    Attributes
    ----------
    hashes
        (g,) of the entities, ascending.
    limits
        (g,) what the draw of a row that may train is below.
    spec
        Of the random effect.
    seed
        Of the run.
    """

    hashes: U64
    limits: F64
    spec: RandomEffect
    seed: int

    @staticmethod
    def among(heavy: dict[int, int], spec: RandomEffect, seed: int) -> Giants | None:
        """Return those of the heavy entities that not all rows train; None if there are none.

        Parameters
        ----------
        heavy
            Hash of an entity to its number of rows.
        """
        most = spec.max_active_rows
        if most is None and spec.negative_sampling is None:
            return None
        hashes = sorted(h for h, n in heavy.items() if most is None or n > most)
        if not hashes:
            return None
        limits = np.full(len(hashes), np.inf)
        if most is not None:
            # Draws are uniform: as good as surely, enough of them are below this.
            limits = np.array([(most + 6.0 * most**0.5 + 20.0) / heavy[h] for h in hashes])
        return Giants(np.array(hashes, np.uint64), limits, spec, seed)

    def widened(self, counts: I64) -> Giants:
        """Return the same with higher limits where fewer rows may train than are to; else itself.

        Parameters
        ----------
        counts
            (g,) how many may.
        """
        most = self.spec.max_active_rows
        short = np.zeros(counts.size, np.bool_) if most is None else counts < most
        short &= self.limits < 1.0  # that of all rows
        if not short.any():
            return self
        return replace(self, limits=np.where(short, 2.0 * self.limits, self.limits))

    def numbers(self, keys: Keys) -> I64:
        """Return which of the giants each row belongs to, (n,); -1 of any other."""
        return np.append(positions_of(key_hashes(keys.values), self.hashes), -1)[keys.codes]

    def counts(self, rows: Dataset) -> I64:
        """Return how many training rows of each may train, (g,)."""
        numbers = self.numbers(rows.keys[self.spec.key])
        own = np.flatnonzero(numbers >= 0)
        return np.bincount(
            numbers[own[self._may_train(rows, own, numbers[own])]], minlength=self.hashes.size
        )

    def staying(self, rows: Dataset, train: bool) -> Bools:
        """Return which rows are but scored, (n,)."""
        numbers = self.numbers(rows.keys[self.spec.key])
        result = numbers >= 0
        if train:
            own = np.flatnonzero(result)
            result[own[self._may_train(rows, own, numbers[own])]] = False
        return result

    def _may_train(self, rows: Dataset, own: I64, numbers: I64) -> Bools:
        """Return which of some rows may train a model."""
        result = draws(rows.uid[own], self.seed) < self.limits[numbers]
        return result & self._sampled(rows, own)

    def _sampled(self, rows: Dataset, own: I64) -> Bools:
        share = self.spec.negative_sampling
        if share is None:
            return np.ones(own.size, np.bool_)
        stands = sample_negatives(
            rows.uid[own], rows.response[own], share, self.seed, self.spec.name
        )
        return stands > 0.0

    def left(self, rows: Dataset, stay: I64) -> Left:
        """Return what the training rows that stay are, giant by giant."""
        numbers = self.numbers(rows.keys[self.spec.key])[stay]
        sampled, design = self._sampled(rows, stay), rows.design(self.spec.features)
        result: Left = {}
        for giant in np.unique(numbers):
            own = np.zeros(rows.n_rows, np.bool_)
            own[stay[numbers == giant]] = True
            columns = np.flatnonzero(columns_of_rows(design, own))
            result[int(self.hashes[giant])] = (
                int(np.count_nonzero(sampled & (numbers == giant))),
                columns,
            )
        return result

    def models(self, model: LinearModel) -> LinearModel | None:
        """Return those of some models that are of giants; None if none is."""
        coefficients = model.coefficients
        assert isinstance(coefficients, RandomCoefficients)
        own = np.flatnonzero(positions_of(key_hashes(coefficients.entities), self.hashes) >= 0)
        if not own.size:
            return None
        return LinearModel(model.features, model.intercept, coefficients.take(own), model.entity)


def elsewhere(parts: list[Left], keys: Keys) -> RowsElsewhere:
    """Return what homes say of rows that stay there, for the entities of a partition."""
    numbers = {int(h): number for number, h in enumerate(key_hashes(keys.values))}
    counts = np.zeros(len(keys.values), np.int64)
    columns: dict[int, I64] = {}
    for part in parts:
        for entity, (n, own) in part.items():
            number = numbers.get(entity, -1)  # of an entity whose rows are all left out of training
            if number >= 0:
                counts[number] += n
            columns[number] = np.union1d(columns.get(number, own), own)
    return RowsElsewhere(counts, columns)
