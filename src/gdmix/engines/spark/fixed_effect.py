"""A fixed effect whose rows are divided among the tasks of a barrier stage.

All tasks run at once and know each other: each runs Newton's method on its shard of the rows and
its slice of the coefficients (`glm.distributed`), in step with the others. One stage is one fit. A
lost executor ends the stage, and Spark runs it again.
"""

from __future__ import annotations

import secrets
import shutil
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix.config import FixedEffect
from gdmix.coordinates.base import FitReport
from gdmix.coordinates.fixed_effect import FixedEffectRows, certain, check_room
from gdmix.coordinates.prior import EarlierModel
from gdmix.coordinates.uncertainty import (
    CurvatureKind,
    needs_matrices,
)
from gdmix.engines.spark.cluster import united
from gdmix.engines.spark.collective import barrier_group
from gdmix.engines.spark.coordinates import SparkCoordinate
from gdmix.engines.spark.exchange import Addressed, Pieces, addressed
from gdmix.engines.spark.scores import Offsets
from gdmix.engines.spark.tasks.fitting import FitTask, homewards
from gdmix.engines.spark.tasks.kinds import FACTS, SUMS, TRAIN, VALIDATION
from gdmix.glm.distributed import (
    DistributedMap,
    DividedPenalty,
    fit_large_distributed,
    held_slice,
)
from gdmix.glm.group import Group, total
from gdmix.glm.penalty import QuadraticPenalty
from gdmix.model.base import CoordinateModel
from gdmix.model.coefficient_files import read_slice, write_slice
from gdmix.model.coefficients import FixedCoefficients
from gdmix.model.linear import LinearModel
from gdmix.model.stored import StoredModel

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Slices:
    """The penalty of all coefficients, told so that a slice of it is quickly had.

    Attributes
    ----------
    uniform
        L2 weights of the intercept and of all slopes, where that is all there is.
    folders
        Else where the ``weights`` lie, as coefficients do; and, if there are any, a prior's
        ``means``, and what else `fit_large_distributed` takes: ``l1``, ``lower``, ``upper``.
    matrix
        File of the penalty's matrix, if it has one.
    """

    uniform: tuple[float, float] | None
    folders: Mapping[str, Path] = field(default_factory=dict)
    matrix: Path | None = None

    def penalty(self, held: slice, group: Group) -> QuadraticPenalty:
        """Return the penalty of a slice of the coefficients, around their means."""
        if self.uniform is None:
            matrix = None
            if self.matrix is not None:
                matrix = np.array(np.load(self.matrix, mmap_mode="r")[held])
            weights = read_slice(self.folders["weights"], held)
            return DividedPenalty(weights, matrix, held=held, group=group)
        intercept, slopes = self.uniform
        weights = np.full(held.stop - held.start, slopes)
        if held.start == 0:
            weights[:1] = intercept
        return QuadraticPenalty(weights)

    def read(self, held: slice) -> dict[str, F64]:
        """Return a slice of all there is besides the weights."""
        names = self.folders.keys() - {"weights"}
        return {name: read_slice(self.folders[name], held) for name in names}


