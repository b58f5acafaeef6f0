"""Hashed feature bags: a hash written out in Python, and scikit-learn, are the reference."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression

from gdmix import ConfigError, FixedEffect, MixedModel, ModelError, RandomEffect
from gdmix.config import FeatureBag, ModelConfig
from gdmix.convert import convert_model
from gdmix.data.design import encode_bag
from gdmix.data.feature_index import (
    HASH_NAME,
    FeatureIndex,
    FeatureIndexBuilder,
    HashedIndex,
    features_of,
)
from gdmix.data.keys import hash_texts
from gdmix.glm.matrix import CsrMatrix

NTV = pa.list_(pa.struct({"name": pa.string(), "term": pa.string(), "value": pa.float32()}))
WORD = 2**64 - 1


def reference_hash(text: str) -> int:
    """FNV-1a of 64 bits, and SplitMix64's last step."""
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = ((h ^ byte) * 0x100000001B3) & WORD
    h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & WORD
    return h ^ (h >> 31)


def bucket(name: str, term: str, buckets: int) -> int:
    return reference_hash(f"{name}\x01{term}") % buckets


ROWS = pa.table(
    {
        "z": [1.5, None, 0.0, 2.0],
        "s": ["b", "ä", None, "b"],
        "c": pa.array([10, 9, None, 9]).dictionary_encode(),
        "l": pa.array([["q", "p"], None, [], ["q", None]], pa.list_(pa.string())),
        "d": pa.array([[1, 2], None, [0, 0], [3, 4]], pa.list_(pa.int64(), 2)),
        "t": pa.array(
            [
                [{"name": "n", "term": "2", "value": 3.0}],
                None,
                [
                    {"name": "m", "term": None, "value": 1.0},
                    {"name": None, "term": "x", "value": 1},
                ],
                [],
            ],
            NTV,
        ),
        "w_indices": [[10, 2], [7], None, [2, None]],
        "w_values": [[1.0, 1.0], [0.0], None, [0.5, 1.0]],
        "response": [0, 1, 1, 0],
    }
)
COLUMNS = tuple(c for c in ROWS.column_names if c != "response")
FEATURES: list[dict[tuple[str, str], float]] = [
    {("z", ""): 1.5, ("s", "b"): 1, ("c", "10"): 1, ("l", "q"): 1, ("l", "p"): 1, ("d", "0"): 1,
     ("d", "1"): 2, ("n", "2"): 3, ("w", "10"): 1, ("w", "2"): 1},
    {("s", "ä"): 1, ("c", "9"): 1},
    {("m", ""): 1},
    {("z", ""): 2, ("s", "b"): 1, ("c", "9"): 1, ("l", "q"): 1, ("d", "0"): 3, ("d", "1"): 4,
     ("w", "2"): 0.5},
]  # fmt: skip


def full(matrix: CsrMatrix) -> Any:
    x = np.zeros((matrix.n_rows, matrix.n_columns))
    x[np.repeat(np.arange(matrix.n_rows), np.diff(matrix.indptr)), matrix.indices] = matrix.values
    return x


class TestHash:
    def test_it_stays_as_it_is(self) -> None:
        # Written down: models that were saved depend on these.
        texts = ["", "a", "gender\x01F", "(INTERCEPT)\x01", "ä\x01ß"]
        found = hash_texts(pa.array(texts, pa.large_string()))
        assert found.tolist() == [
            17665956581633026203,
            198367012849983736,
            17330810938833333377,
            9920180870994430836,
            13387514352780192977,
        ]
        assert found.tolist() == [reference_hash(t) for t in texts]

    def test_slices_and_nothing(self) -> None:
        texts = pa.array(["a", "bc", None, "d"], pa.large_string())
        whole = hash_texts(texts)
        np.testing.assert_array_equal(hash_texts(texts.slice(1, 3)), whole[1:])
        assert hash_texts(texts.slice(0, 0)).size == 0

    def test_columns_are_used_evenly(self) -> None:
        index = HashedIndex(1000)
        terms = pa.array([f"user-{i}" for i in range(200_000)])
        counts = np.bincount(index.lookup("id", terms), minlength=1000)
        # Of a chi-squared of 999 degrees of freedom: mean 999, standard deviation 45.
        assert abs(((counts - 200) ** 2 / 200).sum() - 999) < 5 * 45


