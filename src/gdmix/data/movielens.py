"""The MovieLens-100k example: fetched at run time, prepared as LinkedIn's GDMix prepares it.

The data set's licence forbids redistribution, so no row of it is part of gdmix. `prepare`
gets it from GroupLens, its publisher, or, where only a package index can be reached, out
of the `recbole` wheel, which carries a conversion of the same files. Both ways are checked
against fixed checksums and give identical rows.

The two ways differ in one thing: the wheel has no release dates, only the year that ends a
movie's title, such as 1995 in "Toy Story (1995)". `release_date` is therefore made of the
title's year in both. LinkedIn's GDMix reads the year of GroupLens' date field instead,
which is later for some movies, mostly by one year.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import logging
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from gdmix.data.write import atomic_file
from gdmix.errors import DataError, OutputError

_log = logging.getLogger("gdmix")

GROUPLENS_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
GROUPLENS_MD5 = "0e33842e24a9c977be4e0107933c0723"
_GROUPLENS_RATINGS = "ml-100k/u.data"
_GROUPLENS_MOVIES = "ml-100k/u.item"
_GROUPLENS_USERS = "ml-100k/u.user"

RECBOLE_REQUIREMENT = "recbole==1.2.1"
_RECBOLE_RATINGS = "recbole/dataset_example/ml-100k/ml-100k.inter"
_RECBOLE_MOVIES = "recbole/dataset_example/ml-100k/ml-100k.item"
_RECBOLE_USERS = "recbole/dataset_example/ml-100k/ml-100k.user"
RECBOLE_SHA256: Mapping[str, str] = {
    _RECBOLE_RATINGS: "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    _RECBOLE_MOVIES: "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    _RECBOLE_USERS: "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}

_YEAR = re.compile(r"\((\d{4})\)")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_SECONDS = {"day": 86_400, "hour": 3_600, "minute": 60}

_CONNECT_SECONDS = 10
_PIP_SECONDS = 300

GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Childrens",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film_Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci_Fi",
    "Thriller",
    "War",
    "Western",
)
"""GDMix's spellings, in the order of the flags in GroupLens' movie file."""

SCHEMA = pa.schema(
    [
        ("uid", pa.int64()),
        ("user_id", pa.int64()),
        ("movie_id", pa.int64()),
        ("response", pa.int64()),
        ("weight", pa.float32()),
        ("timestamp", pa.int64()),
        ("age", pa.float32()),
        ("gender", pa.string()),
        ("occupation", pa.string()),
        ("genres", pa.list_(pa.string())),
        ("release_date", pa.float32()),
        ("title", pa.string()),
        ("title_words", pa.list_(pa.string())),
        ("day", pa.int64()),
        ("hour", pa.int64()),
        ("minute", pa.int64()),
    ]
)
"""The columns of the prepared files. The rating is left out: it would leak the response."""

TRAIN_ROWS = 79_959
VALIDATION_ROWS = 20_041
TRAIN_ROWS_BY_USERS = 78_059
VALIDATION_ROWS_BY_USERS = 21_941

_README = """\
MovieLens-100k, prepared by gdmix as LinkedIn's GDMix prepares it.

The licence of MovieLens-100k forbids redistribution: do not publish or commit these files.
Its terms: https://files.grouplens.org/datasets/movielens/ml-100k-README.txt

