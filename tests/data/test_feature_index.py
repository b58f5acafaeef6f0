from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gdmix.config import FeatureBag
from gdmix.data.feature_index import FeatureIndex, FeatureIndexBuilder
from gdmix.errors import DataError

NTV = pa.list_(pa.struct({"name": pa.string(), "term": pa.string(), "value": pa.float32()}))


def ntv(*features: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "term": term, "value": 1.0} for name, term in features]


def build(columns: dict[str, Any], rows_per_batch: int = 100, **bag: Any) -> FeatureIndex:
    table = pa.table(columns)
    spec = FeatureBag(columns=tuple(columns), **bag)
    builder = FeatureIndexBuilder(spec, {f.name: f.type for f in table.schema})
    for batch in table.to_batches(max_chunksize=rows_per_batch):
        builder.update(batch)
    return builder.freeze()


def features(index: FeatureIndex) -> list[tuple[str, str]]:
    return list(zip(index.names.to_pylist(), index.terms.to_pylist(), strict=True))


EVERY_KIND = {
    "z": pa.array([1.5, None, 0.0, 2.0]),
    "s": pa.array(["b", "a", None, "b"]),
    "c": pa.array([10, 9, None, 9]).dictionary_encode(),
    "l": pa.array([["q", "p"], None, [], ["q", None]], pa.list_(pa.string())),
    "d": pa.array([[1, 2], None, [0, 0], [3, 4]], pa.list_(pa.int64(), 2)),
    "t": pa.array(
        [ntv(("n", "2"), ("n", "10")), None, [*ntv(("m", None)), None], ntv((None, "x"))], NTV
    ),
    "w_indices": pa.array([[10, 2], [7], None, [2, None]]),
    "w_values": pa.array([[1.0, 1.0], [0.0], None, [1.0, 1.0]]),
}


class TestBuilder:
    def test_every_kind(self) -> None:
        assert features(build(EVERY_KIND)) == [
            ("z", ""),
            ("s", "a"),
            ("s", "b"),
            ("c", "10"),
            ("c", "9"),
            ("l", "p"),
            ("l", "q"),
            ("d", "0"),
            ("d", "1"),
            ("m", ""),
            ("n", "10"),
            ("n", "2"),
            ("w", "2"),
            ("w", "7"),
            ("w", "10"),
        ]

    @pytest.mark.parametrize("rows_per_batch", [1, 2, 4])
    def test_order_of_rows_and_batches_does_not_matter(self, rows_per_batch: int) -> None:
        table, index = pa.table(EVERY_KIND), build(EVERY_KIND)
        for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
            moved = table.take(pa.array(order))
            columns = {name: moved[name] for name in moved.schema.names}
            assert build(columns, rows_per_batch) == index

    def test_order_of_columns_does(self) -> None:
        backwards = build(dict(reversed(EVERY_KIND.items())))
        assert backwards != build(EVERY_KIND)
        assert sorted(features(backwards)) == sorted(features(build(EVERY_KIND)))

    def test_empty_and_unicode_terms(self) -> None:
        index = build({"s": ["", "é", "日本", "\U0001f40d", ",", "\n"]})
        assert features(index) == [
            ("s", t) for t in sorted(["", "é", "日本", "\U0001f40d", ",", "\n"])
        ]
        assert index.lookup("s", index.terms).tolist() == list(range(6))
        odd = build({"t": pa.array([ntv(("ü", "日本"), ("ü", ""), ("", "ü"))], NTV)})
        assert sorted(features(odd)) == [("", "ü"), ("ü", ""), ("ü", "日本")]

    def test_a_null_term_is_the_empty_one(self) -> None:
        index = build({"t": pa.array([ntv(("n", None), ("n", ""))], NTV)})
        assert features(index) == [("n", "")]

    def test_two_columns_may_hold_the_same_feature(self) -> None:
        index = build(
            {
                "age": [1.0],
                "a": pa.array([ntv(("age", ""), ("x", "1"), ("y", ""))], NTV),
                "b": pa.array([ntv(("x", "1"), ("x", "2"))], NTV),
            }
        )
        assert features(index) == [("age", ""), ("x", "1"), ("y", ""), ("x", "2")]

    def test_two_pairs_do_not_share_columns(self) -> None:
        pair = {"indices": [[0, 1]], "values": [[1.0, 1.0]]}
        columns = {f"{x}_{part}": values for x in "uv" for part, values in pair.items()}
        assert features(build(columns)) == [("u", "0"), ("u", "1"), ("v", "0"), ("v", "1")]

    def test_large_indices_take_no_room(self) -> None:
        index = build({"w_indices": [[2**40, 3]], "w_values": [[1.0, 1.0]]})
        assert features(index) == [("w", "3"), ("w", str(2**40))]

    @pytest.mark.parametrize("kind", [pa.uint8(), pa.int16(), pa.uint64(), pa.null()])
    def test_types_of_indices(self, kind: pa.DataType) -> None:
        values = [[] if pa.types.is_null(kind) else [5, 3]]
        index = build(
            {"w_indices": pa.array(values, pa.large_list(kind)), "w_values": [[1.0, 1.0]]}
        )
        assert features(index) == ([] if pa.types.is_null(kind) else [("w", "3"), ("w", "5")])

    def test_nothing_found(self) -> None:
        assert features(build({"s": pa.array([None], pa.string())})) == []
        assert features(build({"t": pa.array([None, []], NTV)})) == []
        assert features(build({"l": [[], []]})) == []