class TestIndex:
    @pytest.mark.parametrize("buckets", [2, 7, 1 << 24, 2**31])
    def test_lookup(self, buckets: int) -> None:
        index = HashedIndex(buckets)
        terms = pa.array(["F", None, "", "ä"])
        expected = [bucket("g", "F", buckets), -1, bucket("g", "", buckets)]
        assert index.lookup("g", terms)[:3].tolist() == expected
        assert index.column("g") == bucket("g", "", buckets)
        pairs = index.lookup_pairs(pa.array(["g", None, "g"]), pa.array(["F", "F", None]))
        assert pairs.tolist() == [expected[0], -1, expected[2]]
        assert len(index) == buckets

    def test_names_of_columns(self) -> None:
        index = HashedIndex(5)
        assert index.names.to_pylist() == [HASH_NAME] * 5
        assert index.terms.to_pylist() == list("01234")
        names = pa.array([HASH_NAME, HASH_NAME, "g", HASH_NAME, HASH_NAME])
        terms = pa.array(["3", "5", "1", "x", None])
        assert index.find(names, terms).tolist() == [3, -1, -1, -1, -1]
        np.testing.assert_array_equal(index.columns_in(HashedIndex(5)), np.arange(5))

    def test_of_millions_of_columns_nothing_is_made(self) -> None:
        index = HashedIndex(2**31)
        names, terms = index.features(np.array([5, 2**31 - 1]))
        assert names.to_pylist() == [HASH_NAME] * 2
        assert terms.to_pylist() == ["5", str(2**31 - 1)]
        assert "names" not in vars(index)

    def test_names_beside_other_bags(self) -> None:
        plain = FeatureIndex(["a", "b"], ["", "x"])
        columns = np.array([8, 0, 3, 2, 1, 0], np.uint32)
        names, terms = features_of([plain, HashedIndex(6)], columns)
        assert names.to_pylist() == [HASH_NAME, "(INTERCEPT)", HASH_NAME, "b", "a", "(INTERCEPT)"]
        assert terms.to_pylist() == ["5", "", "0", "x", "", ""]

    def test_equality(self) -> None:
        assert HashedIndex(4) == HashedIndex(4)
        assert HashedIndex(4) != HashedIndex(5)
        plain = FeatureIndex([HASH_NAME] * 4, list("0123"))
        assert HashedIndex(4) != plain
        assert plain != HashedIndex(4)

    def test_extended(self) -> None:
        index = HashedIndex(4)
        assert index.extended(HashedIndex(4)) is index
        for one, other in ((index, HashedIndex(5)), (index, FeatureIndex(["a"], [""]))):
            with pytest.raises(ModelError, match="hashed"):
                one.extended(other)
            with pytest.raises(ModelError, match="hashed"):
                other.extended(one)


class TestEncode:
    @pytest.mark.parametrize("buckets", [2, 5, 1000, 1 << 24])
    @pytest.mark.parametrize("rows_per_batch", [1, 4])
    def test_every_kind_and_collisions(self, buckets: int, rows_per_batch: int) -> None:
        bag = FeatureBag(columns=COLUMNS, hash_buckets=buckets)
        expected = np.zeros((4, min(buckets, 1000)))
        seen: dict[int, int] = {}
        for i, row in enumerate(FEATURES):
            for (name, term), value in row.items():
                column = bucket(name, term, buckets)
                if buckets > 1000:
                    column = seen.setdefault(column, len(seen))
                expected[i, column] += value
        parts = []
        for batch in ROWS.to_batches(max_chunksize=rows_per_batch):
            builder = FeatureIndexBuilder(bag, {f.name: f.type for f in ROWS.schema})
            assert not builder.needs_rows
            builder.update(batch)
            index = builder.freeze()
            assert index == HashedIndex(buckets)
            encoded = encode_bag(batch, bag, index)
            assert encoded.unknown == 0
            assert [p.what for p in encoded.problems] == []
            assert encoded.matrix.n_columns == buckets
            assert not encoded.matrix.is_dense
            parts.append(encoded.matrix)
        if buckets > 1000:
            width = [
                CsrMatrix(p.indptr, np.array([seen[j] for j in p.indices.tolist()], np.uint32),
                          p.values, expected.shape[1]) for p in parts
            ]  # fmt: skip
            parts = width
        found = np.concatenate([full(p) for p in parts])
        np.testing.assert_allclose(found, expected)

    def test_a_list_of_another_size_is_no_problem(self) -> None:
        bag = FeatureBag(columns=("d",), hash_buckets=100)
        batch = pa.record_batch({"d": pa.array([[1, 2, 3]], pa.list_(pa.float32(), 3))})
        found = full(encode_bag(batch, bag, HashedIndex(100)).matrix)[0]
        assert [found[bucket("d", str(k), 100)] for k in range(3)] == [1, 2, 3]

    def test_a_negative_index_is_one(self) -> None:
        bag = FeatureBag(columns=("w_indices", "w_values"), hash_buckets=100)
        batch = pa.record_batch({"w_indices": [[-1]], "w_values": [[1.0]]})
        (problem,) = encode_bag(batch, bag, HashedIndex(100)).problems
        assert problem.what == "a negative index"


