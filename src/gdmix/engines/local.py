"""One machine: arrays, in memory or beyond it in mapped files, and threads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix import memory
from gdmix._version import __version__
from gdmix.config import JOINT, AvroLayout, ExternalScores, FixedEffect, ModelConfig
from gdmix.coordinates.base import FitReport, Scores
from gdmix.coordinates.fixed_effect import FixedEffectCoordinate
from gdmix.coordinates.joint import fit_jointly
from gdmix.coordinates.random_effect import RandomEffectCoordinate
from gdmix.coordinates.recentring import Penalty, recentre
from gdmix.data.dataset import Dataset, load_rows, load_training
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.gdmix_scores import write_score_folders
from gdmix.data.read import Source, open_rows
from gdmix.data.schema import RowSchema
from gdmix.data.score_files import score_tables, write_scores
from gdmix.errors import ConfigError
from gdmix.evaluation.evaluate import evaluate
from gdmix.glm.losses import total_loss
from gdmix.glm.newton import Labels
from gdmix.glm.threads import available_threads, map_threads
from gdmix.model.any_model import read_any_model
from gdmix.model.mixed_model import (
    LOSSES,
    ExternalModel,
    LinearModel,
    TrainedModel,
    score_coordinate,
    united,
)
from gdmix.model.warm_start import aligned, check_initial_model

F64 = NDArray[np.float64]

_JOINT_VECTORS = 12  # of all coefficients, that Newton's method and its inner solver hold


class LocalEngine:
    """Runs in this process."""

    def prepare(
        self, config: ModelConfig, train: Source, validation: Source | None
    ) -> LocalWorkspace:
        """Read and check rows, index features, build coordinates."""
        name = f"{__version__} {config.model_dump_json(exclude={'output', 'scratch'})}"
        workspace: LocalWorkspace | None = memory.recall(name)
        if workspace is None:
            workspace = self._prepare(config, train, validation)
            memory.keep(name, workspace)
        return workspace

    def _prepare(
        self, config: ModelConfig, train: Source, validation: Source | None
    ) -> LocalWorkspace:
        _check_external(config, validation)
        train = open_rows(train, "training data")
        initial = None
        if config.initial_model is not None:
            types = {field.name: field.type for field in train.schema}
            initial = read_any_model(config.initial_model, config, types)
            check_initial_model(initial, config)
        schema = RowSchema(
            config.columns,
            config.used_features,
            config.entities,
            config.group_columns,
            derived=config.derived_entities,
        )
        mode = config.validate_mode
        threads = config.threads or available_threads()
        train_rows, indices = load_training(train, schema, config.task, mode, threads=threads)
        if initial is not None:
            train_rows, indices = _with_locked_features(config, train_rows, indices, initial)
        validation_rows = None
        if validation is not None:
            validation_rows = load_rows(
                validation, schema, indices, config.task, mode, "validation data", threads
            )
        earlier = {
            name: aligned(name, spec.features, initial, indices)
            for name, spec in config.linear.items()
            if initial is not None and name in initial.linear
        }
        return LocalWorkspace(config, train_rows, validation_rows, indices, earlier)


def _check_external(config: ModelConfig, validation: Source | None) -> None:
    for name, spec in config.coordinates.items():
        lacks = isinstance(spec, ExternalScores) and spec.validation is None
        if lacks and validation is not None:
            raise ConfigError(f"coordinates.{name}: needs `validation`: scores of those rows")


def _with_locked_features(
    config: ModelConfig, rows: Dataset, indices: Mapping[str, FeatureIndex], initial: TrainedModel
) -> tuple[Dataset, Mapping[str, FeatureIndex]]:
    """Let the index know all features of locked coordinates, which are to stay as they are."""
    wider = {
        bag: indices[bag].extended(initial.indices[bag])
        for spec in config.linear.values()
        for bag in spec.features
        if spec.locked and config.features[bag].feature_list is None
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
        earlier: Mapping[str, LinearModel],
    ) -> None:
        self._config, self._indices = config, indices
        self._train, self._validation = train, validation
        self.scores = LocalScores(config, train, validation)
        # Before any work: a metric that can't be computed of these labels says so now.
        self.scores.evaluate()
        self._threads = threads = config.threads or available_threads()
        loss = LOSSES[config.task]
        fitted = config.fitted
        self._penalties = {
            name: Penalty(spec.l2, spec.l2 if spec.regularize_intercept else 0.0)
            for name, spec in config.linear.items()
        }
        self.coordinates: dict[str, FixedEffectCoordinate | RandomEffectCoordinate] = {}
        for name, spec in fitted.items():
            self.coordinates[name] = (
                FixedEffectCoordinate(spec, train, validation, loss, threads)
                if isinstance(spec, FixedEffect)
                else RandomEffectCoordinate(spec, train, validation, loss, threads, config.seed)
            )
        self.start: dict[str, LinearModel] = {}
        # Locked coordinates, and the models of entities that are not fitted here.
        self._held: dict[str, tuple[LinearModel, Scores]] = {}
        self._external: dict[str, tuple[ExternalModel, Scores]] = {}
        for name, own in config.coordinates.items():
            if isinstance(own, ExternalScores):
                self._read_scores(name, own)
        for name, model in earlier.items():
            rest: LinearModel | None = model
            if name in fitted:
                self.start[name], rest = self.coordinates[name].start(model)
            if rest is not None:
                self._hold(name, rest)

        if config.solver == JOINT:
            _check_room_for_joint([c.penalty_vector().size for c in self.coordinates.values()])

    def _hold(self, name: str, model: LinearModel) -> None:
        train, validation = (
            None if rows is None else score_coordinate(model, rows, self._threads)
            for rows in (self._train, self._validation)
        )
        assert train is not None
        self._held[name] = model, Scores(train, validation)
        self.scores.hold(self._held[name][1], self._penalties[name].term(model))

    def _read_scores(self, name: str, spec: ExternalScores) -> None:
        model, validation = ExternalModel(spec.uid, spec.score, spec.missing), None
        if self._validation is not None:
            validation = model.scores(spec.validation, self._validation)
        self._external[name] = model, Scores(model.scores(spec.train, self._train), validation)
        self.scores.hold(self._external[name][1], 0.0)

    def recentre(self, models: Mapping[str, LinearModel]) -> dict[str, LinearModel]:
        """Move what random effects share into the fixed effects."""
        sizes = {bag: len(index) for bag, index in self._indices.items()}
        uncovered = {
            name: coordinate.uncovered
            for name, coordinate in self.coordinates.items()
            if isinstance(coordinate, RandomEffectCoordinate)
        }
        return recentre(models, self._penalties, sizes, uncovered)

    def fit_jointly(
        self, models: Mapping[str, LinearModel]
    ) -> tuple[dict[str, LinearModel], FitReport]:
        """Fit all coordinates at once, from the given models."""
        rows = self._train
        specs = self._config.fitted.values()
        loss = LOSSES[self._config.task]
        return fit_jointly(
            self.coordinates,
            models,
            Labels(rows.response, rows.weight, self.scores.base(), loss, self._threads),
            min(spec.tolerance for spec in specs),
            max(spec.max_iterations for spec in specs),
        )

    def trained_model(self, models: Mapping[str, LinearModel]) -> TrainedModel:
        """Put coordinates together with what scoring needs."""
        config = self._config
        whole: dict[str, LinearModel | ExternalModel] = {}
        for name in config.coordinates:
            if name in self._external:
                whole[name] = self._external[name][0]
            elif name not in self._held:
                whole[name] = models[name]
            elif name not in models:
                whole[name] = self._held[name][0]
            else:
                whole[name] = united(models[name], self._held[name][0])
        return TrainedModel(
            config.task,
            config.columns,
            config.used_features,
            self._indices,
            whole,
            config.derived_entities,
        )

    def write_scores(
        self, models: Mapping[str, LinearModel], folder: Path, avro: AvroLayout | None = None
    ) -> None:
        """Write every coordinate's scores of the final models."""
        parts = {}
        for name in self._config.coordinates:
            fitted = [self.coordinates[name].score(models[name])] if name in models else []
            held = [of[name][1] for of in (self._held, self._external) if name in of]
            parts[name] = reduce(Scores.plus, fitted + held)
        splits = [("train_scores", self._train, {n: s.train for n, s in parts.items()})]
        if self._validation is not None:
            own = {n: s.validation for n, s in parts.items() if s.validation is not None}
            splits.append(("validation_scores", self._validation, own))
        files: list[tuple[Iterator[pa.Table], Path]] = []
        for split, rows, own in splits:
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


