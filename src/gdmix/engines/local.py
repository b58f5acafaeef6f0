"""One machine: arrays, in memory or beyond it in mapped files, and threads."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from copy import copy
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix import memory
from gdmix._version import __version__
from gdmix.config import (
    JOINT,
    AvroLayout,
    CoordinateSpec,
    ExternalScores,
    ModelConfig,
)
from gdmix.coordinates.base import Coordinate, FitReport, JudgedCoordinate, Scores
from gdmix.coordinates.joint import LinearCoordinate, fit_jointly
from gdmix.coordinates.random_effect import RandomEffectCoordinate
from gdmix.coordinates.recentring import recentre
from gdmix.coordinates.regularization import regularization
from gdmix.coordinates.uncertainty import kinds_of, with_uncertainty
from gdmix.coordinates.variance_components import WeightEstimator
from gdmix.data.dataset import Dataset, load_rows, load_training
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.feature_summary import FeatureSummary, summarize
from gdmix.data.folds import fold_numbers, rows_where
from gdmix.data.gdmix_scores import TRAIN_SCORES, VALIDATION_SCORES, write_score_folders
from gdmix.data.read import Source, open_rows
from gdmix.data.schema import RowSchema
from gdmix.data.score_files import score_tables, without, write_scores
from gdmix.engines.binding import BoundRows, check_before_reading, reweighted
from gdmix.errors import ConfigError, DataError
from gdmix.evaluation.evaluate import evaluate
from gdmix.glm.losses import total_loss
from gdmix.glm.newton import Labels
from gdmix.glm.threads import available_threads, map_threads
from gdmix.model.any_model import read_any_model
from gdmix.model.base import CoordinateModel
from gdmix.model.external import ExternalModel
from gdmix.model.linear import LinearModel, linear_models, united
from gdmix.model.mixed_model import LOSSES, TrainedModel
from gdmix.model.store import FolderOf, nowhere, write_model
from gdmix.model.warm_start import all_aligned, check_initial_model

F64 = NDArray[np.float64]

_JOINT_VECTORS = 12  # of all coefficients, that Newton's method and its inner solver hold


class LocalEngine:
    """Runs in this process.

    Parameters
    ----------
    fits
        Folder in which long fits keep their state, so that a killed one can go on.
    """

    def __init__(self, fits: Path | None = None) -> None:
        self._fits = fits

    def prepare(
        self, config: ModelConfig, train: Source, validation: Source | None
    ) -> LocalWorkspace:
        """Read and check rows, index features, build coordinates."""
        name = f"{__version__} {config.model_dump_json(exclude={'output', 'scratch', 'tune'})}"
        workspace: LocalWorkspace | None = memory.recall(name)
        if workspace is None:
            workspace = LocalWorkspace(
                config, *self._read(config, train, validation), fits=self._fits
            )
            memory.keep(name, workspace)
        return workspace

    def prepare_fits(
        self, config: ModelConfig, train: Source, names: Collection[str]
    ) -> dict[str, Coordinate[Any]]:
        """Read rows for these coordinates alone, as `prepare` does for all."""
        rows, _, indices, _ = self._read(config, train, None)
        bound = BoundRows(config, rows, None, indices, config.threads or available_threads())
        return {name: bound.coordinate(name) for name in names}

    def prepare_folds(
        self, config: ModelConfig, train: Source, folds: int, seed: int
    ) -> list[LocalWorkspace]:
        """Read rows once; return a workspace per fold, in which it is what the others validate.

        Features are indexed from all rows; scores from files are looked up among those of the
        training rows. The rows are held as often as there are folds.
        """
        rows, _, indices, earlier = self._read(config, train, None)
        number = fold_numbers(rows.uid, folds, seed)
        config = _with_scores_of_folds(config)
        workspaces = []
        for fold in range(folds):
            if not (number == fold).any():
                raise DataError(f"{rows.label}: fold {fold + 1} of {folds} has no rows")
            parts = [
                rows_where(rows, chosen, f"{rows.label}, {what} fold {fold + 1} of {folds}")
                for chosen, what in ((number != fold, "without"), (number == fold, "in"))
            ]
            workspaces.append(LocalWorkspace(config, parts[0], parts[1], indices, earlier))
        return workspaces

    def _read(
        self, config: ModelConfig, train: Source, validation: Source | None
    ) -> tuple[Dataset, Dataset | None, Mapping[str, FeatureIndex], Mapping[str, CoordinateModel]]:
        """Return training rows, validation rows, feature indices, and earlier models."""
        _check_external(config, validation)
        check_before_reading(config)
        train = open_rows(train, "training data")
        initial = None
        if config.earlier_model is not None:
            types = {field.name: field.type for field in train.schema}
            initial = read_any_model(config.earlier_model, config, types)
            check_initial_model(initial, config)
        schema = RowSchema(
            config.columns,
            config.used_features,
            config.entities,
            config.group_columns,
            derived=config.derived_entities,
            optional=config.optional_entities,
        )
        mode = config.validate_mode
        threads = config.threads or available_threads()
        # What a coordinate keeps of an earlier model is not left out for being rare.
        always = {
            bag: initial.indices[bag]
            for name, spec in _keeping(config).items()
            for bag in spec.bags
            if initial is not None and name in initial.coordinates
        }
        train_rows, indices = load_training(
            train, schema, config.task, mode, threads=threads, always=always
        )
        if initial is not None:
            train_rows, indices = _with_locked_features(config, train_rows, indices, initial)
        validation_rows = None
        if validation is not None:
            validation_rows = load_rows(
                validation, schema, indices, config.task, mode, "validation data", threads
            )
        earlier = {} if initial is None else all_aligned(config, initial, indices)
        return train_rows, validation_rows, indices, earlier


def _with_scores_of_folds(config: ModelConfig) -> ModelConfig:
    """Let scores from files be those of the training rows for the rows that are held out, too."""
    coordinates = {
        name: spec.model_copy(update={"validation": spec.train})
        if isinstance(spec, ExternalScores)
        else spec
        for name, spec in config.coordinates.items()
    }
    return config.model_copy(update={"coordinates": coordinates})


def _check_external(config: ModelConfig, validation: Source | None) -> None:
    for name, spec in config.coordinates.items():
        lacks = isinstance(spec, ExternalScores) and spec.validation is None
        if lacks and validation is not None:
            raise ConfigError(f"coordinates.{name}: needs `validation`: scores of those rows")


def _keeping(config: ModelConfig) -> Mapping[str, CoordinateSpec]:
    """Return the coordinates that keep all features that an earlier model has."""
    return config.locked if config.prior is None else {**config.linear, **config.locked}


def _with_locked_features(
    config: ModelConfig, rows: Dataset, indices: Mapping[str, FeatureIndex], initial: TrainedModel
) -> tuple[Dataset, Mapping[str, FeatureIndex]]:
    """Let the index know all features of locked coordinates and of those with a prior."""
    wider = {
        bag: indices[bag].extended(initial.indices[bag])
        for name, spec in _keeping(config).items()
        for bag in spec.bags
        if config.features[bag].feature_list is None and name in initial.coordinates
    }
    bags = {bag: rows.bags[bag].widened(len(index)) for bag, index in wider.items()}
    return replace(rows, bags={**rows.bags, **bags}), {**indices, **wider}


class LocalWorkspace:
    """A configuration bound to rows of this machine."""

    def __init__(
        self,
        config: ModelConfig,
        train: Dataset,
        validation: Dataset | None,
        indices: Mapping[str, FeatureIndex],
        earlier: Mapping[str, CoordinateModel],
        fits: Path | None = None,
    ) -> None:
        self._config, self._indices = config, indices
        self._train, self._validation = train, validation
        self.scores = LocalScores(config, train, validation)
        # Before any work: a metric that can't be computed of these labels says so now.
        self.scores.evaluate()
        self._threads = threads = config.threads or available_threads()
        fitted = config.fitted
        penalties = {
            name: regularization(spec, indices, self._summary)
            for name, spec in config.linear.items()
        }
        rows = BoundRows(config, train, validation, indices, threads, fits)
        self.coordinates: dict[str, Coordinate[Any]] = {
            name: rows.coordinate(name, penalties.get(name), earlier.get(name)) for name in fitted
        }
        self._tell_judges()
        self.start: dict[str, CoordinateModel] = {}
        # Locked coordinates, and the models of entities that are not fitted here.
        self._held: dict[str, tuple[LinearModel, Scores]] = {}
        self._external: dict[str, tuple[CoordinateModel, Scores]] = {}
        for name, own in config.coordinates.items():
            if isinstance(own, ExternalScores):
                self._read_scores(name, own)
        for name, model in earlier.items():
            rest: CoordinateModel | None = model
            if name in fitted:
                self.start[name], rest = self.coordinates[name].start(model)
            if isinstance(rest, LinearModel):
                self._hold(name, rest, penalties[name].term(rest.coefficients))
            elif rest is not None:
                self._external[name] = rest, self._scores_of(rest)
                self.scores.hold(self._external[name][1], 0.0)

        if config.solver == JOINT:
            _check_room_for_joint(sum(c.penalty_vector().size for c in self._linear.values()))

    def _tell_judges(self) -> None:
        """Tell coordinates that look at validation rows what all others add to these."""
        for name, coordinate in self.coordinates.items():
            if isinstance(coordinate, JudgedCoordinate) and self._validation is not None:
                offset = partial(self.scores.validation_without, name)
                self.coordinates[name] = coordinate.judged_beside(offset)

    def _summary(self, bag: str) -> FeatureSummary:
        return summarize(self._train.bags[bag], threads=self._threads)

    def rebound(self, config: ModelConfig) -> LocalWorkspace:
        """Return the same rows, as they are prepared, under other regularisation weights.

        Parameters
        ----------
        config
            Differs in `l2`, `intercept_l2` and `l1` of coordinates alone.
        """
        other = copy(self)
        other._config = config
        other.scores = LocalScores(config, self._train, self._validation)
        penalties = {
            name: regularization(spec, self._indices, self._summary)
            for name, spec in config.linear.items()
        }
        other.coordinates = {
            name: reweighted(coordinate, config.coordinates[name], penalties.get(name))
            for name, coordinate in self.coordinates.items()
        }
        other._tell_judges()
        for _, scores in self._external.values():
            other.scores.hold(scores, 0.0)
        for name, (model, scores) in self._held.items():
            other.scores.hold(scores, penalties[name].term(model.coefficients))
        return other

    @property
    def judged_weight(self) -> float:
        """Weight of the rows that metrics are of."""
        rows = self._train if self._validation is None else self._validation
        return float(rows.weight.sum())

    @property
    def _linear(self) -> dict[str, LinearCoordinate]:
        coordinates = self.coordinates.items()
        return {name: c for name, c in coordinates if isinstance(c, LinearCoordinate)}

    def _hold(self, name: str, model: LinearModel, penalty: float) -> None:
        self._held[name] = model, self._scores_of(model)
        self.scores.hold(self._held[name][1], penalty)

    def _scores_of(self, model: CoordinateModel) -> Scores:
        train, validation = (
            None if rows is None else model.score(rows, self._threads)
            for rows in (self._train, self._validation)
        )
        assert train is not None
        return Scores(train, validation)

    def _read_scores(self, name: str, spec: ExternalScores) -> None:
        model, validation = ExternalModel(spec.uid, spec.score, spec.missing), None
        train = replace(model, source=spec.train).score(self._train)
        if self._validation is not None:
            validation = replace(model, source=spec.validation).score(self._validation)
        self._external[name] = model, Scores(train, validation)
        self.scores.hold(self._external[name][1], 0.0)

    def recentre(self, models: Mapping[str, CoordinateModel]) -> dict[str, CoordinateModel]:
        """Move what random effects share into the fixed effects."""
        sizes = {bag: len(index) for bag, index in self._indices.items()}
        uncovered = {
            name: coordinate.uncovered
            for name, coordinate in self.coordinates.items()
            if isinstance(coordinate, RandomEffectCoordinate)
        }
        weights = {
            name: coordinate.regularization.weight
            for name, coordinate in self._linear.items()
            if coordinate.is_plain
        }
        return {**models, **recentre(linear_models(models), weights, sizes, uncovered)}

    def fit_jointly(
        self, models: Mapping[str, CoordinateModel]
    ) -> tuple[dict[str, CoordinateModel], FitReport]:
        """Fit all coordinates at once, from the given models."""
        specs = self._config.fitted_linear.values()
        fitted, report = fit_jointly(
            self._linear,
            linear_models(models),
            self._labels(),
            min(spec.tolerance for spec in specs),
            max(spec.max_iterations for spec in specs),
        )
        return {**models, **fitted}, report

    @property
    def weights(self) -> WeightEstimator | None:
        """Estimates L2 weights, where a coordinate asks for it."""
        estimated = frozenset(self._config.auto)
        if not estimated:
            return None
        coordinates = self._linear
        size = sum(c.penalty_vector().size for c in coordinates.values())
        return WeightEstimator(coordinates, estimated, self._labels, joint=_has_room(size))

    def _labels(self) -> Labels:
        """Return the labels of the training rows; the offset is all that no linear one adds."""
        rows, loss = self._train, LOSSES[self._config.task]
        offset = self.scores.total_without(*self._linear)
        return Labels(rows.response, rows.weight, offset, loss, self._threads)

    def trained_model(self, models: Mapping[str, CoordinateModel]) -> TrainedModel:
        """Put coordinates together with what scoring needs."""
        config = self._config
        models = self._with_uncertainty(models)
        whole: dict[str, CoordinateModel] = {}
        linear = linear_models(models)
        for name in config.coordinates:
            if name in self._external:
                whole[name] = self._external[name][0]
            elif name not in self._held:
                whole[name] = models[name]
            elif name not in models:
                whole[name] = self._held[name][0]
            else:
                whole[name] = united(linear[name], self._held[name][0])
        return TrainedModel(
            config.task,
            config.columns,
            config.used_features,
            self._indices,
            whole,
            config.derived_entities,
        )

    def _with_uncertainty(
        self, models: Mapping[str, CoordinateModel]
    ) -> dict[str, CoordinateModel]:
        """Add the variances and Hessians that were asked for."""
        config = self._config
        specs = {n: spec for n, spec in config.linear.items() if n in self._linear}
        if not any(kinds_of(spec) for spec in specs.values()):
            return dict(models)
        for name, model in models.items():  # the one that was kept need not be the last
            self.scores.put(name, self.coordinates[name].score(model))
        rows, loss = self._train, LOSSES[config.task]
        known = with_uncertainty(
            self._linear,
            specs,
            linear_models(models),
            {name: self.scores.total_without(name) for name in specs},
            loss,
            (
                float(total_loss(loss, self.scores.total_without(), rows.response, rows.weight)),
                int(np.count_nonzero(rows.weight)),
            ),
        )
        return {**models, **known}

    def write_model(
        self,
        models: Mapping[str, CoordinateModel],
        folder: Path,
        avro: AvroLayout | None = None,
        folder_of: FolderOf = nowhere,
    ) -> None:
        """Write the model that is trained."""
        write_model(self.trained_model(models), folder, avro, folder_of)

    def write_scores(
        self, models: Mapping[str, CoordinateModel], folder: Path, avro: AvroLayout | None = None
    ) -> None:
        """Write every coordinate's scores of the final models."""
        parts = {}
        for name in self._config.coordinates:
            fitted = [self.coordinates[name].score(models[name])] if name in models else []
            held = [of[name][1] for of in (self._held, self._external) if name in of]
            parts[name] = reduce(Scores.plus, fitted + held)
        splits = [(TRAIN_SCORES, self._train, {n: s.train for n, s in parts.items()})]
        if self._validation is not None:
            own = {n: s.validation for n, s in parts.items() if s.validation is not None}
            splits.append((VALIDATION_SCORES, self._validation, own))
        files: list[tuple[Iterator[pa.Table], Path]] = []
        for split, every, own in splits:
            rows = replace(every, keys=without(every.keys, self._config.text_keys))
            if avro is not None:
                write_score_folders(folder, split, rows, own, self._config, avro)
                continue
            total = memory.copy(rows.offset)
            for score in own.values():
                total += score
            for name, score in own.items():
                tables = score_tables(rows, self._config.task, total, {"score": score})
                files.append((tables, folder / name / split))
        map_threads(lambda file: write_scores(*file), files, self._threads)


