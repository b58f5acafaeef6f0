"""From specs to coordinates: what a configuration becomes on rows, whichever engine holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdmix.config import (
    CoordinateSpec,
    CustomEffect,
    DeepFixedEffect,
    Factorization,
    FixedEffect,
    ModelConfig,
    RandomEffect,
)
from gdmix.coordinates.base import Coordinate
from gdmix.coordinates.custom_effect import CustomEffectCoordinate
from gdmix.coordinates.estimators import estimators
from gdmix.coordinates.factorization import FactorizationCoordinate
from gdmix.coordinates.fixed_effect import FixedEffectCoordinate, FixedEffectRows
from gdmix.coordinates.joint import LinearCoordinate
from gdmix.coordinates.prior import EarlierModel, check_prior
from gdmix.coordinates.random_effect import RandomEffectCoordinate
from gdmix.coordinates.regularization import Regularization
from gdmix.data.active_rows import RowsElsewhere
from gdmix.data.dataset import Dataset
from gdmix.data.feature_index import FeatureIndex
from gdmix.model.base import CoordinateModel
from gdmix.model.linear import LinearModel
from gdmix.model.mixed_model import LOSSES


@dataclass(frozen=True)
class BoundRows:
    """Rows, and what fitting a coordinate to them needs besides its spec.

    Attributes
    ----------
    config
        Of the whole run.
    train, validation
        The rows.
    indices
        The feature index of each bag.
    threads
        Number of threads.
    fits
        Folder in which a long fit keeps its state, in a file of the coordinate's name.
    elsewhere
        Further rows of the entities of a random effect.
    """

    config: ModelConfig
    train: Dataset
    validation: Dataset | None
    indices: Mapping[str, FeatureIndex]
    threads: int
    fits: Path | None = None
    elsewhere: RowsElsewhere | None = None

    def coordinate(
        self,
        name: str,
        penalty: Regularization | None = None,
        earlier: CoordinateModel | None = None,
    ) -> Coordinate[Any]:
        """Return the runtime coordinate of a spec that is fitted.

        Parameters
        ----------
        penalty
            Of a linear coordinate.
        earlier
            An earlier model of it, under these feature indices.
        """
        config, train, validation = self.config, self.train, self.validation
        loss, threads, seed = LOSSES[config.task], self.threads, config.seed
        prior = prior_of(config, name, earlier)
        spec: CoordinateSpec = config.coordinates[name]
        match spec:
            case FixedEffect():
                assert penalty is not None
                return FixedEffectCoordinate(
                    spec, train, validation, loss, threads, penalty, seed, prior
                )
            case RandomEffect():
                assert penalty is not None
                return RandomEffectCoordinate(
                    spec, train, validation, loss, threads, penalty, seed, prior, self.elsewhere
                )
            case Factorization():
                return FactorizationCoordinate(spec, train, validation, loss, threads, seed)
            case CustomEffect():
                own = estimators(config, threads)[name]
                return CustomEffectCoordinate(own, train, validation, self.indices, loss, threads)
            case DeepFixedEffect():
                from gdmix.deep.coordinate import DeepCoordinate  # PyTorch is for those who use it

                return DeepCoordinate(
                    name,
                    spec,
                    train,
                    validation,
                    self.indices,
                    config.used_features,
                    config.task,
                    seed,
                    threads,
                    config.metrics[0],
                    None if self.fits is None else self.fits / f"{name}.pt",
                )
        raise TypeError(f"coordinate '{name}' of type {spec.type} is not fitted")

    def shard(self, name: str) -> FixedEffectRows:
        """Return a fixed effect's rows, of which these are some."""
        config, spec = self.config, self.config.coordinates[name]
        assert isinstance(spec, FixedEffect)
        loss = LOSSES[config.task]
        return FixedEffectRows(spec, self.train, self.validation, loss, self.threads, config.seed)


def prior_of(
    config: ModelConfig, name: str, earlier: CoordinateModel | None
) -> EarlierModel | None:
    """Return a coordinate's earlier model as its prior, if the configuration has it so.

    Raises
    ------
    ModelError
        If it does not say how certain it is.
    """
    if config.prior is None or not isinstance(earlier, LinearModel):
        return None
    return check_prior(name, earlier, config.prior)


def check_before_reading(config: ModelConfig) -> None:
    """Refuse what can be known to fail before any row is read.

    Raises
    ------
    ConfigError
        If an estimator or a network can't be imported, or does not go with the rest.
    """
    estimators(config, threads=1)
    for spec in config.coordinates.values():
        if isinstance(spec, DeepFixedEffect):
            from gdmix.deep import check_installed

            check_installed()
            from gdmix.deep.coordinate import check_deep

            check_deep(spec)


def reweighted(
    coordinate: Coordinate[Any], spec: CoordinateSpec, penalty: Regularization | None
) -> Coordinate[Any]:
    """Return a coordinate on the same rows, as they are prepared, under other weights."""
    if isinstance(coordinate, LinearCoordinate):
        assert penalty is not None
        return coordinate.reweighted(spec, penalty)
    if isinstance(coordinate, FactorizationCoordinate):
        assert isinstance(spec, Factorization)
        return coordinate.reweighted(spec)
    return coordinate
