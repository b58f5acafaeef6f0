"""A fixed effect whose rows are divided among the tasks of a barrier stage.

All tasks run at once and know each other: each runs Newton's method on its shard of the rows and
its slice of the coefficients (`glm.distributed`), in step with the others. One stage is one fit. A
lost executor ends the stage, and Spark runs it again.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix.config import FixedEffect
from gdmix.coordinates.base import FitReport
from gdmix.coordinates.fixed_effect import FixedEffectCoordinate, certain
from gdmix.coordinates.regularization import Regularization
from gdmix.coordinates.uncertainty import (
    CurvatureKind,
    check_room_for_matrices,
    needs_matrices,
)
from gdmix.engines.spark.cluster import united
from gdmix.engines.spark.collective import barrier_group
from gdmix.engines.spark.coordinates import SparkCoordinate
from gdmix.engines.spark.exchange import Addressed, Pieces, addressed
from gdmix.engines.spark.scores import Offsets
from gdmix.engines.spark.tasks.fitting import FitTask, homewards
from gdmix.engines.spark.tasks.kinds import FACTS, SUMS, TRAIN, VALIDATION
from gdmix.glm.distributed import DistributedMap, fit_large_distributed
from gdmix.glm.penalty import QuadraticPenalty
from gdmix.model.base import CoordinateModel
from gdmix.model.coefficient_files import read_slice, write_slice
from gdmix.model.coefficients import FixedCoefficients
from gdmix.model.linear import LinearModel
from gdmix.model.stored import StoredModel

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Slices:
    """The L2 weights of all coefficients, told so that a slice of them is quickly made.

    Attributes
    ----------
    uniform
        Of the intercept and of all slopes, where that is all there is.
    weights
        (d,) else.
    """

    uniform: tuple[float, float] | None
    weights: F64 | None

    @staticmethod
    def of(regularization: Regularization) -> Slices:
        """Return the weights of a penalty that has nothing else."""
        uniform = regularization.uniform
        return Slices(uniform, None if uniform is not None else regularization.weight)

    def penalty(self, held: slice) -> QuadraticPenalty:
        """Return the penalty of a slice of the coefficients."""
        if self.uniform is None:
            assert self.weights is not None
            return QuadraticPenalty(self.weights[held])
        intercept, slopes = self.uniform
        weights = np.full(held.stop - held.start, slopes)
        if held.start == 0:
            weights[:1] = intercept
        return QuadraticPenalty(weights)


def is_distributed(spec: Any, regularization: Regularization | None, has_prior: bool) -> bool:
    """Whether a coordinate can be fitted on shards: its penalty is an L2 weight per column."""
    return (
        isinstance(spec, FixedEffect)
        and regularization is not None
        and regularization.is_linear
        and not has_prior
    )


@dataclass
class SparkFixedEffect(SparkCoordinate):
    """A fixed effect on as many shards as tasks run at once.

    Attributes
    ----------
    spec
        What to fit.
    """

    spec: FixedEffect = field(kw_only=True)

    def _fitted(self, task: FitTask, offset: Offsets) -> Pieces:
        """Return scores and facts of a fit, at home."""
        assert self.regularization is not None
        pieces = united(self.prepared, offset.at(self.layout))
        slices, token = Slices.of(self.regularization), secrets.token_bytes()
        shard = partial(fit_shard, task, self.spec, slices, token)
        # What follows is a shuffle: Spark does not run a barrier stage again if it is the last.
        done = pieces.barrier().mapPartitions(self.cluster.errors.guard(shard))
        return self.cluster.send(done, self.homes)

    def _penalty_of(self, model: StoredModel, facts: list[Any]) -> float:
        known = facts[0].get("joint_penalty")
        if known is not None:
            return float(known)
        assert self.regularization is not None
        loaded = model.loaded
        assert isinstance(loaded, LinearModel)
        return self.regularization.term(loaded.coefficients)

    def curvature(
        self, model: CoordinateModel, offset: Offsets, kinds: Collection[CurvatureKind]
    ) -> tuple[Any, float]:
        """Return the model with what is asked for, not scaled; and its degrees of freedom."""
        assert self.regularization is not None
        loaded = self.own(model).loaded
        assert isinstance(loaded, LinearModel)
        whole, d = needs_matrices(kinds), loaded.coefficients.values.size
        if whole:
            check_room_for_matrices(self.layout.name, d, d * d, kinds)
        task = self._task(self.own(model), self.work.folder)
        pieces = united(self.prepared, offset.at(self.layout))
        found = self.cluster.map(pieces, partial(sum_hessian, task, whole))
        sums = self.cluster.added_up(found)["hessian"]
        result, freedom = certain(loaded, sums, self.regularization.quadratic(), kinds)
        return result, freedom

    def with_dispersion(self, model: CoordinateModel, dispersion: float) -> Any:
        """Return a model with its variances times the residual variance."""
        assert isinstance(model, LinearModel)
        coefficients = model.coefficients
        assert coefficients.variances is not None
        scaled = replace(coefficients, variances=coefficients.variances * dispersion)
        return replace(model, coefficients=scaled, dispersion=dispersion)


def fit_shard(
    task: FitTask,
    spec: FixedEffect,
    slices: Slices,
    token: bytes,
    pieces: Iterable[Addressed],
) -> Iterator[Addressed]:
    """Fit, together with the other tasks of the stage; write a slice of the model.

    Yields
    ------
    tuple
        Scores of the shard's rows, addressed to their homes; facts.
    """
    from pyspark import BarrierTaskContext

    context = BarrierTaskContext.get()
    rank = context.partitionId()
    prepared, offset, _ = task.open(pieces, rank)
    coordinate: FixedEffectCoordinate = prepared.coordinate
    with barrier_group(context, token) as group:
        rows = coordinate.rows_of(offset)
        design = DistributedMap(rows.design, spec.intercept, 1, group)
        start = None
        if task.model is not None:
            start = read_slice(task.model.folder, design.held)
        penalty = slices.penalty(design.held)
        minimum = fit_large_distributed(
            design,
            rows.response,
            rows.weight,
            rows.offset,
            loss=rows.loss,
            penalty=penalty,
            tolerance=spec.tolerance,
            max_iterations=spec.max_iterations,
            start=start,
        )
        theta = minimum.coefficients
        scores = {
            role: DistributedMap(own, spec.intercept, 1, group).scores(theta)
            for role, own in zip((TRAIN, VALIDATION), coordinate.designs, strict=True)
            if own is not None
        }
        joint_penalty = 0.5 * float(group.sum(np.array([penalty.between(theta, theta)]))[0])
    write_slice(theta, design.held, task.folder, rank)
    yield from homewards(prepared.sizes, scores, rank)
    report = FitReport(1, {minimum.status: 1}, minimum.iterations, minimum.gradient_norm)
    none = FitReport(0, {}, 0.0, 0.0)  # of the same model
    entry = LinearModel(spec.features, spec.intercept, FixedCoefficients(np.empty(0))).describe()
    facts = {
        "report": report if rank == 0 else none,
        "joint_penalty": joint_penalty,
        "entry": entry,
    }
    yield from addressed(rank % task.homes, FACTS, rank, facts)


def sum_hessian(
    task: FitTask, whole: bool, partition: int, pieces: Iterable[Addressed]
) -> Iterator[Addressed]:
    """Send a shard's part of the Hessian, or of its diagonal, to where they are added up."""
    prepared, offset, model = task.open(pieces, partition)
    sums = prepared.coordinate.hessian_sums(model, offset, whole)
    yield from addressed(0, SUMS, partition, {"hessian": sums})
