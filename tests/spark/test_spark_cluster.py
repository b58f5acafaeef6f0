"""A cluster of processes: its slots, its workers' Python, its losses; and the examples."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdmix.runs import read_history

EXAMPLES = Path(__file__).parents[2] / "examples" / "spark"

PROGRAM = """
import json, os, shutil, sys, time
from pathlib import Path
from gdmix.config import SparkConfig
from gdmix.engines.spark.session import TaskErrors, opened, slots
from gdmix.engines.spark.sources import open_spark_rows
from gdmix.errors import GdmixError

def pack(index, tables):
    n = sum(table.num_rows for table in tables)
    yield 0, json.dumps([os.getcwd(), sys.executable, n]).encode()

def slow(index, rows):
    Path({flag!r}).touch()
    time.sleep(3)
    yield index

with opened(SparkConfig(**{settings!r}), "gdmix tests") as session:
    errors, found = TaskErrors(session), {{"slots": slots(session)}}
    rows = open_spark_rows(session, {rows!r}, partitions=2)
    pieces = rows.map_tables(pack, ["x"], errors)
    found["tasks"] = [json.loads(piece) for _, piece in errors.run(pieces.collect)]
    numbers = session.sparkContext.parallelize(range(2), 2)
    found["slow"] = errors.run(numbers.mapPartitionsWithIndex(errors.guard(slow)).collect)
    shutil.rmtree({rows!r})
    try:
        errors.run(rows.map_tables(pack, ["x"], errors).collect)
    except GdmixError as error:
        found["error"] = str(error)
    print(json.dumps(found))
"""


def test_a_cluster_reads_rows_and_outlives_an_executor(
    cluster: Any, cluster_settings: dict[str, Any], run_program: Any, tmp_path: Path
) -> None:
    rows, flag = tmp_path / "rows", tmp_path / "flag"
    rows.mkdir()
    for name in ("a.parquet", "b.parquet"):
        pq.write_table(pa.table({"x": np.arange(1e6)}), rows / name)
    code = PROGRAM.format(settings=cluster_settings, rows="rows", flag=str(flag))
    program = run_program(code)
    while not flag.exists() and program.poll() is None:
        time.sleep(0.05)
    assert flag.exists(), program.communicate()
    executors = cluster.executors()
    assert len(executors) == 2
    os.kill(executors[0], signal.SIGKILL)
    out, err = program.communicate(timeout=300)
    assert err == ""
    found = json.loads(out)
    assert found["slots"] == 2
    # Two workers, whose working directory is not the program's, have read the relative path.
    assert len({folder for folder, _, _ in found["tasks"]}) == 2
    assert str(tmp_path) not in {folder for folder, _, _ in found["tasks"]}
    assert sum(n for _, _, n in found["tasks"]) == 2_000_000
    assert found["slow"] == [0, 1]
    assert found["error"].startswith(f"{rows / 'a.parquet'}: ")
    assert "does not see it; put it where all machines do" in found["error"]
    assert "\n" not in found["error"]


@pytest.mark.slow
def test_the_example_of_spark_submit(
    cluster: Any, cluster_settings: dict[str, Any], project: Path
) -> None:
    conf = [f"--conf={key}={value}" for key, value in cluster_settings["conf"].items()]
    place = EXAMPLES / "submit.py"
    done = subprocess.run(
        [Path(sys.executable).with_name("spark-submit"), "--master", cluster.url, *conf]
        + [str(place), "train", "run.yaml", "--engine", "spark"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYSPARK_PYTHON": sys.executable},
        timeout=540,
    )
    assert done.returncode == 0, done.stderr
    assert "run folder: runs/one" in done.stdout
    assert len(read_history(project / "runs/one").steps) == 6


@pytest.mark.slow
def test_the_example_of_a_data_frame(needs_spark: None, run_program: Any, tmp_path: Path) -> None:
    n, rng = 400, np.random.default_rng(0)
    columns = {
        "uid": np.arange(n),
        "response": rng.integers(0, 2, n),
        "weight": np.ones(n),
        "user_id": rng.integers(0, 9, n),
        "movie_id": rng.integers(0, 9, n),
        "age": rng.integers(18, 40, n),
        "gender": rng.choice(["F", "M"], n),
        "occupation": rng.choice(["a", "b"], n),
        "genres": [["Drama"]] * n,
        "release_date": rng.choice(["1995", "1996"], n),
    }
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    place = EXAMPLES / "train_frame.py"
    code = (
        "import runpy, sys; sys.argv = ['', '.']\n"
        f"runpy.run_path({str(place)!r}, run_name='__main__')"
    )
    out, err = run_program(code).communicate(timeout=540)
    assert out.count("auc") == 6, err
    assert (tmp_path / "model-of-spark" / "manifest.json").exists()


def test_executors_end_with_their_application(cluster: Any) -> None:
    end = time.monotonic() + 30
    while cluster.executors() and time.monotonic() < end:
        time.sleep(0.1)
    assert cluster.executors() == []
