from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdmix.data.write import (
    atomic_file,
    check_replaceable,
    replaced_folder,
    to_json,
    write_json,
    write_table,
)
from gdmix.errors import DataError, OutputError


class Killed(BaseException):
    """What no `except Exception` catches, such as an interrupt."""


def tree(folder: Path) -> dict[str, str]:
    """Return all there is below a folder, hidden files included."""
    return {
        str(p.relative_to(folder)): p.read_text() if p.is_file() else "" for p in folder.rglob("*")
    }


class TestAtomicFile:
    def test_new_file_and_folders(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "b" / "file.txt"
        with atomic_file(path) as temporary:
            temporary.write_text("new")
            assert not path.exists()
        assert tree(tmp_path) == {"a": "", "a/b": "", "a/b/file.txt": "new"}

    @pytest.mark.parametrize("error", [ValueError, Killed])
    def test_on_failure_all_is_as_before(self, tmp_path: Path, error: type[BaseException]) -> None:
        path = tmp_path / "file.txt"
        path.write_text("old")

        def write() -> None:
            with atomic_file(path) as temporary:
                temporary.write_text("half of the new")
                raise error

        with pytest.raises(error):
            write()
        assert tree(tmp_path) == {"file.txt": "old"}

    def test_a_file_where_a_folder_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("old")
        path = tmp_path / "file" / "new.json"
        with pytest.raises(OutputError) as caught:
            write_json({}, path)
        said = f"{tmp_path / 'file'} is a file, not a folder"
        assert str(caught.value) == f"{path}: can't be written: {said}"
        assert tree(tmp_path) == {"file": "old"}

    def test_a_folder_where_a_file_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "x.parquet").mkdir()
        with pytest.raises(OutputError, match=r"x\.parquet: can't be written: Is a directory"):
            write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
        assert tree(tmp_path) == {"x.parquet": ""}

    def test_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
        with pytest.raises(OutputError, match="can't be written: No space left on device$"):
            write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
        assert tree(tmp_path) == {}

    def test_table(self, tmp_path: Path) -> None:
        table = pa.table({"x": [1, 2]})
        write_table(table, tmp_path / "x.parquet")
        assert pq.read_table(tmp_path / "x.parquet").equals(table)


class TestJson:
    def test_what_json_has_no_word_for(self, tmp_path: Path) -> None:
        value = {
            "nan": math.nan,
            "inf": [math.inf, -math.inf],
            1: (np.float64(0.5), np.float64("nan")),
            "deep": {"x": [{"y": math.nan}]},
            "rest": [True, None, 3, "ü"],
        }
        expected = {
            "nan": None,
            "inf": ["inf", "-inf"],
            "1": [0.5, None],
            "deep": {"x": [{"y": None}]},
            "rest": [True, None, 3, "ü"],
        }
        write_json(value, tmp_path / "a.json")
        assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == expected
        assert json.loads(to_json(value)) == expected


