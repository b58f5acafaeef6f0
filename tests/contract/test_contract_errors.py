"""Whatever a user gets wrong, every engine says the same of it, once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from contract_rows import Data, assert_same, config_of, make_rows, outcome_of, reference_of

from gdmix import ExternalScores, FixedEffect, RandomEffect
from gdmix.engines.base import Engine
from gdmix.engines.local import LocalEngine
from gdmix.errors import DataError, GdmixError
from gdmix.model.store import write_model

ROLES = {"weight": "importance", "offset": "base"}
PARTS = (
    FixedEffect("global", features=["row", "more", "dense"]),
    RandomEffect("per-user", entity="user"),
    RandomEffect("per-item", entity="item", features=["row"]),
)


def with_values(rows: pa.Table, column: str, values: dict[int, Any]) -> pa.Table:
    """Return rows with other values of a column at some positions."""
    own = rows[column].to_pylist()
    for row, value in values.items():
        own[row] = value
    place = rows.schema.get_field_index(column)
    return rows.set_column(place, rows.field(column), pa.array(own, rows[column].type))


def without(rows: pa.Table, *columns: str) -> pa.Table:
    return rows.drop_columns(list(columns))


def as_text(rows: pa.Table, column: str) -> pa.Table:
    place = rows.schema.get_field_index(column)
    return rows.set_column(place, column, rows[column].cast(pa.string()))


def with_all_findings(rows: pa.Table) -> pa.Table:
    """Return rows that have one of each fault, and some twice, in far parts."""
    uid = rows["uid"].to_pylist()
    n = len(uid)
    rows = with_values(rows, "uid", {n - 2: uid[3], n - 1: uid[3], 40: uid[n // 2], 41: None})
    rows = with_values(rows, "response", {5: 2, n - 5: 3, 6: None})
    rows = with_values(rows, "importance", {7: -1.0, n - 7: -2.0, 8: np.nan})
    rows = with_values(rows, "base", {9: np.inf, n - 9: np.nan})
    rows = with_values(rows, "user", {10: None, n - 10: None})
    rows = with_values(rows, "item", {11: None})
    rows = with_values(rows, "x", {12: np.nan, n - 12: -np.inf})
    rows = with_values(rows, "tags", {13: ["p", "p"], 14: [None, "q"]})
    return with_values(rows, "embedding", {15: [1.0, np.nan, 2.0], n - 15: [1.0, 2.0, None]})


@dataclass(frozen=True)
class Mistake:
    """What a user may get wrong.

    Attributes
    ----------
    train, validation
        Change rows.
    files
        Changes what is on disk.
    settings, parts
        Of the configuration.
    """

    train: Callable[[pa.Table], pa.Table] = lambda rows: rows
    validation: Callable[[pa.Table], pa.Table] | None = None
    files: Callable[[Data], Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    parts: tuple[Any, ...] = PARTS


def remove(name: str) -> Callable[[Data], Any]:
    def change(data: Data) -> Any:
        (data.validation.parent / name).unlink()

    return change


def damage(data: Data) -> None:
    content = bytearray(data.train[1].read_bytes())
    content[20:400] = bytes(380)
    data.train[1].write_bytes(content)


def truncate(data: Data) -> None:
    data.train[1].write_bytes(data.train[1].read_bytes()[:-100])


def other_schema(data: Data) -> None:
    rows = pq.read_table(data.train[1])
    pq.write_table(as_text(without(rows, "kind"), "user"), data.train[1])


def no_label_of(value: int) -> Callable[[pa.Table], pa.Table]:
    return lambda rows: with_values(rows, "response", dict.fromkeys(range(rows.num_rows), value))


MISTAKES = {
    "findings": Mistake(train=with_all_findings),
    "findings of validation rows": Mistake(validation=with_all_findings),
    "missing columns": Mistake(train=lambda rows: without(rows, "x", "user", "importance")),
    "missing columns of validation": Mistake(validation=lambda rows: without(rows, "tags", "base")),
    "no response": Mistake(train=lambda rows: without(rows, "response")),
    "uids that are no numbers": Mistake(train=lambda rows: as_text(rows, "uid")),
    "responses that are no numbers": Mistake(train=lambda rows: as_text(rows, "response")),
    "entities of another type": Mistake(validation=lambda rows: as_text(rows, "user")),
    "no rows": Mistake(train=lambda rows: rows[:0]),
    "no validation rows": Mistake(validation=lambda rows: rows[:0]),
    "no positive label": Mistake(train=no_label_of(0)),
    "no negative label": Mistake(train=no_label_of(1)),
    "no weight": Mistake(
        train=lambda rows: with_values(rows, "importance", dict.fromkeys(range(320), 0.0))
    ),
    "missing file": Mistake(files=remove("train-1.parquet")),
    "missing validation file": Mistake(files=remove("validation.parquet")),
    "damaged file": Mistake(files=damage),
    "truncated file": Mistake(files=truncate),
    "files that differ": Mistake(files=other_schema),
    "metric of other labels": Mistake(
        settings={"task": "poisson_regression", "metrics": ["logloss"]}
    ),
    "bins of no number": Mistake(
        train=lambda rows: with_values(rows, "age", {3: None, 300: np.nan}),
        parts=(RandomEffect("aged", entity={"column": "age", "bins": [30.0]}),),
    ),
    "bins of text": Mistake(
        parts=(RandomEffect("aged", entity={"column": "item", "bins": [30.0]}),),
    ),
    "nothing to keep": Mistake(
        train=lambda rows: with_values(rows, "response", dict.fromkeys(range(320), 7)),
        settings={"validate": "drop"},
    ),
}


def error_of(action: Callable[[], Any]) -> GdmixError:
    with pytest.raises(GdmixError) as caught:
        action()
    return caught.value


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_data(
    new_engine: Callable[[], Engine], tables: dict[str, pa.Table], tmp_path: Path, name: str
) -> None:
    mistake = MISTAKES[name]
    judged = mistake.validation or (lambda rows: rows)
    data = Data.write(tmp_path, mistake.train(tables["train"]), judged(tables["validation"]))
    if mistake.files is not None:
        mistake.files(data)
    settings = {"columns": ROLES, **mistake.settings}
    config = config_of(*mistake.parts, **settings)
    sources = config, data.train, data.validation
    wanted = error_of(lambda: LocalEngine().prepare(*sources))
    found = error_of(lambda: new_engine().prepare(*sources))
    assert str(found) == str(wanted)
    assert type(found) is type(wanted)


def test_mistakes_in_models(
    new_engine: Callable[[], Engine], tables: dict[str, pa.Table], data: Data, tmp_path: Path
) -> None:
    """A model that rows don't go with, damaged files of one, and no model at all."""
    train = tables["train"]
    texts = as_text(train, "user")
    for name, rows in (("texts", texts), ("damaged", train)):
        write_model(reference_of(config_of(*PARTS), rows).model, tmp_path / name)
    (tmp_path / "damaged" / "per-user" / "models" / "part-00000.parquet").write_bytes(b"no")
    lacking = RandomEffect("per-age", entity={"column": "age", "bins": [40]}, locked=True)
    for config in (
        config_of(*PARTS, initial_model=tmp_path / "texts"),
        config_of(*PARTS, prior={"model": tmp_path / "texts"}),
        config_of(*PARTS, initial_model=tmp_path / "damaged"),
        config_of(*PARTS, initial_model=tmp_path / "none"),
        config_of(*PARTS, lacking, initial_model=tmp_path / "texts"),
    ):
        sources = config, data.train, data.validation
        wanted = error_of(lambda: LocalEngine().prepare(*sources))  # noqa: B023
        found = error_of(lambda: new_engine().prepare(*sources))  # noqa: B023
        assert str(found) == str(wanted)


