"""docs/migration.md: every command in it runs, and no key of GDMix is left out."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdmix.cli import app
from gdmix.compat import detext, gdmix_yaml
from gdmix.config import ModelConfig
from gdmix.data import movielens
from gdmix.data.movielens import GENRES, SCHEMA, MovieLensFiles
from gdmix.data.movielens_gdmix import OCCUPATIONS

PAGE = Path(__file__).parents[1] / "docs" / "migration.md"
TEXT = PAGE.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def tiny_movielens(
    directory: Path, *, source: Path | None = None, by: str = "rows"
) -> MovieLensFiles:
    """Write rows as `movielens.prepare` does, of our own making."""
    rng = np.random.default_rng(0)
    sizes = {"train": 800, "validation": 300}
    for split, n in sizes.items():
        movie = rng.integers(1, 12, n)
        table = pa.table(
            {
                "uid": np.arange(n),
                "user_id": rng.integers(1, 20, n),
                "movie_id": movie,
                "response": rng.integers(0, 2, n),
                "weight": np.ones(n, np.float32),
                "timestamp": np.arange(n),
                "age": rng.integers(1, 9, n).astype(np.float32) / 10,
                "gender": rng.choice(["M", "F"], n),
                "occupation": rng.choice(OCCUPATIONS, n),
                "genres": [[GENRES[m], GENRES[m + 5]] for m in movie],
                "release_date": (1990 + movie).astype(np.float32) / 2000,
                "title": ["A"] * n,
                "title_words": [["a"]] * n,
                "day": rng.integers(0, 9, n),
                "hour": rng.integers(0, 99, n),
                "minute": rng.integers(0, 999, n),
            },
            schema=SCHEMA,
        )
        directory.mkdir(exist_ok=True)
        pq.write_table(table, directory / f"{split}.parquet")
    return MovieLensFiles(
        directory / "train.parquet", directory / "validation.parquet", *sizes.values()
    )


def test_every_command_runs(
    tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(movielens, "prepare", tiny_movielens)
    for text in blocks("yaml"):
        name = text.splitlines()[0].removeprefix("# ")
        Path(name).write_text(text, encoding="utf-8")
    commands = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) > 10
    for program, *arguments in commands:
        if program == "rm":
            Path(arguments[0]).unlink()
            continue
        assert program == "gdmix"
        with pytest.raises(SystemExit) as stop:
            app(arguments, prog_name="gdmix")
        said = capsys.readouterr()
        assert not stop.value.code, (arguments, said.err)
    assert Path("indexed/per-user/featureList/per_user").exists()
    assert Path("best/random-effect/per-user/id-info").read_text() == "user_id\nuserShard\n"


def test_every_key_is_there() -> None:
    known = {
        *gdmix_yaml._TOP,
        *gdmix_yaml._COORDINATE,
        *gdmix_yaml._RANDOM,
        *gdmix_yaml._SOLVER,
        *gdmix_yaml._WITHOUT_MEANING,
        *gdmix_yaml._SHARED,
        *gdmix_yaml._SHARED_WITHOUT_MEANING,
        *detext.KNOWN,
    } - {"gdmix_config", "fixed_effect_config", "random_effect_config"}
    assert {key for key in known if f"`{key}`" not in TEXT} == set()


def test_what_is_not_yet_there_is_not() -> None:
    # Who builds one of these finds the line of the page that it makes wrong.
    fields = {*ModelConfig.model_fields, *gdmix_yaml.RunConfig.model_fields}
    assert fields.isdisjoint({"tuning"})