@pytest.mark.parametrize("n_columns", [3, 40, 4_000_000_000])
def test_repeated_columns_of_long_rows_are_summed(n_columns: int) -> None:
    """The hash table that finds repetitions, against a dictionary."""
    rng = np.random.default_rng(0)
    rows = [
        rng.integers(0, min(n_columns, 2**31), rng.integers(0, 300)) // 7 * 7 for _ in range(50)
    ]
    rows[3] = np.arange(500) * 4096
    lists = [[{"name": "f", "term": str(j), "value": 1.0} for j in row] for row in rows]
    batch = pa.record_batch({"t": pa.array(lists, NTV)})
    terms = sorted({int(j) for row in rows for j in row})
    index = FeatureIndex(["f"] * len(terms), [str(j) for j in terms])
    encoded = encode_bag(batch, FeatureBag(columns=("t",)), index).matrix
    for i, row in enumerate(rows):
        own = slice(encoded.indptr[i], encoded.indptr[i + 1])
        found = {
            terms[j]: v for j, v in zip(encoded.indices[own], encoded.values[own], strict=True)
        }
        values, counts = np.unique(row, return_counts=True)
        assert found == dict(zip(values.tolist(), counts.tolist(), strict=True))


# Models


def hashed(buckets: int, *columns: str) -> dict[str, Any]:
    return {"columns": columns or ("x", "kind", "tags"), "hash_buckets": buckets}


def test_the_model_is_that_of_scikit_learn(train_rows: pa.Table) -> None:
    model = MixedModel(
        [FixedEffect("g", features="h", l2=2.0)], features={"h": hashed(5)}
    ).fit(train_rows)  # fmt: skip
    rows = train_rows.to_pylist()
    found = [
        {
            **dict.fromkeys(range(5), 0.0),
            **{
                j: sum(
                    value
                    for (name, term), value in [
                        (("x", ""), row["x"]),
                        (("kind", row["kind"]), 1.0),
                        *((("tags", t), 1.0) for t in row["tags"]),
                    ]
                    if bucket(name, term, 5) == j
                )
                for j in range(5)
            },
        }
        for row in rows
    ]
    x = DictVectorizer(sparse=False).fit_transform(
        [{str(k): v for k, v in f.items()} for f in found]
    )
    peer = LogisticRegression(C=0.5, tol=1e-12, max_iter=10_000)
    peer.fit(x.astype(np.float32).astype(float), train_rows["response"].to_numpy())
    table = model.coefficients("g").to_pydict()
    assert table["name"] == ["(INTERCEPT)", *([HASH_NAME] * 5)]
    assert table["term"] == ["", *"01234"]
    expected = [peer.intercept_[0], *peer.coef_[0]]
    np.testing.assert_allclose(table["value"], expected, atol=1e-5)


def test_without_collisions_it_is_the_indexed_model(
    train_rows: pa.Table, validation_rows: pa.Table
) -> None:
    coordinates = [
        FixedEffect("g", features="h"),
        RandomEffect("u", entity="user", features="h"),
    ]
    plain = MixedModel(coordinates, features={"h": ["x", "kind", "tags"]}, passes=2).fit(train_rows)
    model = MixedModel(coordinates, features={"h": hashed(1 << 20)}, passes=2).fit(train_rows)
    for rows in (train_rows, validation_rows):
        np.testing.assert_allclose(model.predict(rows), plain.predict(rows), atol=1e-7)


