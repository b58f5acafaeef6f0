"""A deep coordinate among others: fit, score, save, start from, encode."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")

from deep_rows import FEATURES, TRAINING, everything, make_rows  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from gdmix import (  # noqa: E402
    ConfigError,
    DataError,
    DeepFixedEffect,
    FixedEffect,
    MixedModel,
    ModelError,
    RandomEffect,
    memory,
)
from gdmix.deep.model import DeepModel, read_deep  # noqa: E402
from gdmix.evaluation.evaluate import evaluate  # noqa: E402

PER_USER = RandomEffect("per-user", entity="user", l2=2.0)


def deep_of(model: MixedModel, name: str = "global") -> DeepModel:
    own = model.model_.coordinates[name]
    assert isinstance(own, DeepModel)
    return own


def parts(model: MixedModel, rows: Any) -> dict[str, Any]:
    return model.predict(rows, kind="components")


@pytest.fixture(scope="module")
def train() -> pa.Table:
    return make_rows(500, 1)


@pytest.fixture(scope="module")
def test_rows() -> pa.Table:
    """Rows with texts and ids that training does not have."""
    rows = make_rows(301, 2)
    odd = ["", "purple cow", "red " * 100_000, None, "red!green?BLUE"]
    rows = rows.set_column(1, "title", pa.array(odd * 60 + rows["title"].to_pylist()[300:]))
    return rows.set_column(
        3, "color", pa.array(["cyan", "beige", None, "", "gold"] * 60 + ["pink"])
    )


@pytest.fixture(scope="module")
def fitted(train: pa.Table) -> MixedModel:
    return MixedModel([everything(), PER_USER], features=FEATURES, threads=1).fit(train)


def test_scores_in_another_process(fitted: MixedModel, test_rows: pa.Table, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    pq.write_table(test_rows, tmp_path / "rows.parquet")
    order = np.random.default_rng(0).permutation(test_rows.num_rows)
    np.save(tmp_path / "order.npy", order)
    program = """
import sys, numpy as np, pyarrow.parquet as pq
from gdmix import MixedModel
rows, order = pq.read_table("rows.parquet"), np.load("order.npy")
model = MixedModel.load("model")
scores = np.empty(rows.num_rows)
for part in np.array_split(order, 7):
    scores[part] = model.predict(rows.take(part), kind="components")["global"]
np.save("scores.npy", scores)
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    wanted = parts(fitted, test_rows)["global"]
    assert np.isfinite(wanted).all() and wanted.std() > 0.3
    assert np.load(tmp_path / "scores.npy") == pytest.approx(wanted, abs=1e-5)


