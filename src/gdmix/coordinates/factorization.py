"""The factorization: factors of two kinds of entities, fitted one side after the other.

With the factors of one side fixed, a row's score is linear in those of the other: each entity of
it is a small problem whose features are the factors that it meets, for the solvers of a random
effect. The rows of both sides are grouped once; a fit shares the other side's table of factors
and copies none of it. The objective of `method: map` is that of a random effect,

    sum_i w_i loss(y_i, offset_i + u_e' v_f) + sum_sides 1/2 sum_e |u_e - mean_e|^2_l2 ,

and falls with every fit of a side. It is not convex: a pass ends near a stationary point, which
one depends on where the seed let it start. ``mean_e`` is 0, or the prediction of a ridge
regression of the factors on features of the entity, with the same L2 weights (regression-based
latent factors: Agarwal & Chen, KDD 2009).

``method: variational`` approximates the posterior by independent normals of all entities' factors
(`glm.factors`), and minimises the objective plus what their spread adds. ``l2: auto`` sets the
weight of each factor and side to the reciprocal of its posterior second moment, the maximum of
the evidence (MacKay's automatic relevance determination): factors that the data do not ask for
fade, so that `rank` is an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix import memory
from gdmix.config import Factorization
from gdmix.coordinates.base import FitReport, Scores
from gdmix.data.dataset import Dataset
from gdmix.data.entity_blocks import GroupedRows, group_rows
from gdmix.data.keys import Keys
from gdmix.glm.block_map import BlockMap
from gdmix.glm.entities import EntitiesFit, EntityBlock, fit_entities
from gdmix.glm.factors import (
    centres,
    diagonal_places,
    expected_curvatures,
    packed_size,
    posterior_covariances,
    score_pairs,
    variances_of_pairs,
)
from gdmix.glm.large import fit_large
from gdmix.glm.losses import SQUARED
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.newton import Labels
from gdmix.glm.objective import dot
from gdmix.glm.penalty import EntityPenalty, QuadraticPenalty
from gdmix.glm.scoring import score_block
from gdmix.model.coefficients import positions
from gdmix.model.factorization import FactorizationModel, FactorSide

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
Sides = tuple[FactorSide, FactorSide]
Rests = tuple[FactorSide | None, FactorSide | None]

_FIRST_WEIGHT = 3.0  # of `l2: auto`, where the dispersion is 1
_LEAST_WEIGHT, _LARGEST_WEIGHT = 1e-6, 1e8
_FEATURE_TOLERANCE = 1e-6


class FactorizationCoordinate:
    """A factorization bound to its rows.

    Parameters
    ----------
    spec
        What to fit.
    train, validation
        The rows. Training rows that lack one of the entities train nothing.
    loss
        A loss of `gdmix.glm.losses`.
    threads
        Number of threads.
    seed
        Of the factors that the first fit starts from.
    """

    def __init__(
        self,
        spec: Factorization,
        train: Dataset,
        validation: Dataset | None,
        loss: int,
        threads: int,
        seed: int = 0,
    ) -> None:
        self._spec, self._loss, self._threads, self._seed = spec, loss, threads, seed
        self._train, self._validation = train, validation
        one, other = (train.keys[key] for key in spec.key_columns)
        self._codes = one.codes, other.codes
        self._whole = (one.codes >= 0) & (other.codes >= 0)
        self._parts = (
            self._part(one, other, spec.bags_of_sides[0]),
            self._part(other, one, spec.bags_of_sides[1]),
        )

    def _part(self, own: Keys, other: Keys, bags: tuple[str, ...]) -> _Part:
        rows, rank = self._train, self._spec.rank
        factors = np.zeros((max(len(other.values), 1), rank), np.float32)
        met = CsrMatrix.dense(factors, np.maximum(other.codes, 0).astype(np.int64))
        entity = np.where(self._whole, own.codes, np.int32(-1))
        grouped = group_rows(
            met, entity, len(own.values), rows.response, rows.weight, self._threads
        )
        features = None
        if bags:
            design = rows.design(bags)
            features = _features_of_entities(design, own.codes, len(own.values), self._threads)
        return _Part(own, grouped, features, self._threads)

    def fit(
        self, offset: F64, warm_start: FactorizationModel | None
    ) -> tuple[FactorizationModel, FitReport]:
        """Fit both sides in turn, as often as `alternations` says."""
        labels = Labels(self._train.response, self._train.weight, offset, self._loss, self._threads)
        sides, rests = self._first(labels) if warm_start is None else self._taken(warm_start)
        dispersion = self._dispersion(labels, sides)
        fits: dict[int, EntitiesFit] = {}
        logs: dict[int, F64] = {}
        d1, d2 = self._derivatives(labels, sides)
        for _ in range(self._spec.alternations):
            for number in (1, 0):
                fits[number], new = self._fit_side(number, sides, offset, d2)
                sides = (new, sides[1]) if number == 0 else (sides[0], new)
                d1, d2 = self._derivatives(labels, sides)
                new, logs[number] = self._spread(number, sides, d2, dispersion)
                new = self._foreseen(number, new)
                if self._spec.l2 == "auto" and warm_start is not None:
                    new = self._reweighted(number, new, dispersion)
                sides = (new, sides[1]) if number == 0 else (sides[0], new)
        spread = self._cost_of_spread(sides, logs, d2, dispersion)
        report = self._report(fits, sides, d1, d2)
        united = [
            side if rest is None else side.united(rest)
            for side, rest in zip(sides, rests, strict=True)
        ]
        return FactorizationModel((united[0], united[1]), spread), report

    @property
    def _is_variational(self) -> bool:
        return self._spec.method == "variational"

    def _first(self, labels: Labels) -> tuple[Sides, Rests]:
        """Return where a fit without a start begins: one side drawn at random."""
        spec, rank = self._spec, self._spec.rank
        dispersion = 1.0
        if self._loss == SQUARED:
            residual = labels.response - labels.offset
            weighted = labels.weight * residual
            total = max(float(labels.weight.sum()), 1e-300)
            dispersion = max(float(dot(residual.size, residual, weighted)) / total, 1e-12)
        start = _FIRST_WEIGHT * math.sqrt(dispersion)
        weight = start if spec.l2 == "auto" else spec.l2
        rng = np.random.default_rng(self._seed)
        sides: list[FactorSide] = []
        for part, key, bags in zip(self._parts, spec.key_columns, spec.bags_of_sides, strict=True):
            factors = np.zeros((part.size, rank), np.float32)
            if not sides:
                spread = min(1.0, math.sqrt(dispersion / weight))
                factors = rng.normal(scale=spread, size=factors.shape).astype(np.float32)
            uncertain = part.size if self._is_variational else 0
            side = FactorSide(
                key,
                part.keys.values,
                factors,
                np.zeros((uncertain, packed_size(rank)), np.float32),
                np.full(rank, weight),
                bags,
                np.zeros((part.n_columns + 1 if bags else 0, rank)),
            )
            sides.append(side)
        return (sides[0], sides[1]), (None, None)

    def _taken(self, model: FactorizationModel) -> tuple[Sides, Rests]:
        """Return an earlier model's sides over the entities of the rows, and what is left of it."""
        taken, rests = [], []
        for number, (part, side) in enumerate(zip(self._parts, model.sides, strict=True)):
            own, rest = self._taken_side(number, part, side)
            taken.append(own)
            rests.append(rest)
        return (taken[0], taken[1]), (rests[0], rests[1])

    def _taken_side(
        self, number: int, part: _Part, side: FactorSide
    ) -> tuple[FactorSide, FactorSide | None]:
        spec = self._spec
        places = positions(part.keys, side.entities, side.key)
        known = places >= 0
        l2 = side.l2 if spec.l2 == "auto" else np.full(spec.rank, spec.l2)
        factors = part.means(side).astype(np.float32)
        new = np.flatnonzero(~known)
        if number == 0 and new.size:
            # Not exactly where the product with another new entity would stay 0.
            rng = np.random.default_rng(self._seed)
            scale = np.minimum(1.0, 1.0 / np.sqrt(l2))
            factors[new] += (rng.normal(size=(new.size, spec.rank)) * scale).astype(np.float32)
        factors[known] = side.factors[places[known]]
        covariances = side.covariances[:0]
        if self._is_variational:
            covariances = np.zeros((part.size, packed_size(spec.rank)), np.float32)
            covariances[:, diagonal_places(spec.rank)] = 1.0 / l2
            if len(side.covariances):
                covariances[known] = side.covariances[places[known]]
        own = replace(
            side, entities=part.keys.values, factors=factors, covariances=covariances, l2=l2
        )
        is_rest = np.ones(len(side), np.bool_)
        is_rest[places[known]] = False
        rest = np.flatnonzero(is_rest)
        if not rest.size:
            return own, None
        left = np.zeros((rest.size, packed_size(spec.rank)), np.float32)
        return own, replace(
            side,
            entities=side.entities.take(pa.array(rest)),
            factors=side.factors[rest],
            covariances=side.covariances[rest] if len(side.covariances) else left,
        )

    def _fit_side(
        self, number: int, sides: Sides, offset: F64, d2: F64
    ) -> tuple[EntitiesFit, FactorSide]:
        """Fit the factors of one side, given the other's."""
        spec, part, own, other = self._spec, self._parts[number], sides[number], sides[1 - number]
        block, rows = part.block(other.factors), part.grouped.rows
        expected = self._expected(number, sides, d2)
        centre = part.centre(own, expected)
        own_offset = rows.gather(offset)
        if centre is not None:
            own_offset += score_block(block, part.ragged(centre), self._threads)
        start = own.factors if centre is None else own.factors - centre
        # Where weights are equal and there is no matrix, the solvers for few rows can be used.
        penalty = None if expected is None else part.penalty(own.l2, expected)
        fit = fit_entities(
            block,
            own_offset,
            loss=self._loss,
            l2=float(own.l2[0]),
            penalty=penalty,
            intercept=False,
            tolerance=spec.tolerance,
            max_iterations=spec.max_iterations,
            start=part.ragged(start),
            threads=self._threads,
        )
        factors = part.matrix(fit.coefficients)
        if centre is not None:
            factors = factors + centre
        return fit, replace(own, factors=_kept(part, factors, own.factors))

    def _expected(self, number: int, sides: Sides, d2: F64) -> F64 | None:
        """Return what the other side's uncertainty adds to the Hessian of each entity."""
        if not self._is_variational:
            return None
        part, other = self._parts[number], sides[1 - number]
        curvature = part.grouped.rows.gather(d2)
        return expected_curvatures(
            part.grouped.block, curvature, other.covariances, self._spec.rank, self._threads
        )

    def _spread(
        self, number: int, sides: Sides, d2: F64, dispersion: float
    ) -> tuple[FactorSide, F64]:
        """Return a side with the covariances of its factors, and log-determinants of these."""
        own, part = sides[number], self._parts[number]
        expected = self._expected(number, sides, d2)
        if expected is None:
            return own, np.empty(0)
        covariances, logs = posterior_covariances(
            part.block(sides[1 - number].factors),
            part.grouped.rows.gather(d2),
            expected,
            own.l2,
            dispersion,
            self._threads,
        )
        return replace(own, covariances=_kept(part, covariances, own.covariances)), logs

    def _foreseen(self, number: int, own: FactorSide) -> FactorSide:
        """Return a side with the regression of its factors on features fitted anew."""
        part = self._parts[number]
        if part.features is None:
            return own
        weight = part.has_rows.astype(np.float64)
        penalty = QuadraticPenalty(np.ones(part.n_columns + 1))
        columns = [
            fit_large(
                part.features,
                own.factors[:, j].astype(np.float64),
                weight,
                np.zeros(part.size),
                loss=SQUARED,
                penalty=penalty,
                tolerance=_FEATURE_TOLERANCE,
                start=np.ascontiguousarray(own.regression[:, j]),
            ).coefficients
            for j in range(self._spec.rank)
        ]
        return replace(own, regression=np.stack(columns, axis=1))

    def _reweighted(self, number: int, own: FactorSide, dispersion: float) -> FactorSide:
        """Return a side with its weights estimated anew."""
        part, rank = self._parts[number], self._spec.rank
        moments = (own.factors - part.means(own)) ** 2
        moments += own.covariances[:, diagonal_places(rank)]
        count = int(np.count_nonzero(part.has_rows))
        variance = moments[part.has_rows].sum(axis=0) / max(count, 1)
        l2 = dispersion / np.maximum(variance, 1e-300)
        return replace(own, l2=np.clip(l2, _LEAST_WEIGHT, _LARGEST_WEIGHT))

    def _derivatives(self, labels: Labels, sides: Sides) -> tuple[F64, F64]:
        """Return the first and the second derivative of the loss of each row."""
        z = memory.copy(labels.offset)
        z += score_pairs(sides[0].factors, sides[1].factors, *self._codes, self._threads)
        d1, d2 = memory.empty(z.size), memory.empty(z.size)
        labels.evaluate(z, d1, d2)
        return d1, d2

    def _variances(self, sides: Sides) -> F64:
        """Return the variance of each row's score."""
        one, other = ((side.factors, side.covariances) for side in sides)
        return variances_of_pairs(one, other, *self._codes, self._threads)

    def _dispersion(self, labels: Labels, sides: Sides) -> float:
        """Return the residual variance of the linear task, of others 1."""
        if self._loss != SQUARED or not self._is_variational:
            return 1.0
        z = score_pairs(sides[0].factors, sides[1].factors, *self._codes, self._threads)
        squares = (labels.response - labels.offset - z) ** 2 + self._variances(sides)
        count = int(np.count_nonzero(labels.weight))
        return max(float(dot(squares.size, squares, labels.weight)) / max(count, 1), 1e-12)

    def _cost_of_spread(
        self, sides: Sides, logs: dict[int, F64], d2: F64, dispersion: float
    ) -> float:
        """Return what uncertainty adds to the objective: expected loss, divergence of the prior."""
        if not self._is_variational:
            return 0.0
        total = 0.5 * dot(d2.size, d2, self._variances(sides))
        for number, side in enumerate(sides):
            traces = side.covariances[:, diagonal_places(side.rank)] @ side.l2
            prior = np.log(dispersion / side.l2).sum()
            costs = traces - dispersion * (logs[number] - prior + side.rank)
            total += 0.5 * float(costs[self._parts[number].has_rows].sum())
        return total

    def _report(self, fits: dict[int, EntitiesFit], sides: Sides, d1: F64, d2: F64) -> FitReport:
        """Sum up the last fits; the gradient is that of both sides where they have ended."""
        squared = 0.0
        for number, side in enumerate(sides):
            part, expected = self._parts[number], self._expected(number, sides, d2)
            if expected is None:
                expected = np.zeros((part.size, packed_size(side.rank)))
            centre = part.centre(side, expected)
            away = side.factors if centre is None else side.factors - centre
            block = part.block(sides[1 - number].factors)
            gradient = BlockMap(block, part.grouped.rows, False, self._threads).transposed(d1)
            penalty = part.penalty(side.l2, expected)
            gradient += penalty.products(block.coefficient_ptr, part.ragged(away))
            own = part.matrix(gradient)[part.has_rows]
            squared += float((own**2).sum())
        own_rows = [self._parts[number].has_rows for number in (0, 1)]
        of_both = [
            np.concatenate([array(fits[number])[own_rows[number]] for number in (0, 1)])
            for array in _ARRAYS
        ]
        report = FitReport.of(of_both[0], of_both[1], of_both[2])
        return replace(report, gradient_norm=math.sqrt(squared))

    def reweighted(self, spec: Factorization) -> FactorizationCoordinate:
        """Return the coordinate of the same rows, as they are prepared, with another weight."""
        other = copy(self)
        other._spec = spec
        return other

    def start(self, model: FactorizationModel) -> tuple[FactorizationModel, None]:
        """Take an earlier model as it is: its entities without rows stay in it."""
        return model, None

    def score(self, model: FactorizationModel) -> Scores:
        """Score training and validation rows."""
        train, validation = (
            None if rows is None else model.score(rows, self._threads)
            for rows in (self._train, self._validation)
        )
        assert train is not None
        return Scores(train, validation)

    def penalty(self, model: FactorizationModel) -> float:
        """Return the penalty term of the objective, and the cost of uncertainty."""
        total = model.spread
        sides, _ = self._taken(model)
        for part, side in zip(self._parts, sides, strict=True):
            away = (side.factors - part.means(side))[part.has_rows]
            total += 0.5 * float((away**2 @ side.l2).sum())
            total += 0.5 * float((side.regression**2 @ side.l2).sum())
        return total


