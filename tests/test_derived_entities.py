"""Random effects whose entities are several columns together, or bins of a number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdmix import ConfigError, DataError, MixedModel, ModelError, RandomEffect, RunConfig, cli
from gdmix.config import BinnedColumn
from gdmix.runs import run

FEATURES = {"row": ["x"]}
PAIR = RandomEffect("per-pair", entity=["item", "kind"], features="row", l2=2.0)
BINS = RandomEffect("per-bin", entity={"column": "x", "bins": [-0.5, 0, 1]})
MIXED = RandomEffect("mixed", entity=["kind", {"column": "x", "bins": [0]}])
NUMBERED = RandomEffect("numbered", entity=["user", "kind"])
INTERVALS = ["(-inf,-0.5)", "[-0.5,0)", "[0,1)", "[1,inf)"]


def fit(rows: pa.Table, *coordinates: Any, **parameters: Any) -> MixedModel:
    return MixedModel(list(coordinates), features=FEATURES, **parameters).fit(rows)


def joined(rows: pa.Table) -> pa.Table:
    """Return the rows with plain columns that say the same."""
    pair = [f"{i}/{k}" for i, k in zip(rows["item"].to_pylist(), rows["kind"].to_pylist(),
                                       strict=True)]  # fmt: skip
    x = rows["x"].to_numpy()
    binned = np.searchsorted([-0.5, 0, 1], x, side="right")
    return rows.append_column("pair", pa.array(pair)).append_column("binned", pa.array(binned))


@pytest.mark.parametrize("solver", ["descent", "joint"])
def test_a_derived_entity_is_one_like_any_other(
    train_rows: pa.Table, validation_rows: pa.Table, solver: Any
) -> None:
    model = fit(train_rows, PAIR, BINS, passes=2, solver=solver)
    plain = [PAIR.model_copy(update={"entity": "pair"}),
             BINS.model_copy(update={"entity": "binned"})]  # fmt: skip
    expected = fit(joined(train_rows), *plain, passes=2, solver=solver)
    np.testing.assert_allclose(
        model.predict(validation_rows), expected.predict(joined(validation_rows)), atol=1e-9
    )
    own = model.coefficients("per-pair", entity=("item-3", "a"))
    theirs = expected.coefficients("per-pair", entity="item-3/a")
    np.testing.assert_allclose(own["value"], theirs["value"], atol=1e-9)
    assert model.coefficients("per-bin")["entity"].to_pylist() == sorted(INTERVALS)


def test_how_an_entity_is_named(train_rows: pa.Table) -> None:
    model = fit(train_rows, PAIR, BINS, MIXED, NUMBERED)
    for coordinate, names in {
        "per-pair": [("item-3", "a"), ["item-3", "a"], '["item-3","a"]', '[ "item-3", "a" ]'],
        "per-bin": [0.3, 0, "[0,1)", "0.3"],
        "mixed": [("b", 3.5), ("b", "[0,inf)"), '["b",3.5]', '["b","[0,inf)"]'],
        "numbered": [(3, "a"), '[3,"a"]', [np.int64(3), "a"]],
    }.items():
        values = [model.coefficients(coordinate, entity=name)["value"].to_pylist()
                  for name in names]  # fmt: skip
        assert values.count(values[0]) == len(values)
    with pytest.raises(ModelError, match=r"has no model of entity \('item-3', 'z'\)"):
        model.coefficients("per-pair", entity=("item-3", "z"))
    for unknown in ("item-3", 3, ("item-3",), object()):
        with pytest.raises(ModelError, match="has no model of entity"):
            model.coefficients("per-pair", entity=unknown)


def test_a_saved_model_knows_what_its_entities_are_made_of(
    train_rows: pa.Table, validation_rows: pa.Table, tmp_path: Path
) -> None:
    model = fit(train_rows, PAIR, BINS, MIXED)
    model.save(tmp_path / "model")
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    assert manifest["derived_entities"] == {
        "item+kind": ["item", "kind"],
        "x[-0.5,0,1]": [{"column": "x", "bins": [-0.5, 0.0, 1.0]}],
        "kind+x[0]": ["kind", {"column": "x", "bins": [0.0]}],
    }
    assert manifest["coordinates"]["mixed"]["entity"] == "kind+x[0]"
    loaded = MixedModel.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(validation_rows), model.predict(validation_rows))
    warm = MixedModel([MIXED, BINS], features=FEATURES, initial_model=tmp_path / "model")
    warm.fit(train_rows)
    other = MIXED.model_copy(update={"entity": ("x", "kind")})
    with pytest.raises(ConfigError) as caught:
        fit(train_rows, other, initial_model=tmp_path / "model")
    assert str(caught.value) == (
        "coordinates.mixed: entity is x+kind, in initial_model it is kind+x[0]"
    )


def test_parts_of_another_type(
    train_rows: pa.Table, validation_rows: pa.Table, tmp_path: Path
) -> None:
    model = fit(train_rows, NUMBERED)
    model.save(tmp_path / "model")
    text = validation_rows["user"].cast(pa.string())
    rows = validation_rows.drop_columns(["user"]).append_column("user", text)
    said = r"entity column 'user\+kind' is text, text in these rows, but an integer, text in those"
    with pytest.raises(DataError, match=said):
        model.predict(rows)
    with pytest.raises(DataError, match=said):
        fit(rows, NUMBERED, initial_model=tmp_path / "model")
    with pytest.raises(DataError, match=said):
        MixedModel([NUMBERED]).fit(train_rows, validation=rows)
    unseen = validation_rows.slice(0, 0)
    assert model.predict(unseen).size == 0


def test_limits_and_metrics(train_rows: pa.Table, validation_rows: pa.Table) -> None:
    limited = PAIR.model_copy(update={"min_active_rows": 12, "max_active_rows": 15})
    model = MixedModel([limited], features=FEATURES, metrics=["auc:item+kind", "auc:item"])
    model.fit(train_rows, validation=validation_rows)
    assert 0 < len(model.model_.coordinate("per-pair").coefficients) < 36
    assert all(0.0 < value < 1.0 for value in model.history_[-1].metrics.values())


def test_the_commands(project: Path, capsys: Any) -> None:
    config = RunConfig.from_yaml(
        Path("run.yaml"),
        {
            "coordinates.per-item.entity": "[item, kind]",
            "coordinates.per-user.entity": "{column: x, bins: [-1, 1]}",
        },
    )
    assert config.coordinates["per-user"].entity == BinnedColumn(column="x", bins=(-1, 1))
    run(config)
    assert RunConfig.from_yaml(Path("runs/one/run.yaml")) == config

    def call(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            cli.app(list(arguments), prog_name="gdmix")
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out + captured.err

    shown = []
    for entity in ('["item-3","a"]', '["item-3", "a"]'):
        code, said = call("inspect", "runs/one", "-c", "per-item", "-e", entity, "--json")
        assert code == 0
        shown.append(json.loads(said))
    assert shown[0] == shown[1]
    assert call("inspect", "runs/one", "-c", "per-user", "-e", "0.5")[0] == 0
    assert call("inspect", "runs/one", "-c", "per-user", "-e", "[-1,1)")[0] == 0
    code, said = call("inspect", "runs/one", "-c", "per-item", "-e", "item-3")
    assert (code, said) == (2, "error: coordinate 'per-item' has no model of entity 'item-3'\n")
    assert call("score", "runs/one", "validation.parquet", "-o", "s.parquet")[0] == 0
    scores, expected = (pq.read_table(p) for p in
                        ("s.parquet", "runs/one/global/validation_scores"))  # fmt: skip
    np.testing.assert_allclose(scores["total_score"], expected["total_score"], atol=1e-12)
    assert set(scores["x[-1,1]"].to_pylist()) == {"(-inf,-1)", "[-1,1)", "[1,inf)"}
    assert scores["item+kind"][0].as_py().startswith('["item-')
