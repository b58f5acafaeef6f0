"""Sessions are found, opened and checked; what fails in tasks is told once, in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gdmix.config import SparkConfig
from gdmix.engines.spark import session as sessions
from gdmix.engines.spark.session import TaskErrors, check_session, opened, slots
from gdmix.errors import ConfigError, DataError, EngineError, GdmixError


def test_the_session_is_ready_for_the_engine(spark: Any) -> None:
    assert check_session(spark) is spark
    assert slots(spark) == 2
    environment = spark.sparkContext.parallelize([0], 1).map(lambda _: dict(os.environ)).first()
    assert environment["OMP_NUM_THREADS"] == environment["OPENBLAS_NUM_THREADS"] == "1"
    worker = spark.sparkContext.parallelize([0], 1).map(lambda _: sys.executable).first()
    assert worker == sys.executable


def test_the_session_of_the_program_is_taken(spark: Any, caplog: pytest.LogCaptureFixture) -> None:
    with opened(SparkConfig(), "another") as session:
        assert session.sparkContext is spark.sparkContext
    assert not caplog.records
    with opened(SparkConfig(master="local[7]"), "another") as session:
        assert slots(session) == 2
    assert "left aside, there is a Spark session already" in caplog.text
    assert spark.range(3).count() == 3


def fails(index: int, rows: Iterable[int]) -> Iterator[tuple[int, int]]:
    for row in rows:
        if row == 2:
            raise DataError(["rows: one finding", "rows: another"])
        if row == 3:
            raise DataError("rows: of a later partition")
        yield row, index


def test_user_errors_pass_shuffles_and_are_raised_once(spark: Any) -> None:
    errors = TaskErrors(spark)
    rows = spark.sparkContext.parallelize(range(4), 4)
    task = errors.guard(fails)
    actions = (
        lambda moved: moved.collect(),
        lambda moved: moved.count(),
        lambda moved: moved.map(lambda row: 1 // 0).collect(),  # fails for want of a row, say
    )
    for action in actions:
        moved = rows.mapPartitionsWithIndex(task).partitionBy(2, lambda key: key)
        with pytest.raises(DataError) as caught:
            errors.run(lambda: action(moved))  # noqa: B023
        assert caught.value.findings == ("rows: one finding", "rows: another")
    assert errors.run(rows.count) == 4


def test_user_errors_come_out_of_arrow_functions(spark: Any) -> None:
    errors = TaskErrors(spark)

    def refuse(batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            if batch.num_rows:
                raise ConfigError("no such rows")
            yield batch

    frame = spark.range(5).mapInArrow(errors.guard(refuse), "id long")
    with pytest.raises(ConfigError, match="^no such rows$"):
        errors.run(frame.rdd.count)


def test_a_user_error_that_no_guard_meets(spark: Any) -> None:
    rows = spark.sparkContext.parallelize(range(4), 1)
    with pytest.raises(DataError, match="^rows: one finding\nrows: another$"):
        TaskErrors(spark).run(rows.mapPartitionsWithIndex(fails).collect)


def test_other_failures_are_one_line(spark: Any) -> None:
    def defect(row: int) -> int:
        raise KeyError("first\nsecond")

    def crash(row: int) -> int:
        os._exit(9)

    rows, errors = spark.sparkContext.parallelize([1], 1), TaskErrors(spark)

    def foreign(row: int) -> int:
        raise ModuleNotFoundError("No module named 'gdmix'")

    cases = {
        foreign: "^Spark: tasks run a Python that has no gdmix: set PYSPARK_PYTHON",
        defect: r"^Spark: a task failed: KeyError: .*first.*; --debug shows",
        crash: r"^Spark: a task failed on \S+, executor \S+: Python worker exited",
    }
    for task, line in cases.items():
        with pytest.raises(EngineError, match=line) as caught:
            errors.run(rows.map(task).collect)
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is not None
    with pytest.raises(EngineError, match="PATH_NOT_FOUND"):
        errors.run(lambda: spark.read.parquet("/no/such/folder").count())


def test_other_exceptions_of_the_driver_are_left_alone(spark: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        TaskErrors(spark).run(lambda: 1 // 0)
    with pytest.raises(ModelError := type("Mine", (GdmixError,), {})):
        TaskErrors(spark).run(lambda: (_ for _ in ()).throw(ModelError("x")))


def test_warnings_of_tasks_stay_off_the_terminal(spark: Any, capfd: Any) -> None:
    def warn(rows: Iterable[int]) -> Iterator[int]:
        import logging

        logging.getLogger("gdmix").warning("from a task")
        yield from rows

    errors = TaskErrors(spark)
    assert errors.run(
        spark.sparkContext.parallelize([1], 1).mapPartitions(errors.guard(warn)).collect
    )
    assert "from a task" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("session", "line"),
    [
        (3, "a int is no Spark session"),
        (
            type("SparkSession", (), {"__module__": "pyspark.sql.connect.session"})(),
            "a Spark Connect session has no RDDs and barrier stages",
        ),
    ],
)
def test_what_is_no_session(session: Any, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        check_session(session)


OPEN = """
from gdmix.config import SparkConfig
from gdmix.engines.spark.session import opened
from gdmix.errors import GdmixError
try:
    with opened(SparkConfig(master={master!r}, conf={conf!r}), "test") as session:
        print(session.range(5).count(), session.sparkContext.appName)