_ARRAYS: tuple[Callable[[EntitiesFit], NDArray[np.generic]], ...] = (
    lambda fit: fit.status,
    lambda fit: fit.iterations,
    lambda fit: fit.gradient_norm,
)


@dataclass(frozen=True)
class _Part:
    """What one side of the factorization knows of the training rows.

    Attributes
    ----------
    keys
        Its entities, E of them.
    grouped
        Rows by entity; their features are factors of the other side.
    features
        (E, features) by which its factors are foretold, None if they are not.
    """

    keys: Keys
    grouped: GroupedRows
    features: CsrMatrix | None
    threads: int

    @property
    def size(self) -> int:
        """Number of entities."""
        return len(self.keys.values)

    @property
    def n_columns(self) -> int:
        """Number of features."""
        return 0 if self.features is None else self.features.n_columns

    @property
    def has_rows(self) -> NDArray[np.bool_]:
        """(E,) whether it has a row to train with."""
        return np.diff(self.grouped.block.row_ptr) > 0

    def block(self, met: F32) -> EntityBlock:
        """Return the rows with these factors of the other side."""
        return replace(self.grouped.block, values=met.reshape(-1))

    def means(self, side: FactorSide) -> F64:
        """Return where the penalty of each entity's factors is 0, (E, k)."""
        if self.features is None:
            return np.zeros((self.size, side.rank))
        return side.foretold(self.features, self.threads)

    def centre(self, side: FactorSide, expected: F64 | None) -> F64 | None:
        """Return where the penalty, and what uncertainty adds to it, is least; None: at 0."""
        if self.features is None:
            return None
        means = self.means(side)
        if expected is None:
            return means
        return centres(self.grouped.block, expected, side.l2, means, self.threads)

    def penalty(self, l2: F64, expected: F64) -> EntityPenalty:
        """Return the quadratic penalty of all entities, the unused intercepts' included."""
        rank = l2.size
        weights = np.tile(np.append(0.0, l2), self.size)
        width = packed_size(rank + 1)
        a, b = np.tril_indices(rank)
        hessians = np.zeros((self.size, width))
        hessians[:, (a + 1) * (a + 2) // 2 + b + 1] = expected
        pointers = np.arange(self.size + 1) * width
        return EntityPenalty(weights, hessian_ptr=pointers, hessians=hessians.reshape(-1))

    def ragged(self, matrix: NDArray[np.floating]) -> F64:
        """Return (E, k) as coefficients of the block, the unused intercepts 0."""
        wide = np.zeros((self.size, matrix.shape[1] + 1))
        wide[:, 1:] = matrix
        return wide.reshape(-1)

    def matrix(self, ragged: F64) -> F64:
        """Return coefficients of the block as (E, k)."""
        return ragged.reshape(self.size, -1)[:, 1:]


def _kept(part: _Part, new: NDArray[np.floating], before: F32) -> F32:
    """Return the new values of entities that have rows, rounded as designs hold them."""
    return np.where(part.has_rows[:, None], new, before).astype(np.float32)


def _features_of_entities(
    design: CsrMatrix, entity: I32, n_entities: int, threads: int
) -> CsrMatrix:
    """Return the mean of each entity's rows, (E, features)."""
    nothing = np.zeros(design.n_rows)
    grouped = group_rows(design.sparse(), entity, n_entities, nothing, nothing, threads)
    block, n = grouped.block, np.diff(grouped.block.row_ptr)
    sums = BlockMap(block, grouped.rows, True, threads).transposed(np.ones(design.n_rows))
    sizes = np.diff(block.coefficient_ptr)
    is_feature = grouped.columns > 0
    values = (sums / np.repeat(np.maximum(n, 1), sizes))[is_feature]
    columns = grouped.columns[is_feature] - np.uint32(1)
    return CsrMatrix(
        memory.pointers(sizes - 1), columns, values.astype(np.float32), design.n_columns
    )