Please cite:
F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context.
ACM Transactions on Interactive Intelligent Systems (TiiS) 5, 4: 19:1-19:19.
https://doi.org/10.1145/2827872
"""


@dataclass(frozen=True)
class MovieLensFiles:
    """Where the prepared files are, and how many rows each has.

    Attributes
    ----------
    train, validation
        Parquet files with the columns of `SCHEMA`.
    train_rows, validation_rows
        Their numbers of rows.
    """

    train: Path
    validation: Path
    train_rows: int
    validation_rows: int


@dataclass(frozen=True)
class RawTables:
    """The three tables of MovieLens-100k, the same whichever way they were fetched.

    Attributes
    ----------
    ratings
        `user_id`, `movie_id`, `rating` (1 to 5), `timestamp` (Unix seconds); all int64, in
        the order of the file.
    movies
        `movie_id`, `title`, `genres` (spelled and ordered as in `GENRES`).
    users
        `user_id`, `age` (years), `gender`, `occupation`.
    """

    ratings: pa.Table
    movies: pa.Table
    users: pa.Table


def prepare(
    directory: Path, *, source: Path | None = None, by: Literal["rows", "users"] = "rows"
) -> MovieLensFiles:
    """Write `train.parquet`, `validation.parquet` and `README.txt` into a directory.

    Nothing is fetched or written if both Parquet files are already there and complete.
    Each file appears whole or not at all.

    Parameters
    ----------
    directory
        Where to write; made if it does not exist.
    source
        A local `ml-100k.zip` or recbole wheel to read instead of the network; the files are
        then written anew.
    by
        What is split: GDMix's ratings, or users, so that the validation users are unknown.

    Returns
    -------
    MovieLensFiles
        The paths, with 79,959 training and 20,041 validation rows; by users 78,059 and 21,941.

    Raises
    ------
    DataError
        If neither way of fetching works, or `source` is not one of the two known files.
    OutputError
        If `directory` cannot be written.
    """
    directory = Path(directory)
    files = MovieLensFiles(
        train=directory / "train.parquet",
        validation=directory / "validation.parquet",
        train_rows=TRAIN_ROWS if by == "rows" else TRAIN_ROWS_BY_USERS,
        validation_rows=VALIDATION_ROWS if by == "rows" else VALIDATION_ROWS_BY_USERS,
    )
    if source is None and _is_complete(files):
        _log.info("MovieLens-100k is already prepared in %s", directory)
        return files
    raw = fetch() if source is None else read_source(Path(source))
    train, validation = split(prepared_table(raw), by)
    try:
        _write(files, train, validation)
    except OSError as error:
        raise OutputError(
            f"{directory}: cannot be written ({error.strerror or error}); "
            "choose another directory or free some space"
        ) from error
    _log.info("wrote %d and %d rows to %s", len(train), len(validation), directory)
    return MovieLensFiles(files.train, files.validation, len(train), len(validation))


_CONFIGURATIONS = (
    "movielens.yaml",
    "movielens_gdmix.yaml",
    "movielens_auto.yaml",
    "movielens_tune.yaml",
    "movielens_lightgbm.yaml",
    "movielens_best.yaml",
    "movielens_deep_gdmix.yaml",
    "movielens_deep.yaml",
    "movielens_deep_crossed.yaml",
    "movielens_deep_items.yaml",
)


def write_configurations(directory: Path) -> list[Path]:
    """Write the example's YAML files, with the paths of the rows in `directory`.

    Raises
    ------
    OutputError
        If `directory` cannot be written.
    """
    written = []
    for name in _CONFIGURATIONS:
        text = (resources.files("gdmix") / "examples" / name).read_text(encoding="utf-8")
        with atomic_file(directory / name) as temporary:
            temporary.write_text(text.replace("movielens/", f"{directory}/"), encoding="utf-8")
        written.append(directory / name)
    return written


def fetch() -> RawTables:
    """Fetch MovieLens-100k from GroupLens or, failing that, from a package index.

    Returns
    -------
    RawTables
        The tables, verified against the known checksums.

    Raises
    ------
    DataError
        If both ways fail: one line with both reasons and the mend.
    """
    ways: tuple[tuple[str, Callable[[], bytes]], ...] = (
        ("GroupLens", download_grouplens),
        (RECBOLE_REQUIREMENT, download_recbole),
    )
    reasons = []
    for name, download in ways:
        _log.info("fetching MovieLens-100k from %s", name)
        try:
            return read_archive(download())
        except DataError as error:
            _log.info("no MovieLens-100k from %s: %s", name, error)
            reasons.append(f"from {name}: {error}")
    raise DataError(
        f"MovieLens-100k could not be fetched ({'; '.join(reasons)}); get ml-100k.zip or the "
        f"{RECBOLE_REQUIREMENT} wheel by other means and pass it with --source FILE"
    )


def download_grouplens() -> bytes:
    """Return the content of GroupLens' `ml-100k.zip`, not yet verified.

    Raises
    ------
    DataError
        If it cannot be downloaded.
    """
    try:
        with urllib.request.urlopen(GROUPLENS_URL, timeout=_CONNECT_SECONDS) as response:
            content: bytes = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{GROUPLENS_URL} cannot be downloaded ({error})") from error
    return content


def download_recbole() -> bytes:
    """Return the content of the recbole wheel, got by pip and not yet verified.

    Raises
    ------
    DataError
        If pip is missing or gets no wheel.
    """
    pip = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-cache-dir", "--only-binary=:all:"]
    # Where there is no network at all, pip's own patience would be minutes.
    patience = ["--retries", "1", "--timeout", str(_CONNECT_SECONDS)]
    with tempfile.TemporaryDirectory(prefix="gdmix-movielens-") as folder:
        try:
            done = subprocess.run(
                [*pip, *options, *patience, "-d", folder, RECBOLE_REQUIREMENT],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_PIP_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DataError(f"pip cannot download it ({error})") from error
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            last_line = (done.stderr.strip() or "no wheel was found").splitlines()[-1]
            raise DataError(f"pip cannot download it ({last_line})")
        return wheels[0].read_bytes()


def read_source(path: Path) -> RawTables:
    """Read a local `ml-100k.zip` or recbole wheel; its content, not its name, tells which.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    DataError
        If it cannot be read, is neither of the two, or does not match its checksum.
    """
    try:
        return read_archive(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def read_archive(content: bytes) -> RawTables:
    """Verify and read the content of `ml-100k.zip` or of the recbole wheel.

    Parameters
    ----------
    content
        The archive's bytes.

    Raises
    ------
    DataError
        If it is neither of the two, is damaged, or does not match its checksum.
    """
    members = _unpack(content)
    if members.keys() >= {_GROUPLENS_RATINGS, _GROUPLENS_MOVIES, _GROUPLENS_USERS}:
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        _check("ml-100k.zip", "md5", md5, GROUPLENS_MD5)
        return _grouplens_tables(members)
    if members.keys() >= RECBOLE_SHA256.keys():
        for name, expected in RECBOLE_SHA256.items():
            _check(name, "sha256", hashlib.sha256(members[name]).hexdigest(), expected)
        return _recbole_tables(members)
    raise DataError(f"neither GroupLens' ml-100k.zip nor the {RECBOLE_REQUIREMENT} wheel")


def release_year(title: str) -> int | None:
    """Return the year in parentheses at the end of a title, if there is one.

    Examples
    --------
    >>> release_year("Toy Story (1995)")
    1995
    """
    # Not quite the end for the straight-to-video "Land Before Time III: ... (1995) (V)".
    years = _YEAR.findall(title)
    return int(years[-1]) if years else None


def prepared_table(raw: RawTables) -> pa.Table:
    """Join ratings, users and movies into the rows that a model is trained on.

    Parameters
    ----------
    raw
        The tables as fetched.

    Returns
    -------
    pyarrow.Table
        One row per rating, in the order of the ratings, with the columns of `SCHEMA`: `uid`
        counts the rows from 0, `response` is 1 for a rating above 3 and 0 otherwise, `age`
        is in units of 100 years, and `release_date` is the title's year / 2000, or null
        where the title has none. `title_words` are the distinct words of the title, in lower
        case and without the year; `day`, `hour` and `minute` count from the epoch.
    """
    # Looked up rather than joined: a join does not keep the order, which `uid` depends on.
    users = raw.users.take(pc.index_in(raw.ratings["user_id"], raw.users["user_id"]))
    movies = raw.movies.append_column("release_date", _release_dates(raw.movies["title"]))
    movies = movies.append_column("title_words", _title_words(raw.movies["title"]))
    movies = movies.take(pc.index_in(raw.ratings["movie_id"], movies["movie_id"]))
    rows = len(raw.ratings)
    columns = {
        "uid": np.arange(rows, dtype=np.int64),
        "user_id": raw.ratings["user_id"],
        "movie_id": raw.ratings["movie_id"],
        "response": pc.greater(raw.ratings["rating"], 3).cast("int64"),
        "weight": np.ones(rows, dtype=np.float32),
        "timestamp": raw.ratings["timestamp"],
        "age": pc.divide(users["age"].cast("float64"), 100.0).cast("float32"),
        "gender": users["gender"],
        "occupation": users["occupation"],
        "genres": movies["genres"],
        "release_date": movies["release_date"],
        "title": movies["title"],
        "title_words": movies["title_words"],
        **{unit: pc.divide(raw.ratings["timestamp"], n) for unit, n in _SECONDS.items()},
    }
    return pa.table(columns, schema=SCHEMA).combine_chunks()


def train_mask(rows: int) -> npt.NDArray[np.bool_]:
    """Return GDMix's random split: True for the rows of the training part.

    Parameters
    ----------
    rows
        Number of rows; 100,000 give 79,959 training rows.

    Returns
    -------
    numpy.ndarray
        Booleans, shape (rows,); the same at every call.
    """
    # The legacy generator's stream is what GDMix's numpy.random.seed(0) draws from; an own
    # instance leaves the global one alone.
    return np.random.RandomState(0).uniform(0, 1, rows) < 0.8


def split(table: pa.Table, by: Literal["rows", "users"] = "rows") -> tuple[pa.Table, pa.Table]:
    """Split the prepared rows into a training and a validation part, each in order.

    Parameters
    ----------
    table
        All rows, in the order of `uid`.
    by
        Whether rows are drawn, or users with all their rows.

    Returns
    -------
    train, validation : pyarrow.Table
        About 80 and 20 percent of the rows, or of the users, see `train_mask`.
    """
    if by == "rows":
        mask = train_mask(len(table))
    else:
        users, of_row = np.unique(table["user_id"].to_numpy(), return_inverse=True)
        mask = train_mask(users.size)[of_row]
    return table.filter(pa.array(mask)), table.filter(pa.array(~mask))


def _unpack(content: bytes) -> dict[str, bytes]:
    """Return the members that gdmix knows of, by name."""
    known = {_GROUPLENS_RATINGS, _GROUPLENS_MOVIES, _GROUPLENS_USERS, *RECBOLE_SHA256}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {name: archive.read(name) for name in known.intersection(archive.namelist())}
    # Damaged bytes surface as one of a dozen types, from BadZipFile to ValueError.
    except Exception as error:
        raise DataError(f"no zip archive, or a damaged one ({error}); get it again") from error


def _check(what: str, algorithm: str, found: str, expected: str) -> None:
    if found != expected:
        raise DataError(
            f"{what} does not match its checksum ({algorithm} {found}, expected {expected}): "
            "damaged or another version; get it again"
        )


def _grouplens_tables(members: Mapping[str, bytes]) -> RawTables:
    return RawTables(
        ratings=_ratings(members[_GROUPLENS_RATINGS], header_lines=0),
        movies=_movies(_grouplens_movies(members[_GROUPLENS_MOVIES].decode("latin-1"))),
        users=_users(members[_GROUPLENS_USERS], delimiter="|", header_lines=0),
    )


def _recbole_tables(members: Mapping[str, bytes]) -> RawTables:
    return RawTables(
        ratings=_ratings(members[_RECBOLE_RATINGS], header_lines=1),
        movies=_movies(_recbole_movies(members[_RECBOLE_MOVIES].decode("utf-8"))),
        users=_users(members[_RECBOLE_USERS], delimiter="\t", header_lines=1),
    )


def _ratings(content: bytes, header_lines: int) -> pa.Table:
    types = dict.fromkeys(("user_id", "movie_id", "rating", "timestamp"), pa.int64())
    return _delimited(content, types, "\t", header_lines)


def _users(content: bytes, delimiter: str, header_lines: int) -> pa.Table:
    types = {
        "user_id": pa.int64(),
        "age": pa.int64(),
        "gender": pa.string(),
        "occupation": pa.string(),
        "zip_code": pa.string(),
    }
    return _delimited(content, types, delimiter, header_lines).drop_columns(["zip_code"])


def _delimited(
    content: bytes, types: Mapping[str, pa.DataType], delimiter: str, header_lines: int
) -> pa.Table:
    return pa.csv.read_csv(
        pa.BufferReader(content),
        read_options=pa.csv.ReadOptions(column_names=list(types), skip_rows=header_lines),
        parse_options=pa.csv.ParseOptions(delimiter=delimiter, quote_char=False),
        convert_options=pa.csv.ConvertOptions(column_types=types),
    )


_Movie = tuple[int, str, list[str]]


def _movies(movies: Iterator[_Movie]) -> pa.Table:
    movie_ids, titles, genres = zip(*movies, strict=True)
    return pa.table(
        {
            "movie_id": pa.array(movie_ids, "int64"),
            # GroupLens' file has stray blanks in and after some titles, RecBole's has not.
            "title": pa.array([" ".join(title.split()) for title in titles], "string"),
            "genres": pa.array(genres, pa.list_(pa.string())),
        }
    )


def _title_words(titles: pa.ChunkedArray) -> pa.Array:
    texts = (_YEAR.sub("", title.lower()) for title in titles.to_pylist())
    words = [list(dict.fromkeys(_WORD.findall(text))) for text in texts]
    return pa.array(words, pa.list_(pa.string()))


def _release_dates(titles: pa.ChunkedArray) -> pa.Array:
    years = map(release_year, titles.to_pylist())
    return pa.array([None if year is None else year / 2000 for year in years], "float32")


def _grouplens_movies(text: str) -> Iterator[_Movie]:
    """Read: id|title (year)|release date|video release date|URL|19 genre flags."""
    # Not splitlines(): that breaks at Latin-1 characters such as \x85 too.
    for line in filter(None, text.split("\n")):
        movie_id, title, *_, flags = line.split("|", maxsplit=5)
        flagged = zip(GENRES, flags.split("|"), strict=True)
        yield int(movie_id), title, [genre for genre, flag in flagged if flag == "1"]


def _recbole_movies(text: str) -> Iterator[_Movie]:
    """Read: id, title, year, genres with blanks between them; tabs between, one header line."""
    for line in filter(None, text.split("\n")[1:]):
        movie_id, title, year, names = line.split("\t")
        # RecBole's year is the last parenthesis of GroupLens' title, cut off: putting it back
        # restores the title. Only movie 267 had none, and got a (misspelt) word in both fields.
        title = "unknown" if title == "unkonwn" else f"{title} ({year})"
        genres = [name.replace("'", "").replace("-", "_") for name in names.split(" ")]
        yield int(movie_id), title, sorted(genres, key=GENRES.index)


def _is_complete(files: MovieLensFiles) -> bool:
    expected = {files.train: files.train_rows, files.validation: files.validation_rows}
    try:
        return all(
            (metadata := pq.read_metadata(path)).num_rows == rows
            and metadata.schema.to_arrow_schema().equals(SCHEMA)
            for path, rows in expected.items()
        )
    except (OSError, pa.ArrowException):
        return False


def _write(files: MovieLensFiles, train: pa.Table, validation: pa.Table) -> None:
    directory = files.train.parent
    directory.mkdir(parents=True, exist_ok=True)
    # Written beside their destination, as only a rename within a file system is atomic.
    with tempfile.TemporaryDirectory(prefix=".movielens-", dir=directory) as name:
        staging = Path(name)
        (staging / "README.txt").write_text(_README, encoding="utf-8")
        pq.write_table(train, staging / files.train.name, compression="zstd")
        pq.write_table(validation, staging / files.validation.name, compression="zstd")
        # The Parquet files last: once they are there, `prepare` takes all for done.
        for file in ("README.txt", files.train.name, files.validation.name):
            os.replace(staging / file, directory / file)