except GdmixError as error:
    print(type(error).__name__, error)
"""


def test_a_session_of_ours_is_quiet(needs_spark: None, run_program: Any) -> None:
    conf = {"spark.ui.enabled": "false"}
    out, err = run_program(OPEN.format(master="local[1]", conf=conf)).communicate()
    assert (out, err) == ("5 test\n", "")


def test_a_session_that_does_not_start(needs_spark: None, run_program: Any) -> None:
    out, err = run_program(OPEN.format(master="nonsense", conf={})).communicate()
    assert out.startswith("EngineError Spark does not start: Master must either be yarn or ")
    assert out.count("\n") == 1
    assert err == ""


@pytest.mark.slow  # Spark tries for a minute
def test_a_master_that_does_not_answer(needs_spark: None, run_program: Any) -> None:
    out, err = run_program(OPEN.format(master="spark://127.0.0.1:1", conf={})).communicate()
    line = "EngineError Spark does not start: spark://127.0.0.1:1 does not answer; --debug shows"
    assert out.startswith(line)
    assert err == ""


def test_spark_connect_by_the_environment(run_program: Any) -> None:
    program = run_program(OPEN.format(master="local[1]", conf={}), SPARK_REMOTE="sc://localhost")
    assert program.communicate()[0].startswith("ConfigError SPARK_REMOTE is set, which asks for ")


def java(folder: Path, says: str) -> Path:
    (folder / "bin").mkdir(parents=True)
    program = folder / "bin" / "java"
    program.write_text(f"#!/bin/sh\n{says}\n")
    program.chmod(0o755)
    return folder


def test_java_that_is_missing_or_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = java(tmp_path / "11", """echo 'openjdk version "11.0.2" 2019-01-15' >&2""")
    older = java(tmp_path / "8", """echo 'java version "1.8.0_392"' >&2""")
    broken = java(tmp_path / "broken", "echo 'cannot execute' >&2; exit 1")
    good = java(tmp_path / "21", """echo 'openjdk version "21" 2023-09-19' >&2""")
    cases = {
        old: r"^Spark needs Java 17 or later, \S+/11/bin/java is Java 11: install it \(Debian",
        older: "is Java 8: install it",
        broken: "is no Java that runs: cannot execute; install it",
        tmp_path / "none": "is no Java that runs: .*No such file or directory",
    }
    for home, line in cases.items():
        monkeypatch.setenv("JAVA_HOME", str(home))
        with pytest.raises(ConfigError, match=line) as caught:
            sessions.check_java()
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("JAVA_HOME", str(good))
    sessions.check_java()
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="^Spark needs Java 17 or later, and there is none: "):
        sessions.check_java()


def test_pyspark_that_is_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyspark

    monkeypatch.setattr(pyspark, "__version__", "3.5.4")
    with pytest.raises(ConfigError, match="needs PySpark 4 or later, this is 3.5.4: pip install"):
        sessions.require_pyspark()
    monkeypatch.setitem(sys.modules, "pyspark", None)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'gdmix\[spark\]'$"):
        sessions.require_pyspark()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"master": "sc://host"}, "is a Spark Connect server"),
        ({"conf": {"executor.memory": "4g"}}, "'executor.memory' is no setting of Spark"),
        ({"conf": {"spark.master": "yarn"}}, "has a place of its own"),
        ({"conf": {"spark.dynamicAllocation.enabled": True}}, "needs all its executors at once"),
        ({"partitions": 0}, "greater than or equal to 1"),
        ({"log_level": "LOUD"}, "log_level"),
        ({"memory": "4g"}, "memory"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        SparkConfig(**settings)


def test_settings_become_text() -> None:
    conf = SparkConfig(conf={"spark.a": True, "spark.b": 3, "spark.c": 0.5, "spark.d": "x"}).conf
    assert conf == {"spark.a": "true", "spark.b": "3", "spark.c": "0.5", "spark.d": "x"}