@dataclass
class SparkFixedEffect(SparkCoordinate):
    """A fixed effect on as many shards as tasks run at once.

    Attributes
    ----------
    spec
        What to fit.
    prior
        An earlier model to stay near.
    """

    spec: FixedEffect = field(kw_only=True)
    prior: EarlierModel | None = field(kw_only=True)
    _slices: Slices | None = None

    def reweigh(self, group_weight: F64) -> None:
        """Set the L2 weights of the groups of columns."""
        super().reweigh(group_weight)
        self._group_weight = self._slices = None  # tasks are told of slices alone

    def _fitted(self, task: FitTask, offset: Offsets) -> Pieces:
        """Return scores and facts of a fit, at home."""
        pieces = united(self.prepared, offset.at(self.layout))
        if self._slices is None:
            self._slices = self._written()
        shard = partial(fit_shard, task, self.spec, self._slices, secrets.token_bytes())
        # What follows is a shuffle: Spark does not run a barrier stage again if it is the last.
        done = pieces.barrier().mapPartitions(self.cluster.errors.guard(shard))
        return self.cluster.send(done, self.homes)

    def _written(self) -> Slices:
        """Write the penalty where a task reads its slice of it."""
        assert self.regularization is not None
        if self.prior is None and self.regularization.uniform is not None:
            return Slices(self.regularization.uniform)
        mean, penalty = self._around()
        vectors = {"weights": penalty.weights, **(self.regularization.proximal or {})}
        if mean is not None:
            vectors["means"] = mean
        folders = {name: self._in_slices(name, own) for name, own in vectors.items()}
        matrix = None
        if penalty.matrix is not None:
            matrix = folders["weights"] / "matrix.npy"
            np.save(matrix, penalty.matrix)
        slices = Slices(None, folders, matrix)
        for folder in folders.values():
            weakref.finalize(slices, shutil.rmtree, folder, ignore_errors=True)
        return slices

    def _in_slices(self, name: str, values: F64) -> Path:
        """Write a number of each coefficient, as the coefficients are written; return where."""
        folder, size = self.work.new(f"{self.layout.name}.{name}"), self.layout.partitions
        for rank in range(size):
            held = held_slice(values.size, rank, size)
            write_slice(values[held], held, folder, rank)
        return folder

    def _around(self) -> tuple[F64 | None, QuadraticPenalty]:
        """Return the means of the coefficients, if not zero, and the penalty around them."""
        assert self.regularization is not None
        if self.prior is None:
            return None, self.regularization.quadratic()
        return self.prior.of_fixed(self.regularization.weight)

    def _penalty_of(self, model: StoredModel, facts: list[Any]) -> float:
        known = facts[0].get("joint_penalty")
        if known is not None:
            return float(known)
        loaded = model.loaded
        assert isinstance(loaded, LinearModel) and self.regularization is not None
        mean, penalty = self._around()
        if mean is None:
            return self.regularization.term(loaded.coefficients)
        apart = loaded.coefficients.values - mean
        return 0.5 * penalty.between(apart, apart)

    def curvature(
        self, model: CoordinateModel, offset: Offsets, kinds: Collection[CurvatureKind]
    ) -> tuple[Any, float]:
        """Return the model with what is asked for, not scaled; and its degrees of freedom."""
        loaded = self.own(model).loaded
        assert isinstance(loaded, LinearModel)
        whole, d = needs_matrices(kinds), loaded.coefficients.values.size
        check_room(self.spec, d, kinds)
        task = self._task(self.own(model), self.work.folder)
        pieces = united(self.prepared, offset.at(self.layout))
        found = self.cluster.map(pieces, partial(sum_hessian, task, whole))
        sums = self.cluster.added_up(found)["hessian"]
        result, freedom = certain(loaded, sums, self._around()[1], kinds)
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
    # Without the model: only a slice of it is read.
    prepared, offset, _ = replace(task, model=None).open(pieces, rank)
    coordinate: FixedEffectRows = prepared.coordinate
    with barrier_group(context, token) as group:
        rows = coordinate.rows_of(offset)
        design = DistributedMap(rows.design, spec.intercept, 1, group)
        penalty, terms = slices.penalty(design.held, group), slices.read(design.held)
        mean = terms.pop("means", None)
        start = None
        if task.model is not None:
            start = read_slice(task.model.folder, design.held)
        base = rows.offset
        if mean is not None:
            base = base + design.scores(mean)
            start = None if start is None else start - mean
        minimum = fit_large_distributed(
            design,
            rows.response,
            rows.weight,
            base,
            loss=rows.loss,
            penalty=penalty,
            **terms,
            tolerance=spec.tolerance,
            max_iterations=spec.max_iterations,
            start=start,
        )
        apart = minimum.coefficients
        theta = apart if mean is None else apart + mean
        scores = {
            role: DistributedMap(own, spec.intercept, 1, group).scores(theta)
            for role, own in zip((TRAIN, VALIDATION), coordinate.designs, strict=True)
            if own is not None
        }
        joint_penalty = 0.5 * total(group, penalty.between(apart, apart))
        if "l1" in terms:
            joint_penalty += total(group, float(terms["l1"] @ np.abs(theta)))
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