@pytest.fixture
def model(train_rows: pa.Table) -> MixedModel:
    coordinates = [
        FixedEffect("g", features=["h", "plain"]),
        RandomEffect("u", entity="user", features="h"),
    ]
    bags = {"h": hashed(64, "kind", "tags"), "plain": ["x"]}
    return MixedModel(coordinates, features=bags).fit(train_rows)


def test_saved_and_loaded(model: MixedModel, validation_rows: pa.Table, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    assert [p.name for p in (tmp_path / "m/feature_index").iterdir()] == ["plain.parquet"]
    loaded = MixedModel.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.predict(validation_rows), model.predict(validation_rows))
    assert loaded.coefficients("u").equals(model.coefficients("u"))


def test_largest_coefficients(model: MixedModel) -> None:
    table = model.coefficients("g").to_pylist()
    table.sort(key=lambda row: -abs(row["value"]))
    assert model.model_.largest_coefficients("g", None, 7).to_pylist() == table[:7]


def test_unseen_features_are_not_unknown(
    model: MixedModel, validation_rows: pa.Table, caplog: Any
) -> None:
    position = validation_rows.schema.get_field_index("kind")
    rows = validation_rows.set_column(position, "kind", pa.array(["new"] * 300))
    with caplog.at_level(logging.WARNING, "gdmix"):
        model.predict(rows)
    assert caplog.records == []


@pytest.mark.parametrize("to", ["avro", "photon"])
def test_other_formats_name_columns(
    model: MixedModel, validation_rows: pa.Table, tmp_path: Path, to: Any
) -> None:
    model.save(tmp_path / "m")
    convert_model(tmp_path / "m", tmp_path / to, to, None)
    description = ModelConfig.of(
        coordinates=model.coordinates, features=model.features, task=model.task
    )
    back = tmp_path / "back"
    convert_model(tmp_path / to, back, "parquet", description if to == "photon" else None)
    expected = model.predict(validation_rows)
    np.testing.assert_allclose(MixedModel.load(back).predict(validation_rows), expected, atol=1e-12)


def test_two_hashed_bags_have_no_names_in_avro(train_rows: pa.Table, tmp_path: Path) -> None:
    bags = {"h": hashed(8, "kind"), "k": hashed(8, "tags")}
    model = MixedModel([FixedEffect("g", features=["h", "k"])], features=bags).fit(train_rows)
    model.save(tmp_path / "m")
    with pytest.raises(ModelError, match="two hashed bags of a coordinate"):
        convert_model(tmp_path / "m", tmp_path / "avro", "avro", None)


def test_a_run_starts_from_it(
    model: MixedModel, train_rows: pa.Table, tmp_path: Path, caplog: Any
) -> None:
    model.save(tmp_path / "m")
    again = MixedModel(
        [FixedEffect("g", features=["h", "plain"], locked=True), model.coordinates[1]],
        features=model.features,
        initial_model=tmp_path / "m",
    ).fit(train_rows)
    for name in ("g", "u"):
        own, theirs = (m.coefficients(name)["value"].to_numpy() for m in (again, model))
        np.testing.assert_allclose(own, theirs, atol=0 if name == "g" else 1e-6)


@pytest.mark.parametrize(
    ("bag", "text"),
    [
        (hashed(32, "kind", "tags"),
         "features.h.hash_buckets: is 32, in initial_model it is 64: other columns"),
        (["kind", "tags"], "features.h.hash_buckets: is none, in initial_model it is 64"),
    ],
)  # fmt: skip
def test_other_columns_are_no_start(
    model: MixedModel, train_rows: pa.Table, tmp_path: Path, bag: Any, text: str
) -> None:
    model.save(tmp_path / "m")
    other = MixedModel(
        model.coordinates, features={**model.features, "h": bag}, initial_model=tmp_path / "m"
    )
    with pytest.raises(ConfigError, match=text):
        other.fit(train_rows)


@pytest.mark.parametrize("buckets", [1, 2**31 + 1, 0, -5])
def test_mistakes(buckets: int) -> None:
    with pytest.raises(ConfigError, match="hash_buckets: should be"):
        MixedModel([FixedEffect("g", features="h")], features={"h": hashed(buckets)})