def _check_room_for_joint(size: int) -> None:
    if not _has_room(size):
        limit = memory.limit_bytes() or 0
        raise ConfigError(
            f"solver 'joint' would take {_JOINT_VECTORS * 8 * size / 1e9:.0f} GB for {size:,} "
            f"coefficients, more than half of memory_limit ({limit / 1e9:.0f} GB); "
            "use more passes instead"
        )


def _has_room(size: int) -> bool:
    """Whether Newton's method may hold its vectors of all coefficients."""
    limit = memory.limit_bytes()
    return limit is None or _JOINT_VECTORS * 8 * size <= 0.5 * limit


class LocalScores:
    """Scores of all coordinates, in memory."""

    def __init__(self, config: ModelConfig, train: Dataset, validation: Dataset | None) -> None:
        self._task, self._metrics = config.task, config.metrics
        self._train, self._validation = train, validation
        self._scores: dict[str, Scores] = {}
        judged = train if validation is None else validation
        self._held_penalty = 0.0
        self._base = Scores(train.offset, None if validation is None else validation.offset)
        self._groups = {c: judged.keys[c].codes for c in config.group_columns}

    def put(self, name: str, scores: Scores) -> None:
        """Set a coordinate's scores."""
        self._scores[name] = scores

    def hold(self, scores: Scores, penalty: float) -> None:
        """Add scores, and their model's penalty, that no step changes."""
        self._base = self._base.plus(scores)
        self._held_penalty += penalty

    def total_without(self, *names: str) -> F64:
        """Return base offset plus all other coordinates' training scores, summed anew."""
        total = memory.copy(self._base.train)
        for other, scores in self._scores.items():
            if other not in names:
                total += scores.train
        return total

    def validation_without(self, *names: str) -> F64:
        """Return base offset plus all other coordinates' validation scores, summed anew."""
        assert self._base.validation is not None
        total = memory.copy(self._base.validation)
        for other, scores in self._scores.items():
            if other not in names:
                assert scores.validation is not None
                total += scores.validation
        return total

    def loss(self) -> float:
        """Return the weighted loss of the training rows, and the penalties that are held."""
        rows = self._train
        total = self.total_without()
        loss = total_loss(LOSSES[self._task], total, rows.response, rows.weight)
        return float(loss) + self._held_penalty

    def evaluate(self) -> dict[str, float]:
        """Return the metrics of the validation rows, or of the training rows without any."""
        if self._validation is None:
            rows, total = self._train, self.total_without()
        else:
            rows, total = self._validation, self.validation_without()
        return evaluate(
            self._metrics, total, rows.response, rows.weight, task=self._task, groups=self._groups
        )
