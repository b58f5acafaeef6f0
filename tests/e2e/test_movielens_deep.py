"""The deep examples of MovieLens: on rows of our own, and with the figures of the README."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")

import gdmix  # noqa: E402
from gdmix import RunConfig  # noqa: E402
from gdmix.data.movielens import split  # noqa: E402
from gdmix.encoding import encode_to_file  # noqa: E402
from gdmix.runs import run  # noqa: E402

ROOT = Path(__file__).parents[2]
EXAMPLES = Path(gdmix.__file__).parent / "examples"


def small_rows(folder: Path) -> Path:
    from test_migration import tiny_movielens

    tiny_movielens(folder)
    return folder


def example(name: str, rows: Path, output: Path, **overrides: Any) -> RunConfig:
    paths = {f"data.{s}": str(rows / f"{s}.parquet") for s in ("train", "validation")}
    settings = {"output": str(output), "threads": "1", **overrides}
    return RunConfig.from_yaml(EXAMPLES / f"{name}.yaml", paths | settings)


def auc_of(config: RunConfig) -> list[float]:
    return [step["metrics"]["auc"] for step in run(config).steps]


def encoded(rows: Path, run_folder: Path, folder: Path) -> Path:
    for part in ("train", "validation"):
        target = folder / f"{part}.parquet"
        encode_to_file(run_folder, [str(rows / f"{part}.parquet")], target, "global", "document")
    return folder


@pytest.mark.parametrize("name", ["movielens_deep_gdmix", "movielens_deep_crossed"])
def test_examples_run(name: str, tmp_path: Path) -> None:
    key = "coordinates.global.training"
    length = {key: "{steps: 5, batch_size: 64}"}
    config = example(name, small_rows(tmp_path / "rows"), tmp_path / "run", **length)
    assert len(auc_of(config)) == len(config.coordinates)


def test_effects_over_what_the_network_sees_run(tmp_path: Path) -> None:
    rows = small_rows(tmp_path / "rows")
    length = {"coordinates.global.training": "{steps: 5, batch_size: 64}"}
    run(example("movielens_deep", rows, tmp_path / "one", **length))
    folder = encoded(rows, tmp_path / "one", tmp_path / "items")
    more = {"initial_model": str(tmp_path / "one"), "passes": "2", **length}
    assert len(auc_of(example("movielens_deep_items", folder, tmp_path / "two", **more))) == 4


def test_a_split_of_users() -> None:
    import pyarrow as pa

    table = pa.table({"user_id": np.repeat(np.arange(1, 21), 3), "uid": np.arange(60)})
    train, validation = split(table, "users")
    users = [set(part["user_id"].to_pylist()) for part in (train, validation)]
    assert not users[0] & users[1] and len(users[0] | users[1]) == 20
    assert len(train) + len(validation) == 60 and validation.num_rows


@pytest.fixture(scope="module")
def movielens() -> Path:
    """The folder of the prepared rows."""
    folder = Path(os.environ.get("GDMIX_MOVIELENS") or ROOT / "movielens")
    if not all((folder / f"{part}.parquet").exists() for part in ("train", "validation")):
        pytest.skip(f"{folder} holds no prepared MovieLens rows: run `gdmix example movielens`")
    assert pq.read_metadata(folder / "train.parquet").num_rows == 79_959
    return folder


@pytest.mark.slow
def test_the_network_of_gdmix(movielens: Path, tmp_path: Path) -> None:
    """GDMix's README: 0.7090, 0.7665, 0.7680 on another random split."""
    figures = [
        auc_of(example("movielens_deep_gdmix", movielens, tmp_path / f"{s}", seed=f"{s}"))
        for s in range(3)
    ]
    least = np.array([0.705, 0.760, 0.762])
    assert (np.mean(figures, axis=0) >= least).all(), figures


@pytest.mark.slow
def test_two_towers_are_better(movielens: Path, tmp_path: Path) -> None:
    """The figures of the README; settings are of a split of the training rows."""
    alone, crossed, total = [], [], []
    for s in range(3):
        seed = {"seed": f"{s}"}
        one = tmp_path / f"one{s}"
        alone += auc_of(example("movielens_deep", movielens, one, **seed))
        crossed += auc_of(example("movielens_deep_crossed", movielens, tmp_path / f"c{s}", **seed))
        folder = encoded(movielens, one, tmp_path / f"items{s}")
        more = {"initial_model": str(one), **seed}
        total.append(
            auc_of(example("movielens_deep_items", folder, tmp_path / f"two{s}", **more))[-1]
        )
    assert np.mean(alone) >= 0.725 and np.mean(alone) == pytest.approx(0.745, abs=0.005)
    assert np.mean(crossed) >= 0.755
    assert np.mean(total) >= 0.785, total