def _check_room_for_joint(sizes: Sequence[int]) -> None:
    needed, limit = _JOINT_VECTORS * 8 * sum(sizes), memory.limit_bytes()
    if limit is not None and needed > 0.5 * limit:
        raise ConfigError(
            f"solver 'joint' would take {needed / 1e9:.0f} GB for {sum(sizes):,} coefficients, "
            f"more than half of memory_limit ({limit / 1e9:.0f} GB); use more passes instead"
        )


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

    def base(self) -> F64:
        """Return base offset plus the training scores that no step changes."""
        return self._base.train

    def total_without(self, name: str | None) -> F64:
        """Return base offset plus all other coordinates' training scores, summed anew."""
        total = memory.copy(self._base.train)
        for other, scores in self._scores.items():
            if other != name:
                total += scores.train
        return total

    def loss(self) -> float:
        """Return the weighted loss of the training rows, and the penalties that are held."""
        rows = self._train
        total = self.total_without(None)
        loss = total_loss(LOSSES[self._task], total, rows.response, rows.weight)
        return float(loss) + self._held_penalty

    def evaluate(self) -> dict[str, float]:
        """Return the metrics of the validation rows, or of the training rows without any."""
        if self._validation is None:
            rows, total = self._train, self.total_without(None)
        else:
            assert self._base.validation is not None
            rows, total = self._validation, memory.copy(self._base.validation)
            for scores in self._scores.values():
                assert scores.validation is not None
                total += scores.validation
        return evaluate(
            self._metrics, total, rows.response, rows.weight, task=self._task, groups=self._groups
        )