class TestReplacedFolder:
    def test_new(self, tmp_path: Path) -> None:
        path = tmp_path / "runs" / "one"
        with replaced_folder(path) as staging:
            assert staging.parent == path.parent
            assert staging.name.startswith(".")
            (staging / "a.txt").write_text("new")
            assert not path.exists()
        assert tree(tmp_path) == {"runs": "", "runs/one": "", "runs/one/a.txt": "new"}
        umask = os.umask(0)
        os.umask(umask)
        assert path.stat().st_mode & 0o777 == 0o777 & ~umask

    def test_old_content_goes(self, tmp_path: Path) -> None:
        (tmp_path / "one" / "deep").mkdir(parents=True)
        (tmp_path / "one" / "deep" / "old.txt").write_text("old")
        with replaced_folder(tmp_path / "one") as staging:
            (staging / "new.txt").write_text("new")
        assert tree(tmp_path) == {"one": "", "one/new.txt": "new"}

    @pytest.mark.parametrize("error", [ValueError, Killed])
    def test_on_failure_all_is_as_before(self, tmp_path: Path, error: type[BaseException]) -> None:
        def write() -> None:
            with replaced_folder(tmp_path / "one") as staging:
                (staging / "new.txt").write_text("half")
                raise error

        with pytest.raises(error):
            write()
        assert tree(tmp_path) == {}
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "old.txt").write_text("old")
        with pytest.raises(error):
            write()
        assert tree(tmp_path) == {"one": "", "one/old.txt": "old"}

    def test_failure_at_the_last_moment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "old.txt").write_text("old")
        replace = Path.replace

        def fail_for_the_new(self: Path, target: Path) -> Path:
            if self.suffix == ".partial":
                raise OSError(errno.EIO, "Input/output error")
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", fail_for_the_new)
        with (
            pytest.raises(OutputError, match="one: can't be written: Input/output error"),
            replaced_folder(tmp_path / "one") as staging,
        ):
            (staging / "new.txt").write_text("new")
        assert tree(tmp_path) == {"one": "", "one/old.txt": "old"}

    def test_a_link_stays_one(self, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        (tmp_path / "disk" / "old.txt").write_text("old")
        (tmp_path / "one").symlink_to(tmp_path / "disk")
        with replaced_folder(tmp_path / "one") as staging:
            (staging / "new.txt").write_text("new")
        assert (tmp_path / "one").is_symlink()
        assert tree(tmp_path / "disk") == {"new.txt": "new"}
        assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "one"]

    def test_other_errors_keep_their_words(self, tmp_path: Path) -> None:
        with (
            pytest.raises(DataError, match="^rows: has no rows$"),
            replaced_folder(tmp_path / "one"),
        ):
            raise DataError("rows: has no rows")

    def test_a_file_where_a_folder_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("old")
        with (
            pytest.raises(OutputError, match="can't be written: .*/file is a file, not a folder$"),
            replaced_folder(tmp_path / "file" / "one"),
        ):
            pass
        assert tree(tmp_path) == {"file": "old"}


class TestCheckReplaceable:
    @staticmethod
    def check(path: Path, overwrite: bool = False, ours: bool = True) -> str:
        try:
            check_replaceable(path, overwrite, lambda _: ours)
        except OutputError as error:
            return str(error)
        return ""

    def test_nothing_there(self, tmp_path: Path) -> None:
        assert self.check(tmp_path / "deep" / "new") == ""
        (tmp_path / "empty").mkdir()
        assert self.check(tmp_path / "empty", ours=False) == ""

    def test_something_there(self, tmp_path: Path) -> None:
        path = tmp_path / "one"
        path.mkdir()
        (path / ".hidden").write_text("mine")
        foreign = f"{path}: holds files that gdmix did not write; choose another output"
        earlier = f"{path}: holds earlier results; pass --overwrite to replace them"
        assert self.check(path, ours=False) == foreign
        assert self.check(path, overwrite=True, ours=False) == foreign
        assert self.check(path) == earlier
        assert self.check(path, overwrite=True) == ""

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        assert (
            self.check(tmp_path / "file")
            == f"{tmp_path / 'file'}: is a file; the output is a folder"
        )
        path = tmp_path / "file" / "deep" / "one"
        said = f"{tmp_path / 'file'} is a file, not a folder"
        assert self.check(path) == f"{path}: can't be written: {said}"

    def test_folders_that_can_not_be_moved(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        said = "can't be replaced as a whole; name a folder inside it"
        assert self.check(Path(".")) == f".: {said}"
        assert self.check(tmp_path) == f"{tmp_path}: {said}"
        assert self.check(Path("one")) == ""
        monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "volume")
        (tmp_path / "volume").mkdir()
        assert self.check(Path("volume")) == f"volume: {said}"

    def test_no_permission(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "one"
        with monkeypatch.context() as patch:
            patch.setattr(os, "access", lambda *_: False)
            assert self.check(path) == (
                f"{path}: can't be written: permission denied in {tmp_path}"
            )
        path.mkdir()

        def refuse(_: Path) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "iterdir", refuse)
        assert self.check(path) == f"{path}: can't be written: Permission denied"

    def test_name_that_is_too_long(self, tmp_path: Path) -> None:
        path = tmp_path / ("x" * 300)
        assert self.check(path) == f"{path}: can't be written: File name too long"