class TestLookup:
    INDEX = FeatureIndex(["a", "a", "b", "a"], ["x", "", "x", "ü"])

    def test_known_and_unknown(self) -> None:
        terms = pa.array(["ü", "nope", None, "", "x", "x"])
        assert self.INDEX.lookup("a", terms).tolist() == [3, -1, -1, 1, 0, 0]
        assert self.INDEX.lookup("b", terms).tolist() == [-1, -1, -1, -1, 2, 2]
        assert self.INDEX.lookup("c", terms).tolist() == [-1] * 6
        assert self.INDEX.lookup("a", pa.array([], pa.string())).dtype == np.int64

    def test_column_and_count(self) -> None:
        assert [self.INDEX.column("a"), self.INDEX.column("a", "ü")] == [1, 3]
        assert [self.INDEX.column("b"), self.INDEX.column("nope", "x")] == [-1, -1]
        assert [self.INDEX.count(name) for name in "abc"] == [3, 1, 0]

    def test_pairs(self) -> None:
        names = pa.array(["a", "b", "b", None, "a", "a"])
        terms = pa.array(["ü", "x", "ü", "x", None, ""])
        assert self.INDEX.lookup_pairs(names, terms).tolist() == [3, 2, -1, -1, 1, 1]

    def test_name_and_term_are_kept_apart(self) -> None:
        index = FeatureIndex(["ab", "a"], ["c", "bc"])
        assert index.lookup_pairs(pa.array(["a", "ab"]), pa.array(["bc", "c"])).tolist() == [1, 0]

    def test_empty_index(self) -> None:
        index = FeatureIndex([], [])
        assert len(index) == 0
        assert index.lookup("a", pa.array(["x"])).tolist() == [-1]
        assert index.lookup_pairs(pa.array(["a"]), pa.array(["x"])).tolist() == [-1]

    def test_equality(self) -> None:
        same = FeatureIndex(self.INDEX.names, self.INDEX.terms)
        assert same == self.INDEX
        assert same != FeatureIndex(["a"], ["x"])
        assert same != "something else"


class TestFeatureList:
    @staticmethod
    def read(tmp_path: Path, text: str) -> FeatureIndex:
        (tmp_path / "list.csv").write_bytes(text.encode())
        return FeatureIndex.from_feature_list(tmp_path / "list.csv")

    def test_lines(self, tmp_path: Path) -> None:
        index = self.read(tmp_path, 'age,\ngender,F\n"a,b","say ""x"""\ncity,Zürich\nbare\n\n\n')
        assert features(index) == [
            ("age", ""),
            ("gender", "F"),
            ("a,b", 'say "x"'),
            ("city", "Zürich"),
            ("bare", ""),
        ]

    def test_byte_order_mark_and_windows_line_ends(self, tmp_path: Path) -> None:
        assert features(self.read(tmp_path, "\ufeffa,x\r\nb,\r\n")) == [("a", "x"), ("b", "")]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "the feature list is empty; write a line 'name,term' each"),
            ("\n\n", "the feature list is empty; write a line 'name,term' each"),
            ("a,\nb,x,1\n", "line 2: expected 'name,term', found 3 fields"),
            ("a,\n\nb,\n", "line 2: expected 'name,term', found nothing"),
            ("a,x\nb,\na,x\n", "line 3: 'a,x' stands in line 1 too"),
            ('"a\nb",\na,\na\n', "line 4: 'a,' stands in line 3 too"),
            ('a,\n"b,x\nc,\n', "can't be read as a feature list: unexpected end of data"),
        ],
    )
    def test_bad_list(self, tmp_path: Path, text: str, said: str) -> None:
        with pytest.raises(DataError) as caught:
            self.read(tmp_path, text)
        assert str(caught.value) == f"{tmp_path / 'list.csv'}: {said}"

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "list.csv").write_bytes(b"a,\xff\n")
        with pytest.raises(DataError, match=r"list\.csv: can't be read as a feature list: "):
            FeatureIndex.from_feature_list(tmp_path / "list.csv")
        with pytest.raises(DataError, match=r": can't be read as a feature list: .*directory"):
            FeatureIndex.from_feature_list(tmp_path)

    def test_missing(self, tmp_path: Path) -> None:
        self.read(tmp_path, "a,\n")
        with pytest.raises(DataError) as caught:
            FeatureIndex.from_feature_list(tmp_path / "lists.csv")
        said = "no such feature list (did you mean 'list.csv'?)"
        assert str(caught.value) == f"{tmp_path / 'lists.csv'}: {said}"
        with pytest.raises(DataError, match="no such feature list$"):
            FeatureIndex.from_feature_list(tmp_path / "none" / "list.csv")

    def test_it_is_the_index_whatever_the_rows_hold(self, tmp_path: Path) -> None:
        index = self.read(tmp_path, "b,\na,x\n")
        pair = {"w_indices": [[5, -1]], "w_values": [[1.0, 1.0]]}
        assert build(pair, feature_list=tmp_path / "list.csv") == index
