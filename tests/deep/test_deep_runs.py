"""Runs, commands and searches with a deep coordinate in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")

from deep_rows import FEATURES, everything, make_rows  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from gdmix import DataError, FixedEffect, MixedModel, RandomEffect, RunConfig, tune  # noqa: E402
from gdmix.checkpoint import Checkpoint  # noqa: E402
from gdmix.cli import app  # noqa: E402
from gdmix.deep.model import DeepModel  # noqa: E402
from gdmix.descent import Descent  # noqa: E402
from gdmix.runs import run  # noqa: E402

CONFIG = """\
data: {train: train.parquet, validation: validation.parquet}
features: {numbers: [x, z], tags: [tags], item: [vector]}
coordinates:
  global:
    type: deep
    sides:
      document: {text: title, wide: tags}
      user: {categorical: [user, color], dense: numbers}
    encoder: {type: cnn, windows: 2, filters: 8, word_dim: 8}
    dim: 6
    hidden: [8]
    training: {steps: 60, batch_size: 32, learning_rate: 0.01}
    refit: {steps: 10}
  per-user: {type: random_effect, entity: user, features: numbers}
passes: 2
metrics: [auc, logloss, "auc:user"]
threads: 1
output: runs/one
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: Any) -> Path:
    pq.write_table(make_rows(400, 1), tmp_path / "train.parquet")
    pq.write_table(make_rows(200, 2), tmp_path / "validation.parquet")
    (tmp_path / "run.yaml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def gdmix(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments], catch_exceptions=False)


def test_a_run(folder: Path) -> None:
    done = gdmix("train", "run.yaml", "--json")
    assert done.exit_code == 0, done.output
    steps = json.loads(done.stdout)["steps"]
    assert [s["coordinate"] for s in steps] == ["global", "per-user"] * 2
    assert [s["iterations"] for s in steps[::2]] == [60, 10]
    assert steps[0]["statuses"] == {"converged": 1} and steps[0]["gradient_norm"] > 0
    assert steps[1]["metrics"]["auc"] > 0.65
    assert "step 50/60, loss 0." in (folder / "runs/one/run.log").read_text()
    files = {p.name for p in (folder / "runs/one/global/models").iterdir()}
    assert files == {
        "config.json", "model.safetensors", "tokenizer",
        "categories-0.parquet", "categories-1.parquet",
    }  # fmt: skip
    # The model's scores are those that were written.
    assert gdmix("score", "runs/one", "validation.parquet", "-o", "s.parquet", "--components")
    own = pq.read_table("s.parquet")["score:global"].to_numpy()
    of_run = pq.read_table("runs/one/global/validation_scores/part-00000.parquet")
    for scores in (of_run, pq.read_table("s.parquet")):  # ids stand in score files, texts do not
        assert {"user", "color"} <= set(scores.column_names)
        assert "title" not in scores.column_names
    assert own == pytest.approx(of_run["score"].to_numpy(), abs=1e-5)
    shown = json.loads(gdmix("inspect", "runs/one", "--json").stdout)["global"]
    assert shown["type"] == "deep" and shown["sides"] == ["document", "user"]
    refused = gdmix("inspect", "runs/one", "-c", "global")
    assert refused.exit_code == 2 and "no coefficients" in refused.stderr


def test_vectors_beside_rows(folder: Path) -> None:
    gdmix("train", "run.yaml", "--quiet")
    for split in ("train", "validation"):
        done = gdmix("encode", "runs/one", f"{split}.parquet", "-o", f"v/{split}.parquet",
                     "-c", "global", "--column", "vector")  # fmt: skip
        assert done.exit_code == 0, done.output
    assert "200 rows with 'vector' of 6 numbers: v/validation.parquet" in done.stdout
    rows = pq.read_table("v/train.parquet")
    assert rows.schema.field("vector").type == pa.list_(pa.float32(), 6)
    assert rows.drop_columns(["vector"]).equals(pq.read_table("train.parquet"))
    wanted = MixedModel.load("runs/one").encode("train.parquet", "global")
    assert np.array_equal(rows["vector"].combine_chunks().flatten().to_numpy(), wanted.reshape(-1))
    # A random effect over the network's own view of items, beside it as it is.
    text = CONFIG.replace("{train: train", "{train: v/train")
    text = text.replace("validation: validation", "validation: v/validation")
    text = text.replace("hidden: [8]", "hidden: [8]\n    locked: true")
    text = text.replace("per-user: {", "taste: {").replace(
        "user, features: numbers", "user, features: item"
    )
    text = text.replace("runs/one", "runs/two") + "initial_model: runs/one\n"
    Path("two.yaml").write_text(text, encoding="utf-8")
    again = gdmix("train", "two.yaml", "--json")
    assert again.exit_code == 0, again.output
    steps = json.loads(again.stdout)["steps"]
    assert {s["coordinate"] for s in steps} == {"taste"} and steps[0]["models"] == 15
    assert MixedModel.load("runs/two").coefficients("taste", entity=3).num_rows == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-c", "global", "-o", "v.csv"), "v.csv: name a .parquet file"),
        (("-c", "global", "-o", "v.parquet", "--column", "x"), "have a column 'x' already"),
        (("-c", "glob", "-o", "v.parquet"), "no coordinate 'glob'"),
        (("-c", "per-user", "-o", "v.parquet"), "only deep ones encode"),
        (("-c", "global", "-o", "v.parquet", "--side", "item"), "no side 'item'; it has: document"),
        (("-c", "global", "-o", "v.parquet", "--validate", "drop"), "a vector for each row"),
    ],
)
def test_vectors_that_can_not_be_written(
    model: Path, arguments: tuple[str, ...], message: str
) -> None:
    rows = str(model / "validation.parquet")
    refused = gdmix("encode", str(model / "runs/one"), rows, *arguments)
    assert refused.exit_code == 2 and message in refused.stderr, refused.stderr
    assert not Path("v.parquet").exists()


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("model")
    pq.write_table(make_rows(200, 1), path / "train.parquet")
    pq.write_table(make_rows(100, 2), path / "validation.parquet")
    overrides = {
        "data": json.dumps({s: str(path / f"{s}.parquet") for s in ("train", "validation")}),
        "output": str(path / "runs/one"),
    }
    (path / "run.yaml").write_text(CONFIG, encoding="utf-8")
    run(RunConfig.from_yaml(path / "run.yaml", overrides))
    return path


