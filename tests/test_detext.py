"""A DeText model in a GDMix configuration: what its keys become, and the run that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gdmix.compat.detext import translate
from gdmix.compat.gdmix_yaml import load_run
from gdmix.config import DeepFixedEffect
from gdmix.data.tfrecord.write import write_examples

YAML = """\
{
  "output_dir": "out",
  "fixed_effect_config": {"global": {
    "train_file": "rows/detext/train.tfrecord", "dev_file": "rows/detext/test.tfrecord",
    "vocab_file": "vocab.txt", "ftr_ext": "cnn", "ltr_loss_fn": "pointwise", "num_classes": 1,
    "feature_names": "label,doc_title,uid,wide_ftrs_sp_idx,wide_ftrs_sp_val", "num_wide_sp": 4,
    "num_units": 8, "num_filters": 6, "filter_window_sizes": "2,3", "max_len": 16, "min_len": 3,
    "optimizer": "bert_adam", "learning_rate": 0.01, "num_train_steps": 60,
    "train_batch_size": 32, "random_seed": 11, "l2": 0.5, "elem_rescale": true,
    gdmix_config: &g {"model_type": "detext", "label_column_name": "response"},
  }},
  "random_effect_config": {"per-user": {
    "partition_entity": "user_id", "feature_bag": "per_user",
    "training_data_dir": "rows/user/train.tfrecord",
    "validation_data_dir": "rows/user/test.tfrecord",
    gdmix_config: {<<: *g, "model_type": "logistic_regression"},
  }},
}
"""
WORDS = ["good", "fine", "bad", "dull", "Odd", "new"]


def write_rows(folder: Path) -> None:
    """Write DeText's rows (numbers from 1, a float label, text) and those of a random effect."""
    for seed, (split, n) in enumerate({"train": 400, "test": 200}.items()):
        rng = np.random.default_rng(seed)
        word, user, kind = rng.integers(0, 6, n), rng.integers(0, 10, n), rng.integers(0, 4, n)
        score = np.array([2, 1, -2, -1, 0, 0])[word] + 0.5 * (kind == 1)
        stops = np.arange(n + 1, dtype=np.int32) * 2
        both = {"uid": pa.array(np.arange(n)), "user_id": pa.array(user)}
        label = (rng.random(n) < 1 / (1 + np.exp(-score))).astype(np.float32)
        titles = [f"a {WORDS[w]} title" if w else "good" for w in word]
        numbers = np.stack([kind + 1, np.full(n, 5)], 1).ravel()
        number = pa.ListArray.from_arrays(stops, pa.array(numbers))
        value = pa.ListArray.from_arrays(stops, pa.array(np.ones(2 * n, np.float32)))
        table = pa.table(
            {**both, "label": label, "doc_title": titles,
             "wide_ftrs_sp_idx": number, "wide_ftrs_sp_val": value}
        )  # fmt: skip
        write_examples(folder / f"rows/detext/{split}.tfrecord", table.to_batches())
        pair = {"per_user_indices": number, "per_user_values": value}
        table = pa.table({**both, "response": label.astype(np.int64), **pair})
        write_examples(folder / f"rows/user/{split}.tfrecord", table.to_batches())
    (folder / "vocab.txt").write_text("\n".join(["good", "[UNK]", *WORDS[1:], "[PAD]"]) + "\n")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: Any) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("rows/detext", "rows/user"):
        (tmp_path / folder).mkdir(parents=True)
    write_rows(tmp_path)
    (tmp_path / "detext.yaml").write_text(YAML, encoding="utf-8")
    return tmp_path