def test_mistakes_in_scores_from_files(
    new_engine: Callable[[], Engine], tables: dict[str, pa.Table], data: Data, tmp_path: Path
) -> None:
    ids = {role: rows["uid"].to_numpy() for role, rows in tables.items()}
    good = tmp_path / "good.parquet"
    pq.write_table(pa.table({"uid": ids["validation"], "score": np.ones(140)}), good)
    repeated = np.concatenate([ids["train"], ids["train"][:7]])
    odd = np.where(np.arange(320) < 3, np.nan, 1.0)
    cases = [
        {"uid": ids["train"][9:], "score": np.ones(311)},
        {"uid": repeated, "score": np.ones(327)},
        {"uid": ids["train"], "score": odd},
        {"uid": ids["train"], "other": odd},
        {"id": ids["train"], "score": odd},
    ]
    for case in cases:
        path = tmp_path / "scores.parquet"
        pq.write_table(pa.table(case), path)
        scores = ExternalScores("outer", train=path, validation=good)
        config = config_of(scores, *PARTS)
        sources = config, data.train, data.validation
        wanted = error_of(lambda: LocalEngine().prepare(*sources))  # noqa: B023
        found = error_of(lambda: new_engine().prepare(*sources))  # noqa: B023
        assert str(found) == str(wanted)


@pytest.mark.parametrize("uids", [True, False])
def test_rows_that_are_dropped(
    engine: Engine, tmp_path: Path, uids: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The model is that of the rows that are left, and the same is said of the others."""
    train, validation = (with_all_findings(make_rows(n, n, new=2)) for n in (320, 140))
    if not uids:
        train, validation = without(train, "uid"), without(validation, "uid")
    data = Data.write(tmp_path, train, validation)
    sampled = RandomEffect("per-user", entity="user", max_active_rows=15)
    config = config_of(*PARTS[::2], sampled, columns=ROLES, validate="drop")
    said = []
    outcomes = []
    for own in (engine, LocalEngine()):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "gdmix"):
            outcomes.append(outcome_of(own, config, data.train, data.validation))
        said.append([r.getMessage() for r in caplog.records])
    assert_same(*outcomes)
    assert said[0] == said[1]
    assert any("dropped" in line for line in said[0])


def test_unchecked_rows(engine: Engine, tables: dict[str, pa.Table], tmp_path: Path) -> None:
    """Where nothing is checked, a repeated uid is one row more."""
    rows = with_values(tables["train"], "uid", {300: tables["train"]["uid"][3].as_py()})
    data = Data.write(tmp_path, rows, tables["validation"])
    config = config_of(*PARTS, columns=ROLES, validate="off")
    outcome = outcome_of(engine, config, data.train, data.validation)
    wanted = reference_of(config, rows, tables["validation"])
    for name, model in wanted.model.linear.items():
        found = outcome.model.linear[name].coefficients.values
        np.testing.assert_allclose(found, model.coefficients.values, rtol=0, atol=1e-9)


def test_findings_are_the_exception(engine: Engine, tmp_path: Path) -> None:
    rows = make_rows(320)
    data = Data.write(tmp_path, with_all_findings(rows), rows)
    config = config_of(*PARTS, columns=ROLES)
    with pytest.raises(DataError) as caught:
        engine.prepare(config, data.train, data.validation)
    assert len(caught.value.findings) > 10
    assert not any("Traceback" in line or "org.apache" in line for line in caught.value.findings)
