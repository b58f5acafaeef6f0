"""The Spark engine against the local one on the same rows: where the time goes.

    python benchmarks/spark.py [--rows 1000000] [--master local[2]]

Each engine trains a fixed effect and a random effect, twice (the second pass has everything
compiled, read and laid out). CPU seconds are those of all processes: of the JVM and of Python
workers, too. The local engine has one thread; Spark's tasks have one each.

`stage` is the random effect alone: offsets to where the rows are, fits, scores back to where they
came from; of one machine, fits and scores. `iteration` is one of Newton's method for the fixed
effect: what a fit of many takes more than one of a single iteration, the best of three each.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from gdmix import FixedEffect, RandomEffect  # noqa: E402
from gdmix.config import ModelConfig, SparkConfig  # noqa: E402
from gdmix.engines.base import Engine  # noqa: E402
from gdmix.engines.local import LocalEngine  # noqa: E402
from gdmix.engines.spark.engine import SparkEngine  # noqa: E402
from gdmix.engines.spark.session import opened  # noqa: E402
from gdmix.estimator import train  # noqa: E402

_TICKS = os.sysconf("SC_CLK_TCK")
PASSES, _STAGES, _ITERATIONS = 2, 4, 8
_PER_ROW, _COLUMNS, _ROWS_PER_ENTITY = 20, 100_000, 10


def make_rows(n: int, path: Path) -> None:
    """Write n rows of 20 features out of 100,000, whose frequencies follow a power law."""
    rng = np.random.default_rng(0)
    entity = rng.integers(0, max(n // _ROWS_PER_ENTITY, 1), n)
    indices = np.minimum(_COLUMNS * rng.random((n, 2 * _PER_ROW)) ** 3, _COLUMNS - 1).astype(int)
    values = rng.standard_normal(indices.shape).astype(np.float32)
    weight = rng.standard_normal(_COLUMNS) * 0.3
    lists, numbers, score = [], [], np.zeros(n)
    for i in range(n):
        own, first = np.unique(indices[i], return_index=True)
        own, first = own[:_PER_ROW], first[:_PER_ROW]
        lists.append(own)
        numbers.append(values[i, first])
        score[i] = numbers[-1] @ weight[own]
    ends = np.concatenate([[0], np.cumsum([len(own) for own in lists])])
    response = rng.random(n) < 1.0 / (1.0 + np.exp(-score))
    table = pa.table(
        {
            "uid": np.arange(n),
            "response": response.astype(np.int64),
            "entity": entity,
            "x_indices": pa.ListArray.from_arrays(ends.astype(np.int32), np.concatenate(lists)),
            "x_values": pa.ListArray.from_arrays(ends.astype(np.int32), np.concatenate(numbers)),
        }
    )
    pq.write_table(table, path, row_group_size=100_000)


def config(*coordinates: FixedEffect) -> ModelConfig:
    """Return what is trained: these, or a fixed and a random effect."""
    both = (
        FixedEffect("global", features=["x"]),
        RandomEffect("per-entity", entity="entity", features=["x"]),
    )
    return ModelConfig.of(
        coordinates=list(coordinates or both),
        features={"x": {"columns": ["x_indices", "x_values"]}},
        task="logistic_regression",
        metrics=["auc"],
        passes=PASSES,
        threads=1,
    )


def cpu_seconds() -> float:
    """Return what this process and all that it started have used, dead ones included."""
    parents: dict[int, tuple[int, float]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            ticks = sum(int(fields[k]) for k in (11, 12, 13, 14))
            parents[int(folder.name)] = int(fields[1]), ticks / _TICKS
    own, total = {os.getpid()}, 0.0
    while True:
        more = {pid for pid, (parent, _) in parents.items() if parent in own} - own
        if not more:
            break
        own |= more
    for pid in own:
        total += parents[pid][1] if pid in parents else 0.0
    return total


def measure(label: str, engine: SparkEngine | None, path: Path) -> None:
    """Train, and print what each step took."""
    seen = [time.perf_counter(), cpu_seconds()]

    def told(name: str, note: str = "") -> None:
        now = time.perf_counter(), cpu_seconds()
        wall, cpu = now[0] - seen[0], now[1] - seen[1]
        print(f"{label:10} {name:24} {wall:8.2f} s  {cpu:8.2f} CPU s  {note}", flush=True)
        seen[:] = now

    def step(done) -> None:  # type: ignore[no-untyped-def]
        note = f"{done.report.iterations:.1f} iterations, objective {done.objective:.6f}"
        told(f"pass {done.pass_number} {done.coordinate}", note)

    def begin(number: int, name: str) -> None:
        told(f"before {name}")

    train(config(), str(path), None, engine=engine, on_step=step, on_start=begin)


def measure_stage(label: str, engine: Engine, path: Path) -> None:
    """Fit the random effect a few times, each from the model before."""
    workspace, name = engine.prepare(config(), str(path), None), "per-entity"
    coordinate, model = workspace.coordinates[name], None
    for _ in range(_STAGES):
        wall, cpu = time.perf_counter(), cpu_seconds()
        model, _ = coordinate.fit(workspace.scores.total_without(name), model)
        if isinstance(engine, LocalEngine):
            coordinate.score(model)
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        print(f"{label:10} stage {name:18} {wall:8.2f} s  {cpu:8.2f} CPU s", flush=True)


def measure_iteration(label: str, engine: Engine, path: Path) -> None:
    """Fit the fixed effect with few and with many iterations."""
    best = {}
    for most in (1, _ITERATIONS):
        spec = FixedEffect("global", features=["x"], max_iterations=most, tolerance=1e-15)
        workspace = engine.prepare(config(spec), str(path), None)
        coordinate, seconds = workspace.coordinates["global"], []
        for _ in range(3):
            offset = workspace.scores.total_without("global")
            begin = time.perf_counter()
            _, report = coordinate.fit(offset, None)
            seconds.append(time.perf_counter() - begin)
        assert report.iterations == most
        best[most] = min(seconds)
    each = (best[_ITERATIONS] - best[1]) / (_ITERATIONS - 1)
    print(f"{label:10} iteration {'global':14} {1e3 * each:8.1f} ms", flush=True)


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--master", default="local[2]")
    parser.add_argument("--partitions", type=int, default=None)
    options = parser.parse_args()
    folder = Path(tempfile.gettempdir()) / "gdmix-benchmark-spark"
    folder.mkdir(exist_ok=True)
    path = folder / f"rows-{options.rows}.parquet"
    if not path.exists():
        make_rows(options.rows, path)
    measure("local", None, path)
    measure_stage("local", LocalEngine(), path)
    measure_iteration("local", LocalEngine(), path)
    with opened(SparkConfig(master=options.master), "benchmark") as session:
        engine = SparkEngine(session, options.partitions)
        measure(options.master, engine, path)
        measure_stage(options.master, engine, path)
        measure_iteration(options.master, engine, path)


if __name__ == "__main__":
    main()
