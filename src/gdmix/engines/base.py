"""What an engine is: it binds a configuration to rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from gdmix.config import AvroLayout, ModelConfig
from gdmix.coordinates.base import Coordinate, FitReport, ScoreTable
from gdmix.coordinates.variance_components import WeightSource
from gdmix.data.read import Source
from gdmix.model.base import CoordinateModel
from gdmix.model.mixed_model import TrainedModel
from gdmix.model.store import FolderOf, nowhere


class Workspace(Protocol):
    """A configuration bound to rows: what descent works on, and what it leaves behind."""

    @property
    def coordinates(self) -> Mapping[str, Coordinate[Any]]:
        """The coordinates that are fitted, in order."""

    @property
    def start(self) -> Mapping[str, CoordinateModel]:
        """Models that count before any fit: those of the initial model."""

    @property
    def scores(self) -> ScoreTable:
        """The score table: at first it holds what no step changes."""

    def recentre(self, models: Mapping[str, CoordinateModel]) -> dict[str, CoordinateModel]:
        """Move what random effects share into the fixed effects (`coordinates.recentring`)."""

    def fit_jointly(
        self, models: Mapping[str, CoordinateModel]
    ) -> tuple[dict[str, CoordinateModel], FitReport]:
        """Fit all coordinates at once, from the given models (`coordinates.joint`)."""

    @property
    def weights(self) -> WeightSource | None:
        """Estimates L2 weights, where a coordinate asks for it."""

    def trained_model(self, models: Mapping[str, CoordinateModel]) -> TrainedModel:
        """Put coordinates together with what scoring needs."""

    def write_model(
        self,
        models: Mapping[str, CoordinateModel],
        folder: Path,
        avro: AvroLayout | None = None,
        folder_of: FolderOf = nowhere,
    ) -> None:
        """Write the model that `trained_model` returns; arguments as of `store.write_model`."""

    def write_scores(
        self, models: Mapping[str, CoordinateModel], folder: Path, avro: AvroLayout | None = None
    ) -> None:
        """Write ``<coordinate>/{train_scores,validation_scores}`` for the given models.

        Parameters
        ----------
        avro
            Write Avro in GDMix's folders, instead of Parquet.
        """


class Engine(Protocol):
    """Reads rows and builds the workspace for them."""

    def prepare(self, config: ModelConfig, train: Source, validation: Source | None) -> Workspace:
        """Read and check rows, index features, build coordinates.

        Raises
        ------
        DataError
            With every finding of the checks.
        """
