"""The Spark engine: the same descent, the same functions, on the partitions of a cluster."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdmix.config import JOINT, ExternalScores, ModelConfig
from gdmix.data.read import Source
from gdmix.engines.binding import check_before_reading
from gdmix.engines.spark.cluster import Cluster
from gdmix.engines.spark.reading import read_rows
from gdmix.engines.spark.session import check_session
from gdmix.engines.spark.workspace import SparkWorkspace
from gdmix.errors import ConfigError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


class SparkEngine:
    """Runs on a Spark cluster.

    Parameters
    ----------
    session
        A classic session (not Spark Connect).
    partitions
        Of a random effect; default: by the number of rows.
    scratch
        A folder that the driver and all executors reach by the same path. Default: a temporary
        one, which will do where all of them are on this machine.

    Raises
    ------
    ConfigError
        If the session can't be used.
    """

    def __init__(
        self,
        session: SparkSession,
        partitions: int | None = None,
        scratch: str | Path | None = None,
    ) -> None:
        self._cluster = Cluster(check_session(session))
        self._partitions = partitions
        self._scratch = None if scratch is None else Path(scratch)

    def __deepcopy__(self, memo: Any) -> SparkEngine:
        """Return itself: a session can't be copied (scikit-learn's `clone` tries)."""
        return self

    def prepare(
        self, config: ModelConfig, train: Source, validation: Source | None
    ) -> SparkWorkspace:
        """Read and check rows, index features, build coordinates."""
        _check_supported(config, validation)
        check_before_reading(config)
        folder = self._folder()
        rows = read_rows(self._cluster, config, train, validation)
        return SparkWorkspace(self._cluster, config, rows, folder, self._partitions)

    def _folder(self) -> Path:
        """Return a folder of its own for a run; it goes when the engine does."""
        if self._scratch is not None:
            self._scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="gdmix-spark-", dir=self._scratch)).absolute()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._cluster.context.setCheckpointDir((folder / "checkpoints").as_uri())
        return folder


def _check_supported(config: ModelConfig, validation: Source | None) -> None:
    """Refuse what can't be done on partitions.

    Raises
    ------
    ConfigError
        It says what to do instead.
    """
    instead = "use `engine: local`"
    if config.solver == JOINT:
        raise ConfigError(f"solver 'joint' needs all rows in one place; {instead}, or more passes")
    for name in config.judged_on_validation:
        raise ConfigError(
            f"coordinates.{name}.training.judge_on_validation: not on Spark; use inner_split"
        )
    for name, spec in config.coordinates.items():
        lacks = isinstance(spec, ExternalScores) and spec.validation is None
        if lacks and validation is not None:
            raise ConfigError(f"coordinates.{name}: needs `validation`: scores of those rows")