def test_the_state_of_a_run_keeps_the_network(tmp_path: Path) -> None:
    rows = make_rows(200, 1)
    model = MixedModel([everything(), RandomEffect("per-user", entity="user")], features=FEATURES)
    model.fit(rows)
    models = dict(model.model_.coordinates)
    Checkpoint(tmp_path / "state").save(Descent(models, model.history_, 1, None, models))
    state = Checkpoint(tmp_path / "state").load()
    read = state.current["global"]
    assert isinstance(read, DeepModel) and read.fits == 1
    loaded = model._load(rows)
    assert read.score(loaded) == pytest.approx(models["global"].score(loaded), abs=1e-6)


def test_a_search_beside_a_network(folder: Path) -> None:
    spec = everything(training={"steps": 30, "batch_size": 32})
    users = RandomEffect("per-user", entity="user")
    model = MixedModel([spec, users], features=FEATURES, metrics="logloss")
    found = tune(
        model,
        "train.parquet",
        validation="validation.parquet",
        space={"coordinates.per-user.l2": {"values": [0.1, 1.0, 10.0]}},
        method="grid",
    )
    assert len(found.trials) == 3
    assert len({t.metrics["logloss"] for t in found.trials}) == 3


def test_a_run_that_can_not_begin(folder: Path) -> None:
    rows = pq.read_table("train.parquet")
    pq.write_table(rows.drop_columns(["title", "color"]), "train.parquet")
    refused = gdmix("train", "run.yaml")
    assert refused.exit_code == 2
    assert refused.stderr.count("error: ") == 2 and "column 'title' is missing" in refused.stderr
    assert not Path("runs").exists() or not any(Path("runs").iterdir())


def test_features_with_gaps_are_described(folder: Path) -> None:
    rows = make_rows(100, 1, x=np.where(np.arange(100) % 2, np.nan, 4.0))
    pq.write_table(rows, "train.parquet")
    text = CONFIG.replace("entity: user, features: numbers", "entity: user").replace(
        ", item: [vector]", ""
    )
    Path("run.yaml").write_text(text)
    done = gdmix("features", "run.yaml", "--json")
    assert done.exit_code == 0, done.output
    x = next(f for f in json.loads(done.stdout) if f["name"] == "x")
    assert (x["nnz"], x["min"], x["max"]) == (50, 0.0, 4.0)


def test_missing_numbers_are_for_deep_coordinates_alone() -> None:
    rows = make_rows(100, 1, x=np.where(np.arange(100) % 2, np.nan, 4.0))
    both = [everything(), FixedEffect("linear", features="numbers")]
    with pytest.raises(DataError, match="column 'x': 50 rows with NaN"):
        MixedModel(both, features=FEATURES).fit(rows)
    MixedModel([everything()], features=FEATURES).fit(rows).predict(rows)
