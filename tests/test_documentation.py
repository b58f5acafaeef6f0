"""What the documentation shows of penalties works as it stands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdmix.config import RunConfig
from gdmix.model.store import read_model
from gdmix.runs import read_history, run

PAGE = Path(__file__).parents[1] / "docs" / "how_it_works.md"


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    n = 600
    age = rng.integers(18, 70, n) / 100
    table = {
        "user_id": [f"u{i}" for i in rng.integers(0, 20, n)],
        "age": age,
        "country": rng.choice(["de", "fr"], n),
        "genres": [[g, "Drama"] for g in rng.choice(["News", "Comedy"], n)],
        "response": (rng.uniform(size=n) < age).astype(int),
    }
    pq.write_table(pa.table(table), "rows.parquet")


def trained(heading: str) -> Path:
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1]
    block = section.split("```yaml\n")[1].split("```")[0]
    text = f"data: {{train: rows.parquet, validation: rows.parquet}}\noutput: run\n{block}"
    Path("doc.yaml").write_text(text, encoding="utf-8")
    run(RunConfig.from_yaml(Path("doc.yaml")))
    return Path("run")


def test_penalties(rows: None) -> None:
    model = read_model(trained("Penalties"))
    table = model.coefficient_table("global")
    names = zip(table["name"].to_pylist(), table["term"].to_pylist(), strict=True)
    values = dict(zip(names, table["value"].to_pylist(), strict=True))
    assert values["age", ""] > 1.0
    assert min(abs(v) for v in values.values()) == 0.0


def test_estimated_weights(rows: None) -> None:
    history = read_history(trained("L2 weights by empirical Bayes"))
    groups = [(c["coordinate"], c["group"]) for c in history.variance_components]
    assert groups == [("global", "item"), ("per-user", "(INTERCEPT)"), ("per-user", "item")]