def test_what_it_becomes(shop: Path) -> None:
    loaded = load_run(Path("detext.yaml"))
    config = loaded.config
    assert config.task == "logistic_regression" and config.columns.response == "label"
    assert list(config.coordinates) == ["global", "per-user"]
    assert config.features["wide_ftrs_sp"].columns == ("wide_ftrs_sp_idx", "wide_ftrs_sp_val")
    assert config.coordinates["global"] == DeepFixedEffect(
        "global",
        text="doc_title",
        wide="wide_ftrs_sp",
        encoder={
            "type": "cnn", "windows": [2, 3], "filters": 6, "word_dim": 8, "max_length": 16,
            "tokenizer": "whitespace", "lowercase": False, "vocabulary": "vocab.txt",
        },
        hidden=[],
        activation="tanh",
        wide_dim=1,
        skip=False,
        training={
            "steps": 60, "batch_size": 32, "learning_rate": 0.01, "epsilon": 1e-6,
            "bias_correction": False, "seed": 11,
        },
    )  # fmt: skip
    place = "fixed_effect_config.global"
    assert loaded.notes[:2] == (
        "ignored, as nothing here depends on them: num_wide_sp, min_len",
        f"{place}.l2: not applied: the weights decay by 0.01 as with DeText's AdamW "
        "(training.weight_decay)",
    )
    assert loaded.notes[2].startswith(f"{place}.elem_rescale: ") and len(loaded.notes) == 3


def test_it_runs(shop: Path) -> None:
    pytest.importorskip("torch")
    from gdmix.model.store import read_model
    from gdmix.runs import run

    history = run(load_run(Path("detext.yaml"), {"threads": "1"}).config)
    assert [s["coordinate"] for s in history.steps] == ["global", "per-user"]
    assert history.steps[0]["metrics"]["auc"] > 0.75
    assert (shop / "out/per-user/models/part-00000.avro").exists()
    assert read_model(Path("out")).coordinates["global"].type == "deep"


def translated(keys: dict[str, Any], columns: list[str]) -> tuple[Any, list[str], list[str]]:
    mistakes: list[str] = []
    notes: list[str] = []
    keys = {"ltr_loss_fn": "pointwise", "optimizer": "adamw", **keys}
    return translate(keys, columns, "label", "g", mistakes.append, notes.append), mistakes, notes


def test_sides_and_pairs() -> None:
    keys = {
        "query_column_name": "query",
        "doc_text_column_names": ["title", "body"],
        "user_id_column_names": ["member"],
        "sparse_ftrs_column_names": ["wide_ftrs_sp"],
        "dense_ftrs_column_names": ["numbers"],
        "emb_sim_func": "inner,diff",
        "num_hidden": [20],
        "num_filters": 5,
        "sparse_embedding_size": 3,
    }
    pair = ["wide_ftrs_sp_indices0", "wide_ftrs_sp_values"]
    columns = ["label", "query", "title", "body", "member", "numbers", *pair]
    found, mistakes, notes = translated(keys, columns)
    assert not mistakes and not notes
    spec = DeepFixedEffect("global", **{k: v for k, v in found.spec.items() if k != "type"})
    assert list(spec.sides) == ["document", "user", "query"]
    assert spec.interaction == ("cosine", "difference") and spec.dim == 5
    assert spec.wide_dim == 3 and spec.hidden == (20,)
    assert found.bags == {"wide_ftrs_sp": {"columns": pair}, "numbers": {"columns": ["numbers"]}}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ltr_loss_fn": "softmax"}, "g.ltr_loss_fn: 'softmax' compares rows"),
        ({"num_classes": 3}, "g.num_classes: 3 classes are not trained here, only 1"),
        ({"task_ids": [1, 2]}, "g.task_ids: several tasks in one model are not trained here"),
        ({"ftr_ext": "bert"}, "g.ftr_ext: 'bert' is TensorFlow's; with a configuration of ours"),
        ({"doc_text_column_names": ["doc_titel"]}, "no column 'doc_titel' (did you mean"),
    ],
)
def test_what_can_not_be_run(keys: dict[str, Any], message: str) -> None:
    _, mistakes, _ = translated(keys, ["label", "doc_title"])
    assert len(mistakes) == 1 and message in mistakes[0]


def test_rows_without_features() -> None:
    _, mistakes, _ = translated({}, ["label", "uid"])
    assert mistakes == ["g: the rows have no features with DeText's names, and none are named"]
