"""A Spark session that tests share, and a cluster of processes of this machine.

A plugin of `tests/conftest.py`, so that all folders of tests have the same ones.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from gdmix.examples.spark.local_cluster import LocalCluster

SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "1g",
}


@cache
def spark_is_missing() -> str:
    """Return why no Spark session can be opened here; nothing if one can."""
    from gdmix.engines.spark.session import check_java, require_pyspark
    from gdmix.errors import ConfigError

    try:
        require_pyspark()
        check_java()
    except ConfigError as error:
        return str(error)
    return ""


@pytest.fixture(scope="session")
def needs_spark() -> None:
    """Skip where Spark can't run; where tests count, that is a failure."""
    reason = spark_is_missing()
    if reason and os.environ.get("CI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


def send_by_value(module: ModuleType) -> None:
    """Send functions of a test module to workers as they are: they could not import it."""
    if not spark_is_missing():
        from pyspark import cloudpickle

        cloudpickle.register_pickle_by_value(module)


@pytest.fixture(scope="session")
def spark(needs_spark: None) -> Iterator[SparkSession]:
    """A session of two threads."""
    from gdmix.config import SparkConfig
    from gdmix.engines.spark.session import opened

    with opened(SparkConfig(master="local[2]", conf=SETTINGS), "gdmix tests") as session:
        yield session


@pytest.fixture(scope="session")
def cluster(needs_spark: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A master and two workers of one core each.

    A process has one session at most, and this one may have that of `spark`: what uses the
    cluster is to be a program of its own (`run_program`), with `cluster_settings`.
    """
    place = Path(__file__).parents[1] / "src/gdmix/examples/spark/local_cluster.py"
    spec = importlib.util.spec_from_file_location("local_cluster", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.LocalCluster(tmp_path_factory.mktemp("cluster") / "processes") as processes:
        yield processes


@pytest.fixture(scope="session")
def cluster_settings(cluster: LocalCluster) -> dict[str, Any]:
    """What `spark:` of a configuration is to be."""
    return {"master": cluster.url, "conf": {**SETTINGS, "spark.executor.memory": "1g"}}


@pytest.fixture
def run_program(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python programs, which are ended with the test.

    Called with code and environment variables; the program's output goes to pipes.
    """
    started: list[subprocess.Popen[str]] = []

    def start(code: str, **environment: str) -> subprocess.Popen[str]:
        program = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **environment},
        )
        started.append(program)
        return program

    yield start
    for program in started:
        program.kill()
        program.communicate()
