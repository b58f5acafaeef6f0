"""One machine: arrays in memory and threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix._version import __version__
from gdmix.config import JOINT, FixedEffect, ModelConfig
from gdmix.coordinates.base import FitReport, Scores
from gdmix.coordinates.fixed_effect import FixedEffectCoordinate
from gdmix.coordinates.joint import fit_jointly
from gdmix.coordinates.random_effect import RandomEffectCoordinate
from gdmix.coordinates.recentring import Penalty, recentre
from gdmix.data.dataset import Dataset, load_rows, load_training
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.read import Source
from gdmix.data.schema import RowSchema
from gdmix.data.score_files import score_tables, write_scores
from gdmix.errors import ConfigError
from gdmix.evaluation.evaluate import evaluate
from gdmix.glm.losses import total_loss
from gdmix.glm.newton import Labels
from gdmix.glm.threads import available_threads
from gdmix.model.mixed_model import LOSSES, CoordinateModel, TrainedModel

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
        schema = RowSchema(
            config.columns, config.used_features, config.entity_columns, config.group_columns
        )
        mode = config.validate_mode
        threads = config.threads or available_threads()
        train_rows, indices = load_training(train, schema, config.task, mode, threads=threads)
        validation_rows = None
        if validation is not None:
            validation_rows = load_rows(
                validation, schema, indices, config.task, mode, "validation data", threads
            )
        return LocalWorkspace(config, train_rows, validation_rows, indices)


class LocalWorkspace:
    """A configuration bound to rows in memory."""

    def __init__(
        self,
        config: ModelConfig,
        train: Dataset,
        validation: Dataset | None,
        indices: Mapping[str, FeatureIndex],
    ) -> None:
        self._config, self._indices = config, indices
        self._train, self._validation = train, validation
        self.scores = LocalScores(config, train, validation)
        # Before any work: a metric that can't be computed of these labels says so now.
        self.scores.evaluate()
        self._threads = threads = config.threads or available_threads()
        loss = LOSSES[config.task]
        # A row without an entity keeps the fixed effect's share alone: it can't be recentred.
        self._penalties = {
            name: Penalty(spec.l2, spec.l2 if spec.regularize_intercept else 0.0)
            for name, spec in config.coordinates.items()
            if isinstance(spec, FixedEffect) or train.keys[spec.entity].codes.min(initial=0) >= 0
        }
        self.coordinates: dict[str, FixedEffectCoordinate | RandomEffectCoordinate] = {}
        for name, spec in config.coordinates.items():
            self.coordinates[name] = (
                FixedEffectCoordinate(spec, train, validation, loss, threads)
                if isinstance(spec, FixedEffect)
                else RandomEffectCoordinate(spec, train, validation, loss, threads)
            )

        if config.solver == JOINT:
            _check_room_for_joint([c.penalty_vector().size for c in self.coordinates.values()])

    def recentre(self, models: Mapping[str, CoordinateModel]) -> dict[str, CoordinateModel]:
        """Move what random effects share into the fixed effects."""
        sizes = {bag: len(index) for bag, index in self._indices.items()}
        return recentre(models, self._penalties, sizes)

    def fit_jointly(
        self, models: Mapping[str, CoordinateModel]
    ) -> tuple[dict[str, CoordinateModel], FitReport]:
        """Fit all coordinates at once, from the given models."""
        rows, specs = self._train, self._config.coordinates.values()
        loss = LOSSES[self._config.task]
        return fit_jointly(
            self.coordinates,
            models,
            Labels(rows.response, rows.weight, rows.offset, loss, self._threads),
            min(spec.tolerance for spec in specs),
            max(spec.max_iterations for spec in specs),
        )

    def trained_model(self, models: Mapping[str, CoordinateModel]) -> TrainedModel:
        """Put coordinates together with what scoring needs."""
        config = self._config
        return TrainedModel(
            config.task, config.columns, config.used_features, self._indices, dict(models)
        )

    def write_scores(self, models: Mapping[str, CoordinateModel], folder: Path) -> None:
        """Write every coordinate's scores of the final models."""
        parts = {name: self.coordinates[name].score(model) for name, model in models.items()}
        splits = [("train_scores", self._train, {n: s.train for n, s in parts.items()})]
        if self._validation is not None:
            own = {n: s.validation for n, s in parts.items() if s.validation is not None}
            splits.append(("validation_scores", self._validation, own))
        for split, rows, own in splits:
            total = memory.copy(rows.offset)
            for score in own.values():
                total += score
            for name, score in own.items():
                tables = score_tables(rows, self._config.task, total, {"score": score})
                write_scores(tables, folder / name / split)


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
        self._groups = {c: judged.keys[c].codes for c in config.group_columns}

    def put(self, name: str, scores: Scores) -> None:
        """Set a coordinate's scores."""
        self._scores[name] = scores

    def total_without(self, name: str | None) -> F64:
        """Return base offset plus all other coordinates' training scores, summed anew."""
        total = memory.copy(self._train.offset)
        for other, scores in self._scores.items():
            if other != name:
                total += scores.train
        return total

    def loss(self) -> float:
        """Return the weighted loss of the training rows at the total score."""
        rows = self._train
        total = self.total_without(None)
        return float(total_loss(LOSSES[self._task], total, rows.response, rows.weight))

    def evaluate(self) -> dict[str, float]:
        """Return the metrics of the validation rows, or of the training rows without any."""
        if self._validation is None:
            rows, total = self._train, self.total_without(None)
        else:
            rows, total = self._validation, memory.copy(self._validation.offset)
            for scores in self._scores.values():
                assert scores.validation is not None
                total += scores.validation
        return evaluate(
            self._metrics, total, rows.response, rows.weight, task=self._task, groups=self._groups
        )