def test_a_saved_model_is_whole(fitted: MixedModel, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    own, folder = deep_of(fitted), tmp_path / "model" / "global" / "models"
    entry = json.loads((tmp_path / "model" / "manifest.json").read_text())["coordinates"]["global"]
    assert entry == json.loads(json.dumps(own.describe()))
    read = read_deep(folder, entry, {})
    assert read.spec == own.spec.model_copy(update={"name": ""})
    assert (read.level, read.scale, read.fits) == (own.level, own.scale, 1)
    for (name, a), (_, b) in zip(
        read.network.state_dict().items(), own.network.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    summary = MixedModel.load(tmp_path / "model").model_.summary("global")
    assert summary["coefficients"] == sum(p.numel() for p in own.network.parameters())
    assert summary["text"] == ["title", "query"] and summary["encoder"] == "cnn"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", None, "damaged or missing"),
        ("model.safetensors", b"nonsense", "model.safetensors: damaged"),
        ("config.json", b"{", "config.json: damaged"),
        ("config.json", b"{}", "config.json: damaged"),
        ("categories-0.parquet", None, "categories-0.parquet: damaged or missing"),
        ("tokenizer/vocabulary.txt", b"[PAD]\n[UNK]\nred\n", "does not fit config.json"),
        ("tokenizer/vocabulary.txt", b"[PAD]\n[UNK]\n", "no word beside"),
    ],
)
def test_damaged_files(
    fitted: MixedModel, tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    fitted.save(tmp_path / "model")
    path = tmp_path / "model" / "global" / "models" / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        MixedModel.load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_rows_of_every_kind_are_scored(train: pa.Table, test_rows: pa.Table) -> None:
    """What training has not seen scores as if it were missing; of a hashed cross it could not."""
    model = MixedModel([everything(crosses=[["color", "user"]])], features=FEATURES).fit(train)
    scores = parts(model, test_rows)["global"]
    assert scores.shape == (301,) and np.isfinite(scores).all()
    title = ["", "unknown words", "red " * 64, "", "red green blue"] * 60
    color = pa.array(["cyan", None, None, None, "gold"] * 60 + ["pink"])
    known = test_rows.set_column(3, "color", color).set_column(
        1, "title", pa.array(title + test_rows["title"].to_pylist()[300:])
    )
    assert parts(model, known)["global"] == pytest.approx(scores, abs=1e-5)


def test_same_seed_same_model(train: pa.Table) -> None:
    one, same, other = (
        MixedModel([everything()], features=FEATURES, seed=seed).fit(train).predict(train)
        for seed in (0, 0, 1)
    )
    assert np.array_equal(one, same)
    assert not np.allclose(one, other, atol=1e-3)


FULL = {"epochs": 600, "batch_size": 500, "learning_rate": 0.3, "weight_decay": 0.0, "clip": None}


@pytest.mark.parametrize("task", ["logistic_regression", "linear_regression", "poisson_regression"])
def test_a_linear_network_finds_the_linear_optimum(task: Any, train: pa.Table) -> None:
    """Beside an offset and with weights: as Newton's method does for a fixed effect."""
    response = {"linear": "level", "poisson": "count"}.get(task.partition("_")[0], "response")
    rows = train.append_column("offset", pa.array(0.4 * train["z"].to_numpy()))
    common = {"features": FEATURES, "task": task, "columns": {"response": response}}
    training = FULL | ({"learning_rate": 0.03, "epochs": 1500} if task[0] == "p" else {})
    spec = DeepFixedEffect("global", dense="numbers", wide="row", hidden=[], training=training)
    exact = FixedEffect("global", features=["numbers", "row"], l2=0.0)
    deep = MixedModel([spec], **common).fit(rows)
    wanted = MixedModel([exact], **common).fit(rows)
    scores = parts(wanted, rows)["global"]
    spread = scores.std()
    assert parts(deep, rows)["global"] == pytest.approx(scores, abs=5e-3 * spread)
    found, best = (m.history_[-1].objective for m in (deep, wanted))
    assert found == pytest.approx(best, rel=1e-6)


def test_passes_reach_the_joint_optimum(train: pa.Table) -> None:
    training = {**FULL, "epochs": 150}
    spec = DeepFixedEffect("global", dense="numbers", hidden=[], training=training)
    deep = MixedModel([spec, PER_USER], features=FEATURES, passes=6).fit(train)
    exact = FixedEffect("global", features=["numbers"], l2=0.0)
    wanted = MixedModel([exact, PER_USER], features=FEATURES, passes=30, tolerance=1e-10).fit(train)
    assert deep.history_[-1].objective == pytest.approx(wanted.history_[-1].objective, rel=1e-4)
    assert deep.predict(train) == pytest.approx(wanted.predict(train), abs=0.01)
    assert deep_of(deep).fits == 6


def test_a_later_pass_goes_on(train: pa.Table) -> None:
    refit = {"steps": 20, "learning_rate": 0.001}
    spec = everything(refit=refit)
    one = MixedModel([spec, PER_USER], features=FEATURES).fit(train)
    two = MixedModel([spec, PER_USER], features=FEATURES, passes=2).fit(train)
    steps = [s for s in two.history_ if s.coordinate == "global"]
    assert [s.report.iterations for s in steps] == [150, 20]
    assert steps[1].objective < two.history_[1].objective
    first, second = (deep_of(m).network.state_dict() for m in (one, two))
    for name, weights in first.items():
        assert not torch.equal(weights, second[name]) or weights.numel() < 5, name
        assert torch.allclose(weights, second[name], atol=0.1), name
    kept = MixedModel([everything(refit={"steps": 0}), PER_USER], features=FEATURES, passes=2)
    assert np.array_equal(parts(kept.fit(train), train)["global"], parts(one, train)["global"])
    assert kept.history_[2].report.iterations == 0


def test_starting_from_an_earlier_model(
    fitted: MixedModel, train: pa.Table, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "model")
    color = ["beige" if k % 9 == 0 else c for k, c in enumerate(train["color"].to_pylist())]
    tags = [["new", *t] if k % 7 == 0 else t for k, t in enumerate(train["tags"].to_pylist())]
    rows = train.set_column(3, "color", pa.array(color)).set_column(
        7, "tags", pa.array(tags, pa.list_(pa.string()))
    )
    common = {"features": FEATURES, "initial_model": tmp_path / "model"}
    same = MixedModel([everything(refit={"steps": 0}), PER_USER], **common).fit(rows)
    old = np.flatnonzero([k % 9 != 0 and k % 7 != 0 for k in range(500)])
    wanted = parts(fitted, train)["global"]
    assert parts(same, rows)["global"][old] == pytest.approx(wanted[old], abs=1e-5)
    more = MixedModel([everything(refit={"epochs": 2}), PER_USER], **common).fit(rows)
    own, before = deep_of(more), deep_of(same)
    assert own.fits == 2 and own.encoding.ids["color"].values[-1].as_py() == "beige"
    new = own.encoding.sizes.ids["color"] - 1
    table, begun = own.network.ids[0].weight, before.network.ids[0].weight  # type: ignore[index,union-attr]
    assert new == 5 and not torch.equal(table[new], begun[new])
    more.save(tmp_path / "more")
    read = MixedModel.load(tmp_path / "more")
    assert read.predict(rows) == pytest.approx(more.predict(rows), abs=1e-6)


def test_a_locked_coordinate_stays(fitted: MixedModel, train: pa.Table, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    common = {"features": FEATURES, "initial_model": tmp_path / "model"}
    rows = make_rows(200, 3, tags=pa.array([["q"]] * 200, pa.list_(pa.string())))
    model = MixedModel([everything(locked=True), PER_USER], **common).fit(rows, validation=train)
    assert [s.coordinate for s in model.history_] == ["per-user"]
    assert parts(model, train)["global"] == pytest.approx(parts(fitted, train)["global"], abs=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden": [9]}, r"coordinates.global: hidden is \[9\], in initial_model it is \[8\]"),
        ({"encoder": "lstm"}, "encoder.type is lstm, in initial_model it is cnn"),
        ({"sides": {"user": {"text": "query"}}}, "sides.document is none, in initial_model it is"),
        ({"wide_dim": 2}, "wide_dim is 2, in initial_model it is 3"),
    ],
)
def test_an_earlier_model_of_another_shape(
    fitted: MixedModel, train: pa.Table, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    fitted.save(tmp_path / "model")
    model = MixedModel(
        [everything(**changed), PER_USER], features=FEATURES, initial_model=tmp_path / "model"
    )
    with pytest.raises(ConfigError, match=message):
        model.fit(train)


def test_an_earlier_model_may_be_trained_otherwise(
    fitted: MixedModel, train: pa.Table, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "model")
    spec = everything(dropout=0.3, training={"steps": 3}, refit={"learning_rate": 0.1})
    MixedModel([spec], features=FEATURES, initial_model=tmp_path / "model").fit(train)


def test_vectors_of_a_side(fitted: MixedModel, test_rows: pa.Table, tmp_path: Path) -> None:
    vectors = fitted.encode(test_rows, "global")
    assert vectors.shape == (301, 5) and vectors.dtype == np.float32
    order = np.random.default_rng(0).permutation(301)
    some = test_rows.take(order[:100]).select(["title", "tags", "query", "color", "user", "x", "z"])
    assert fitted.encode(some, "global") == pytest.approx(vectors[order[:100]], abs=1e-6)
    own = deep_of(fitted)
    encoded = own.encoding.encode(fitted._load(test_rows)).batch(np.arange(301))
    with torch.no_grad():
        wanted = own.network.side_vector("user", encoded).numpy()  # type: ignore[operator]
    assert fitted.encode(test_rows, "global", side="user") == pytest.approx(wanted, abs=1e-6)


def test_vectors_as_features_of_a_random_effect(fitted: MixedModel, train: pa.Table) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(fitted.encode(train, "global").reshape(-1)), 5
    )
    rows = train.append_column("vector", vectors)
    per_user = RandomEffect("per-user", entity="user", features="item", l2=2.0)
    model = MixedModel([per_user], features={"item": ["vector"]}).fit(rows)
    assert model.coefficients("per-user", entity=3).num_rows == 6


@pytest.mark.parametrize(
    ("coordinate", "side", "message"),
    [
        ("globl", "document", r"no coordinate 'globl' \(did you mean 'global'\?\)"),
        ("per-user", "document", "is of type random_effect: only deep ones encode"),
        ("global", "documents", r"no side 'documents' \(did you mean 'document'\?\); it has: doc"),
    ],
)
def test_vectors_of_nothing(
    fitted: MixedModel, train: pa.Table, coordinate: str, side: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        fitted.encode(train, coordinate, side)


class Slopes(nn.Module):
    """What a user may write: numbers and an id to a score."""

    def __init__(self, inputs: Any, factor: float = 1.0) -> None:
        super().__init__()
        self.numbers = nn.Linear(inputs.dense["numbers"], 1)
        self.colors = nn.Embedding(inputs.ids["color"], 1)
        self.factor = factor

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        score = self.numbers(batch["dense/numbers"]) + self.colors(batch["id/color"])
        return self.factor * score.squeeze(1)


class Wrong(Slopes):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return super().forward(batch)[:-1]


class Odd(Slopes):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        score = super().forward(batch)
        return score if self.training else score / 0.0


def own_spec(name: str, **more: Any) -> DeepFixedEffect:
    return DeepFixedEffect(
        "global",
        dense="numbers",
        categorical="color",
        model=f"test_deep_model:{name}",
        training=TRAINING,
        **more,
    )


def test_a_network_of_the_users_own(train: pa.Table, tmp_path: Path) -> None:
    spec = own_spec("Slopes", params={"factor": 2.0})
    model = MixedModel([spec, PER_USER], features=FEATURES, passes=2).fit(train)
    model.save(tmp_path / "model")
    read = MixedModel.load(tmp_path / "model")
    assert parts(read, train)["global"] == pytest.approx(parts(model, train)["global"], abs=1e-6)
    assert deep_of(read).network.factor == 2.0
    with pytest.raises(ModelError, match="Slopes is a network of your own: it has no sides"):
        read.encode(train, "global")
    more = {"features": FEATURES, "initial_model": tmp_path / "model"}
    MixedModel([spec], **more).fit(train)
    new = make_rows(100, 4, color=["beige", "cyan"] * 50)
    with pytest.raises(ConfigError, match="Slopes can't go on .* other features or ids"):
        MixedModel([spec], **more).fit(new)


def test_a_network_that_scores_badly(train: pa.Table) -> None:
    with pytest.raises(ModelError, match=r"Odd: 500 of 500 scores are infinite or NaN"):
        MixedModel([own_spec("Odd")], features=FEATURES).fit(train)


def test_a_network_that_scores_other_rows(train: pa.Table) -> None:
    spec = own_spec("Wrong", refit={"steps": 0})
    with pytest.raises((ModelError, ConfigError), match="Wrong|score"):
        MixedModel([spec], features=FEATURES).fit(train)


def test_validation_rows_judge_beside_all_else(train: pa.Table, monkeypatch: Any) -> None:
    """The best state by the validation metric of the whole model, others' scores included."""
    training = {"steps": 60, "batch_size": 32, "learning_rate": 0.05, "judge_every": 10}
    spec = DeepFixedEffect(
        "global", dense="numbers", training={**training, "judge_on_validation": True}
    )
    judged = make_rows(300, 7)
    model = MixedModel([PER_USER, spec], features=FEATURES, metrics="logloss")
    with pytest.raises(ConfigError, match="judge_on_validation needs validation rows"):
        model.fit(train)
    seen: list[float] = []

    def noting(names: Any, score: Any, *rest: Any, **more: Any) -> dict[str, float]:
        values = evaluate(names, score, *rest, **more)
        seen.append(values["logloss"])
        return values

    monkeypatch.setattr("gdmix.deep.coordinate.evaluate", noting)
    model.fit(train, validation=judged)
    assert len(seen) == 6
    last = model.history_[1].metrics["logloss"]
    assert last == pytest.approx(min(seen), abs=1e-6)
    assert last < model.history_[0].metrics["logloss"]


def test_ranking_by_query() -> None:
    rng = np.random.default_rng(0)
    rows = make_rows(600, 5)
    query = np.repeat(np.arange(100), 6)
    relevance = np.clip(np.round(rows["x"].to_numpy() / 8 + rng.normal(size=600) * 0.1 - 5), 0, 4)
    rows = rows.append_column("query_id", pa.array(query)).append_column(
        "relevance", pa.array(relevance)
    )
    scores = {}
    for loss in ("softmax", "pairwise", "lambdarank"):
        spec = DeepFixedEffect(
            "ranker", dense="numbers", loss=loss, group="query_id", training=TRAINING
        )
        common = {"task": "linear_regression", "columns": {"response": "relevance"}}
        model = MixedModel([spec], features=FEATURES, metrics=["ndcg@3:query_id"], **common)
        scores[loss] = model.fit(rows).history_[-1].metrics["ndcg@3:query_id"]
        model.predict(rows.drop_columns(["query_id"]))  # groups are for training
    assert min(scores.values()) > 0.98, scores


def test_rankers_are_trained_alone() -> None:
    spec = DeepFixedEffect("ranker", dense="numbers", loss="softmax", group="query")
    with pytest.raises(
        ConfigError, match="coordinates.ranker.loss: softmax fits the order .* 'per"
    ):
        MixedModel([spec, PER_USER], features=FEATURES)
    rows = make_rows(100, 1)
    with pytest.raises(DataError, match="relevance|negative|below 0"):
        MixedModel(
            [spec], features=FEATURES, task="linear_regression", columns={"response": "z"}
        ).fit(rows)


def test_rows_beyond_memory(train: pa.Table, tmp_path: Path) -> None:
    rows = make_rows(20_000, 1)
    spec = everything(training={"epochs": 1, "batch_size": 200})
    with memory.limited(2_000_000, tmp_path / "scratch"):
        model = MixedModel([spec, PER_USER], features=FEATURES, metrics="auc").fit(rows)
    inside = MixedModel([spec, PER_USER], features=FEATURES, metrics="auc").fit(rows)
    found, wanted = (m.history_[-1].metrics["auc"] for m in (model, inside))
    assert found == pytest.approx(wanted, abs=0.01) and wanted > 0.65
    assert not np.array_equal(model.predict(train), inside.predict(train))  # drawn in blocks


@pytest.mark.parametrize("kind", ["hf", "frozen"])
def test_a_pretrained_encoder(kind: str, train: pa.Table, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tiny_hf import WORDS, save_tiny

    words = np.array(WORDS)[np.arange(500) % len(WORDS)]
    rows = train.set_column(
        1, "title", pa.array([f"the {a} it {b}" for a, b in zip(words, words[::-1], strict=True)])
    )
    source = save_tiny("bert", tmp_path / "tiny")
    encoder = {"type": kind, "model": source, "max_length": 12, "dim": 7}
    encoder |= {"cache": tmp_path / "cache"} if kind == "frozen" else {}
    spec = everything(encoder=encoder, training={"steps": 20, "encoder_learning_rate": 1e-3})
    model = MixedModel([spec, PER_USER], features=FEATURES, passes=2).fit(rows)
    model.save(tmp_path / "model")
    shutil.rmtree(tmp_path / "tiny")
    read = MixedModel.load(tmp_path / "model")
    order = np.random.default_rng(0).permutation(500)
    wanted = parts(model, rows)["global"]
    assert parts(read, rows.take(order))["global"] == pytest.approx(wanted[order], abs=1e-5)
    assert read.encode(rows, "global").shape == (500, 5)
    trained = [name for name, _ in deep_of(model).network.named_parameters() if "encoder" in name]
    assert (len(trained) > 10) == (kind == "hf")


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Blocker())
"""


def test_without_pytorch(fitted: MixedModel, train: pa.Table, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    pq.write_table(train, tmp_path / "rows.parquet")
    program = f"""{BLOCKED}
from gdmix import ConfigError, DeepFixedEffect, MixedModel, ModelError
model = MixedModel([DeepFixedEffect("global", text="title")])
try:
    model.fit("rows.parquet")
except ConfigError as error:
    print(error)
try:
    MixedModel.load("model")
except ModelError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    needs = (
        "a coordinate of type deep needs torch, which is not installed: pip install 'gdmix[deep]'"
    )
    assert done.stdout.splitlines() == [needs, needs], done.stderr


def test_a_configuration_needs_no_pytorch() -> None:
    code = "from gdmix import DeepFixedEffect, MixedModel, RunConfig; import gdmix.runs, sys; "
    code += "DeepFixedEffect('g', text='t'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
