"""The engines that are held to the contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from contract_rows import Data, make_rows

from gdmix.engines.base import Engine
from gdmix.engines.local import LocalEngine

ENGINES = ["local", "spark"]

# What every change is tried with on Spark, too; all else is for the continuous integration.
QUICK = (
    "test_weights_offsets_passes_and_grouped_metrics",
    "test_linear_task_with_uncertainty_and_no_validation",
    "test_active_and_passive_rows",
    "test_warm_start",
    "test_a_network_on_rows_without_uid",
    "test_mistakes_in_data[spark-findings]",
    "test_mistakes_in_data[spark-missing columns]",
    "test_mistakes_in_data[spark-missing file]",
    "test_rows_that_are_dropped[spark-True]",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        here = item.path.parent == Path(__file__).parent and "[spark" in item.name
        if here and item.name.removesuffix("[spark]") not in QUICK:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(params=ENGINES)
def new_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Engine]:
    """Make an engine of each kind."""
    if request.param == "local":
        return LocalEngine
    from gdmix.engines.spark.engine import SparkEngine

    session = request.getfixturevalue("spark")
    session.sparkContext.addPyFile(str(Path(__file__).with_name("contract_estimators.py")))
    return lambda: SparkEngine(session, partitions=3, scratch=tmp_path / "scratch")


@pytest.fixture
def engine(new_engine: Callable[[], Engine]) -> Engine:
    return new_engine()


@pytest.fixture(scope="session")
def tables() -> dict[str, Any]:
    return {"train": make_rows(320, 1), "validation": make_rows(140, 2, new=4)}


@pytest.fixture(scope="session")
def data(tables: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data.write(tmp_path_factory.mktemp("contract"), tables["train"], tables["validation"])
