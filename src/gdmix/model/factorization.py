"""The model of a factorization: the factors of two kinds of entities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gdmix.data.dataset import Dataset
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.write import write_table
from gdmix.errors import ModelError
from gdmix.glm.factors import packed_size, score_pairs
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.scoring import score_fixed
from gdmix.model.base import summary_of
from gdmix.model.coefficient_files import read_entities, read_parquet
from gdmix.model.coefficients import entity_numbers

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class FactorSide:
    """The factors of one kind of entity.

    Attributes
    ----------
    key
        The entity: a column, or a name among the trained model's `derived` ones.
    entities
        (E,) Arrow array of distinct int64 or large_string, ascending.
    factors
        (E, k) float32.
    covariances
        (E, packed) float32, of `glm.factors`: how uncertain an entity's factors are; (0, packed)
        where they are the most probable ones.
    l2
        (k,) L2 weight of each factor.
    features
        Names of the feature bags from which factors are foretold.
    regression
        (1 + features, k) coefficients that foretell them, the intercept first; (0, k) without.
    """

    key: str
    entities: pa.Array
    factors: F32
    covariances: F32
    l2: F64
    features: tuple[str, ...]
    regression: F64

    def __len__(self) -> int:
        return len(self.entities)

    @property
    def rank(self) -> int:
        """Number of factors."""
        return self.l2.size

    def foretold(self, design: CsrMatrix, threads: int = 1) -> F64:
        """Return the factors that features say, (n, k).

        Parameters
        ----------
        design
            (n, features).
        """
        columns = [
            score_fixed(design, np.ascontiguousarray(column), threads)
            for column in self.regression.T
        ]
        return np.stack(columns, axis=1)

    def of_rows(self, rows: Dataset, threads: int = 1) -> tuple[F32, NDArray[np.int32]]:
        """Return a table of factors, and which of its rows is each row's; -1 where there is none.

        Rows of an unseen entity have the factors that their features foretell.
        """
        numbers = entity_numbers(rows.keys[self.key], self.entities, self.key)
        new = np.flatnonzero(numbers < 0)
        if not self.features or not new.size:
            return self.factors, numbers
        foretold = self.foretold(rows.design(self.features).take(new), threads)
        numbers = numbers.copy()
        numbers[new] = len(self) + np.arange(new.size)
        return np.concatenate([self.factors, foretold.astype(np.float32)]), numbers

    def united(self, other: FactorSide) -> FactorSide:
        """Return the factors of these entities and of other ones."""
        entities = pa.concat_arrays([self.entities, other.entities])
        order = pc.sort_indices(entities).to_numpy()
        return replace(
            self,
            entities=entities.take(pa.array(order)),
            factors=np.concatenate([self.factors, other.factors])[order],
            covariances=np.concatenate([self.covariances, other.covariances])[order]
            if len(self.covariances)
            else self.covariances,
        )


@dataclass(frozen=True)
class FactorizationModel:
    """What two kinds of entities have in common: ``score = u_e' v_f``.

    Attributes
    ----------
    sides
        The one entity and the other.
    spread
        What the uncertainty of factors adds to the objective; 0 where it is not heeded.
    """

    sides: tuple[FactorSide, FactorSide]
    spread: float = 0.0
    type: ClassVar[str] = "factorization"

    @property
    def features(self) -> tuple[str, ...]:
        """The bags of both sides."""
        return tuple(dict.fromkeys(bag for side in self.sides for bag in side.features))

    @property
    def keys(self) -> tuple[str, ...]:
        """The two entities."""
        return tuple(side.key for side in self.sides)

    @property
    def rank(self) -> int:
        """Number of factors of each entity."""
        return self.sides[0].rank

    def score(self, rows: Dataset, threads: int = 1) -> F64:
        """Return each row's score, (n,).

        An entity without a model has the factors that its features foretell, or else 0.
        """
        (one, e), (other, f) = (side.of_rows(rows, threads) for side in self.sides)
        return score_pairs(one, other, e, f, threads)

    def summary(self) -> dict[str, object]:
        """Return what it is and how large."""
        models = sum(len(side) for side in self.sides)
        size = sum(side.factors.size + side.regression.size for side in self.sides)
        return {
            **summary_of(self, models, size, " x ".join(self.keys)),
            "entities": {side.key: len(side) for side in self.sides},
            "rank": self.rank,
            "l2": {side.key: side.l2.tolist() for side in self.sides},
        }

    def factor_table(self, entity: object = None, top: int | None = None) -> pa.Table:
        """Return factors in long form.

        Parameters
        ----------
        entity
            Only those of this entity, of whichever side, or both; None: of all.
        top
            Only that many, the largest by magnitude first; None: all, in order.

        Returns
        -------
        pyarrow.Table
            Columns ``name``, the kind of entity, ``term``, the number of the factor, and
            ``value``; before them ``entity``, as text, if no single one was asked for.

        Raises
        ------
        ModelError
            If the entity has no factors.
        """
        parts = []
        for side in self.sides:
            chosen = np.arange(len(side))
            if entity is not None:
                place = _place(side.entities, entity)
                chosen = chosen[place : place + 1] if place >= 0 else chosen[:0]
            own = pa.array(np.repeat(chosen, side.rank))
            columns = {
                "entity": side.entities.take(own).cast(pa.large_string()),
                "name": pa.array([side.key] * len(own), pa.large_string()),
                "term": pa.array(np.tile(np.arange(side.rank), chosen.size)).cast("large_string"),
                "value": side.factors[chosen].reshape(-1).astype(np.float64),
            }
            parts.append(pa.table(columns))
        table = pa.concat_tables(parts)
        if entity is not None:
            if not len(table):
                raise ModelError(f"neither {' nor '.join(self.keys)} has factors of {entity!r}")
            table = table.drop_columns(["entity"])
        if top is None:
            return table
        sizes = np.abs(table["value"].to_numpy())
        return table.take(pa.array(np.argsort(-sizes, kind="stable")[:top]))

    def describe(self) -> dict[str, Any]:
        """Return what a manifest says of it."""
        return {
            "type": self.type,
            "entities": list(self.keys),
            "features": [list(side.features) for side in self.sides],
            "rank": self.rank,
            "l2": [side.l2.tolist() for side in self.sides],
            "uncertain": len(self.sides[0].covariances) > 0,
            "spread": self.spread,
        }

    def write(self, folder: Path) -> None:
        """Write factors, and what foretells them, in Parquet.

        Raises
        ------
        OutputError
            If the system refuses to write there.
        """
        for number, side in enumerate(self.sides):
            columns = {"entity": side.entities, "factors": _rows_of(side.factors)}
            if len(side.covariances):
                columns["covariance"] = _rows_of(side.covariances)
            write_table(pa.table(columns), folder / _factors(number))
            if side.features:
                table = pa.table({"coefficients": _rows_of(side.regression)})
                write_table(table, folder / _regression(number))


def read_factorization(
    folder: Path, entry: Mapping[str, Any], indices: Mapping[str, FeatureIndex]
) -> FactorizationModel:
    """Read what `FactorizationModel.write` wrote.

    Raises
    ------
    ModelError
        If a file is missing or damaged.
    """
    sides = []
    rank, uncertain = int(entry["rank"]), bool(entry["uncertain"])
    for number, key in enumerate(entry["entities"]):
        file, bags = folder / _factors(number), tuple(entry["features"][number])
        entities = read_entities(file, "entity")
        width = packed_size(rank)
        covariances = np.empty((0, width), np.float32)
        if uncertain:
            covariances = _matrix(file, "covariance", width, np.float32, len(entities))
        regression = np.empty((0, rank))
        if bags:
            path = folder / _regression(number)
            size = 1 + sum(len(indices[bag]) for bag in bags) if indices else None
            regression = _matrix(path, "coefficients", rank, np.float64, size)
        sides.append(
            FactorSide(
                key,
                entities,
                _matrix(file, "factors", rank, np.float32, len(entities)),
                covariances,
                np.array(entry["l2"][number], np.float64),
                bags,
                regression,
            )
        )
    one, other = sides
    return FactorizationModel((one, other), float(entry["spread"]))


def _factors(number: int) -> str:
    return f"factors-{number}.parquet"


def _regression(number: int) -> str:
    return f"features-{number}.parquet"


def _rows_of(matrix: NDArray[Any]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def _matrix(file: Path, column: str, width: int, kind: Any, rows: int | None) -> NDArray[Any]:
    lists = read_parquet(file, [column])[column].combine_chunks()
    # A copy: what Arrow lends is read-only, and kernels would be compiled again for that.
    values = np.array(lists.flatten().to_numpy(), kind)
    if values.size != len(lists) * width or rows not in (None, len(lists)):
        raise ModelError(f"{file}: damaged: '{column}' is not of the size that the manifest says")
    return values.reshape(len(lists), width)


def _place(entities: pa.Array, entity: object) -> int:
    try:
        scalar = pa.scalar(entity).cast(entities.type)
    except (pa.ArrowException, TypeError, ValueError):
        return -1
    return int(pc.index(entities, scalar).as_py())
