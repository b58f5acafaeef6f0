"""The commands with `--engine spark`: what they leave, what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdmix.runs import read_history

SPARK = ("--engine", "spark", "--master", "local[2]", "--conf", "spark.ui.enabled=false")


def gdmix(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gdmix", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=540,
    )


def test_a_run_leaves_what_it_leaves_on_one_machine(needs_spark: None, project: Path) -> None:
    here = gdmix("train", "run.yaml")
    there = gdmix("train", "run.yaml", "--output", "runs/spark", *SPARK)
    assert (there.returncode, there.stderr) == (0, "")
    assert there.stdout.replace("runs/spark", "runs/one") == here.stdout
    files = [
        {str(p.relative_to(folder)) for p in folder.rglob("*") if "part-" not in p.name}
        for folder in (project / "runs/one", project / "runs/spark")
    ]
    assert files[0] == files[1]
    steps = [read_history(project / run).steps for run in ("runs/one", "runs/spark")]
    for local, spark in zip(*steps, strict=True):
        assert local["metrics"] == pytest.approx(spark["metrics"], abs=1e-6)
    assert not list((project / "runs").glob(".*"))


def test_bad_rows_are_told_as_on_one_machine(needs_spark: None, project: Path) -> None:
    rows = pq.read_table("train.parquet")
    twice = rows.set_column(0, "uid", pa.array([7] * 3 + list(range(3, rows.num_rows))))
    labels = pa.array([2] * 5 + rows["response"].to_pylist()[5:])
    bad = twice.set_column(rows.schema.get_field_index("response"), "response", labels)
    pq.write_table(bad, "train.parquet")
    here = gdmix("train", "run.yaml")
    there = gdmix("train", "run.yaml", *SPARK)
    assert here.returncode == there.returncode == 2
    assert there.stderr == here.stderr
    assert here.stderr.startswith("error: train.parquet: ")
    assert there.stdout == ""
    assert not (project / "runs").exists() or not list((project / "runs").iterdir())


def test_debug_shows_what_spark_says(needs_spark: None, project: Path) -> None:
    Path("train.parquet").unlink()
    done = gdmix("train", "run.yaml", "--debug", *SPARK)
    assert done.returncode == 2
    assert "Traceback (most recent call last):" in done.stderr
    assert "INFO SparkContext" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: train.parquet: no such file or folder")


def test_debug_without_spark(project: Path) -> None:
    Path("train.parquet").unlink()
    lines = gdmix("train", "run.yaml", "--debug").stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("error: train.parquet: no such file or folder")
    assert len(gdmix("train", "run.yaml").stderr.splitlines()) == 1


def test_no_java(project: Path, tmp_path: Path) -> None:
    done = gdmix("train", "run.yaml", "--engine", "spark", JAVA_HOME=str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is no Java that runs" in done.stderr
    assert not (project / "runs").exists() or not list((project / "runs").iterdir())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--master", "sc://host"], "run.yaml: spark.master: is a Spark Connect server"),
        (["--conf", "memory=4g"], "spark.conf: 'memory' is no setting of Spark"),
        (["--conf", "spark.executor.memory"], "--conf spark.executor.memory: expected KEY=VALUE"),
        (
            ["--set", "spark.conf.spark.dynamicAllocation.enabled=true"],
            "spark.conf: spark.dynamicAllocation.enabled: a fixed effect needs all its executors",
        ),
        (["--set", "spark.partition=3"], "spark.partition: unknown key (did you mean 'partitions'"),
    ],
)
def test_settings_that_are_wrong(project: Path, arguments: list[str], line: str) -> None:
    done = gdmix("train", "run.yaml", "--engine", "spark", *arguments)
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unknown_engine(project: Path) -> None:
    done: Any = gdmix("train", "run.yaml", "--engine", "flink")
    assert done.returncode == 2
    assert "local" in done.stderr and "spark" in done.stderr
