"""End to end at scale: how time, memory and disk grow with the number of entities.

For each number of entities, rows are written to a Parquet file (geometric rows with mean 10, 10
features a row out of 32 per entity, from a global space of 10,000), and one run of the command
line trains a global model and one random effect on them, in a process of its own. Reported: wall
and CPU time of the process, per row too, its peak resident memory, the size of the file, of the
scratch files at their largest, and of the run folder.

    python benchmarks/scale.py --entities 100000 300000 1000000
    python benchmarks/scale.py --entities 10000000 --memory-limit 4GB
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness import machine, machine_list, say, table

GLOBAL_FEATURES = 10_000
POOL = 32
PER_ROW = 10
ENTITIES_PER_CHUNK = 200_000
VALIDATION_ENTITIES = 2_000


@dataclass(frozen=True)
class Measured:
    """One run: seconds, bytes."""

    entities: int
    rows: int
    wall_seconds: float
    cpu_seconds: float
    peak_resident: int
    file_bytes: int
    scratch_bytes: int
    run_bytes: int
    memory_limit: str | None


def write_rows(path: Path, entities: int, seed: int) -> int:
    """Write rows of `entities` entities in random order within chunks; return their number."""
    rng = np.random.default_rng(seed)
    shared = (0.3 * np.random.default_rng(0).standard_normal(GLOBAL_FEATURES)).astype(np.float32)
    writer: pq.ParquetWriter | None = None
    rows = 0
    for first in range(0, entities, ENTITIES_PER_CHUNK):
        n = min(ENTITIES_PER_CHUNK, entities - first)
        chunk = _chunk(rng, shared, first, n, rows)
        rows += chunk.num_rows
        writer = writer or pq.ParquetWriter(path, chunk.schema, compression="snappy")
        writer.write_table(chunk, row_group_size=250_000)
    assert writer is not None
    writer.close()
    return rows


def _chunk(
    rng: np.random.Generator, shared: np.ndarray, first: int, n: int, first_uid: int
) -> pa.Table:
    counts = rng.geometric(0.1, n)
    total = int(counts.sum())
    owner = rng.permutation(np.repeat(np.arange(n), counts))
    pool = (rng.random((n, POOL)) ** 2 * GLOBAL_FEATURES).astype(np.int32)
    picked = np.argpartition(rng.random((total, POOL), dtype=np.float32), PER_ROW, axis=1)
    indices = np.sort(pool[owner[:, None], picked[:, :PER_ROW]], axis=1)
    distinct = np.ones(indices.shape, np.bool_)
    distinct[:, 1:] = indices[:, 1:] != indices[:, :-1]
    values = (0.5 * rng.standard_normal((total, PER_ROW))).astype(np.float32)
    own = 0.7 * rng.standard_normal(n)
    score = (values * distinct * shared[indices]).sum(axis=1) + own[owner]
    label = rng.random(total) < 1.0 / (1.0 + np.exp(-score))
    ends = np.concatenate(([0], np.cumsum(distinct.sum(axis=1)))).astype(np.int32)
    offsets = pa.array(ends)
    return pa.table(
        {
            "uid": np.arange(first_uid, first_uid + total),
            "entity": owner + first,
            "response": label.astype(np.int8),
            "f_indices": pa.ListArray.from_arrays(offsets, pa.array(indices[distinct])),
            "f_values": pa.ListArray.from_arrays(offsets, pa.array(values[distinct])),
        }
    )


def configuration(folder: Path, memory_limit: str | None) -> Path:
    """Write the run's YAML file."""
    tree = {
        "task": "logistic_regression",
        "data": {"train": str(folder / "rows.parquet"), "validation": str(folder / "v.parquet")},
        "features": {"all": ["f_indices", "f_values"]},
        "coordinates": {
            "global": {"type": "fixed_effect", "features": ["all"], "l2": 1.0},
            "per-entity": {"type": "random_effect", "entity": "entity", "features": ["all"]},
        },
        "metrics": ["auc"],
        "output": str(folder / "run"),
        "memory_limit": memory_limit,
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(tree))  # JSON is YAML
    return path


def measure(folder: Path, entities: int, rows: int, memory_limit: str | None) -> Measured:
    """Train in a process of its own."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    command = [sys.executable, "-m", "gdmix", "train", "--quiet"]
    started = time.perf_counter()
    largest = 0
    with subprocess.Popen([*command, str(configuration(folder, memory_limit))]) as process:
        pid = 0
        while not pid:
            time.sleep(0.1)
            largest = max(largest, size_of(folder / ".run.unfinished" / "scratch"))
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"the run of {entities:,} entities failed")
    kibibytes = 1 if sys.platform == "darwin" else 1024
    return Measured(
        entities,
        rows,
        time.perf_counter() - started,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * kibibytes,
        (folder / "rows.parquet").stat().st_size,
        largest,
        size_of(folder / "run"),
        memory_limit,
    )


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder, which may be changing."""
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def report(results: list[Measured]) -> str:
    """Lay the measurements out."""
    header = ["entities", "rows", "wall s", "CPU s", "CPU µs/row"]
    header += ["memory limit", "peak RSS GB", "file GB", "scratch GB", "run folder GB"]
    body = [
        [
            f"{r.entities:,}",
            f"{r.rows:,}",
            f"{r.wall_seconds:.0f}",
            f"{r.cpu_seconds:.0f}",
            f"{1e6 * r.cpu_seconds / r.rows:.2f}",
            r.memory_limit or "default",
            f"{r.peak_resident / 1e9:.2f}",
            f"{r.file_bytes / 1e9:.2f}",
            f"{r.scratch_bytes / 1e9:.2f}",
            f"{r.run_bytes / 1e9:.2f}",
        ]
        for r in results
    ]
    return table(header, body)


def main() -> None:
    """Run the sizes that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--entities", type=int, nargs="+", default=[100_000])
    parser.add_argument("--folder", type=Path, help="scratch space, default: a temporary folder")
    parser.add_argument("--memory-limit", help="such as 4GB")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        write_rows(folder / "v.parquet", VALIDATION_ENTITIES, seed=2)
        for entities in arguments.entities:
            rows = write_rows(folder / "rows.parquet", entities, seed=1)
            results.append(measure(folder, entities, rows, arguments.memory_limit))
            say(report(results[-1:]))
    about = machine()
    print(machine_list(about))
    print()
    print(report(results))
    if arguments.json:
        content = {"machine": about, "runs": [asdict(r) for r in results]}
        arguments.json.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
