from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from gdmix import RunConfig, __version__
from gdmix.cli import app, terminal
from gdmix.data import movielens
from gdmix.runs import run

COMMANDS = ("train", "tune", "score", "encode", "evaluate", "inspect", "compare", "features",
            "warmup", "example", "convert")  # fmt: skip

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gdmix(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> Cli:
    """Run the program in this process; return its exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "80")  # of the help
    monkeypatch.setattr(terminal.out, "width", 80)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            app(list(arguments), prog_name="gdmix")
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def trained(project: Path, gdmix: Cli) -> Path:
    assert gdmix("train", "run.yaml", "--quiet") == (0, "", "")
    return project


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# train


def test_train(project: Path, gdmix: Cli) -> None:
    code, out, err = gdmix("train", "run.yaml")
    assert (code, err) == (0, "")
    for text in ("run.yaml", "+ per-user", "logloss", "metrics of the validation rows"):
        assert text in out
    assert out.endswith("run folder: runs/one\n")
    assert (project / "runs/one/manifest.json").exists()


def test_train_elsewhere_with_other_settings(project: Path, gdmix: Cli) -> None:
    code, out, _ = gdmix(
        "train", "run.yaml", "--set", "coordinates.per-user.l2=9", "--set", "passes=1",
        "--set", "metrics=[rmse]", "-o", "runs/[b]odd name", "--json",
    )  # fmt: skip
    assert code == 0
    document = json.loads(out)
    assert document["output"] == "runs/[b]odd name"
    assert document["metrics_of"] == "validation"
    assert [s["coordinate"] for s in document["steps"]] == ["global", "per-user", "per-item"]
    assert list(document["steps"][0]["metrics"]) == ["rmse"]
    assert [p.name for p in (project / "runs").iterdir()] == ["[b]odd name"]
    assert "l2: 9" in (project / "runs/[b]odd name/run.yaml").read_text()


def test_train_overwrites_only_if_told_so(trained: Path, gdmix: Cli) -> None:
    before = files(trained / "runs")
    assert gdmix("train", "run.yaml") == (
        2,
        "",
        "error: runs/one: holds earlier results; pass --overwrite to replace them\n",
    )
    assert files(trained / "runs") == before
    assert gdmix("train", "run.yaml", "--overwrite", "--set", "passes=1")[0] == 0
    assert len(json.loads((trained / "runs/one/history.json").read_text())["steps"]) == 3


def test_train_leaves_a_folder_of_others_alone(project: Path, gdmix: Cli) -> None:
    (project / "mine").mkdir()
    (project / "mine/thesis.txt").touch()
    message = "error: mine: holds files that gdmix did not write; choose another output\n"
    for options in ((), ("--overwrite",)):
        assert gdmix("train", "run.yaml", "-o", "mine", *options) == (2, "", message)
    assert [p.name for p in (project / "mine").iterdir()] == ["thesis.txt"]


def test_warnings_go_to_stderr_also_where_it_is_quiet(project: Path, gdmix: Cli) -> None:
    code, out, err = gdmix("train", "run.yaml", "--quiet", "--set", "tolerance=1e-15")
    assert (code, out) == (0, "")
    assert err == "warning: not converged to 1e-15 after 2 passes\n"
    code, out, err = gdmix("train", "run.yaml", "--overwrite", "--json", "--set", "tolerance=1e-15")
    json.loads(out)
    assert err.count("warning: ") == 1


# score, evaluate


def test_score(trained: Path, gdmix: Cli) -> None:
    assert gdmix("score", "runs/one", "validation.parquet", "-o", "s.parquet") == (
        0,
        "300 rows scored: s.parquet\n",
        "",
    )
    assert pq.read_schema("s.parquet").names[-2:] == ["prediction", "total_score"]
    assert gdmix("score", "runs/one", "validation.parquet", "-o", "s", "--quiet") == (0, "", "")
    assert [p.name for p in (trained / "s").iterdir()] == ["part-00000.parquet"]
    code, out, err = gdmix(
        "score", "runs/one", "validation.parquet", "train.parquet", "-o", "s.csv",
        "--components", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert json.loads(out) == {"output": "s.csv", "rows": 900}
    assert "score:per-item" in pyarrow.csv.read_csv("s.csv").column_names


def test_evaluate(trained: Path, gdmix: Cli) -> None:
    gdmix("score", "runs/one", "validation.parquet", "-o", "s.parquet", "--components")
    history = json.loads((trained / "runs/one/history.json").read_text())
    code, out, _ = gdmix("evaluate", "s.parquet", "--json")
    assert code == 0
    assert json.loads(out) == pytest.approx(history["steps"][-1]["metrics"])
    code, out, _ = gdmix(
        "evaluate", "s.parquet", "-m", "auc", "--metric", "ndcg@5:user", "--score", "score:global"
    )
    assert code == 0
    assert "s.parquet" in out and "ndcg@5:user" in out
    code, out, _ = gdmix("evaluate", "runs/one/global/validation_scores", "--json")
    assert json.loads(out) == pytest.approx(history["steps"][-1]["metrics"])


# inspect, compare


def test_inspect(trained: Path, gdmix: Cli) -> None:
    code, out, err = gdmix("inspect", "runs/one")
    assert (code, err) == (0, "")
    assert "per-item" in out and "random_effect" in out and "(intercept)" in out
    summary = json.loads(gdmix("inspect", "runs/one", "--json")[1])
    assert list(summary) == ["global", "per-user", "per-item"]
    assert summary["global"]["coefficients"] == 9

    code, out, err = gdmix("inspect", "runs/one", "-c", "per-user", "--top", "3")
    assert (code, err) == (0, "")
    assert out.startswith("per-user: largest coefficients\n")
    assert "entity" in out and len(out.splitlines()) == 8
    rows = json.loads(gdmix("inspect", "runs/one", "-c", "per-user", "-e", "3", "--json")[1])
    assert {row["name"] for row in rows} == {"(INTERCEPT)", "x", "kind"}
    rows = json.loads(gdmix("inspect", "runs/one", "-c", "global", "--json", "--top", "2")[1])
    assert len(rows) == 2 and abs(rows[0]["value"]) >= abs(rows[1]["value"])


def test_compare(trained: Path, gdmix: Cli, monkeypatch: Any) -> None:
    gdmix("train", "run.yaml", "-q", "-o", "runs/two", "--set", "passes=1")
    code, out, err = gdmix("compare", "runs/one", "runs/two/")
    assert (code, err) == (0, "")
    assert "one" in out and "two" in out and "runs/" not in out and "kept" in out
    document = json.loads(gdmix("compare", "runs/one", "runs/two", "--json")[1])
    assert list(document) == ["one", "two"]
    assert document["two"]["metrics_of"] == "validation"
    # Folders of one name are told apart by their paths; the working directory has a name too.
    shutil.copytree("runs/one", "other/one")
    assert list(json.loads(gdmix("compare", "runs/one", "other/one", "--json")[1])) == [
        "runs/one",
        "other/one",
    ]
    monkeypatch.chdir("runs/one")
    assert list(json.loads(gdmix("compare", ".", "--json")[1])) == ["one"]


def test_tables_fit_80_columns(trained: Path, gdmix: Cli) -> None:
    for arguments in (
        ("train", "run.yaml", "--overwrite", "--set", "passes=8"),
        ("inspect", "runs/one"),
        ("inspect", "runs/one", "-c", "per-item"),
        ("compare", "runs/one", "runs/one"),
    ):
        code, out, err = gdmix(*arguments)
        assert (code, err) == (0, "")
        assert max(map(len, out.splitlines())) <= 80


# warmup, example


def test_warmup(gdmix: Cli, monkeypatch: Any) -> None:
    monkeypatch.setattr("gdmix.warmup.compile_kernels", lambda: 12.34)
    assert gdmix("warmup") == (0, "kernels ready (12.3 s of CPU)\n", "")
    assert gdmix("warmup", "--quiet") == (0, "", "")


@pytest.mark.slow
def test_after_warmup_nothing_is_left_to_compile(project: Path, train_rows: pa.Table) -> None:
    cache = project / "cache"
    kinds = pa.array([f"k{i}" for i in range(train_rows.num_rows)])
    wide = train_rows.set_column(train_rows.schema.get_field_index("kind"), "kind", kinds)
    pq.write_table(wide, project / "wide.parquet")
    compiled = []
    for arguments in (
        ("warmup",),
        ("train", "run.yaml", "--set", "metrics=[auc, aupr, auc:user, mrr:user, precision@2:item]"),
        ("train", "run.yaml", "-o", "runs/two", "--set", "initial_model=runs/one", "--set",
         "coordinates.per-user.max_active_rows=20", "--set",
         "coordinates.per-user.min_active_rows=18", "--set", "coordinates.per-item.locked=true"),
        ("train", "run.yaml", "--overwrite", "--set", "task=poisson_regression",
         "--set", "columns.response=count", "--set", "metrics=[poisson_loss, mae]"),
        ("score", "runs/one", "validation.parquet", "-o", "s.parquet"),
        ("train", "run.yaml", "-o", "runs/wide", "--set", "data.train=wide.parquet",
         "--set", "data.validation=wide.parquet"),
        ("train", "run.yaml", "-o", "runs/chosen",
         "--set", "features.row={columns: [x, kind], min_count: 2, max_features: 3}",
         "--set", "features.more={columns: [tags], hash_buckets: 16}",
         "--set", "coordinates.global.negative_sampling=0.5",
         "--set", "coordinates.per-user.features_to_samples_ratio=0.1",
         "--set", "coordinates.per-item.negative_sampling=0.5"),
        ("train", "run.yaml", "-o", "runs/sure", "--set", "coordinates.global.variance=full",
         "--set", "coordinates.per-user.save_hessian=true",
         "--set", "coordinates.per-item.variance=simple"),
        ("train", "run.yaml", "-o", "runs/on", "--set", "coordinates.global.save_hessian=true",
         "--set", "prior={model: runs/sure, forgetting: 0.5}"),
        ("score", "runs/sure", "validation.parquet", "-o", "e.parquet", "--std-error",
         "--sample", "3"),
        ("train", "run.yaml", "-o", "runs/auto", "--set", "coordinates.global.l2=auto",
         "--set", "coordinates.per-user.l2=auto", "--set", "coordinates.per-item.l2=auto"),
        ("train", "run.yaml", "-o", "runs/sparse", "--set", "coordinates.global.l1=0.1",
         "--set", "coordinates.per-user.l1=0.1", "--set",
         "coordinates.per-item.normalization=scale_by_max"),
        ("train", "run.yaml", "-o", "runs/factors", "--set", "coordinates.taste="
         "{type: factorization, entities: [user, item], features: {user: row}}"),
        ("train", "run.yaml", "-o", "runs/deep", "--set", "coordinates.global="
         "{type: deep, categorical: kind, wide: [row, more], training: {steps: 3}}"),
        ("features", "run.yaml", "--weighted", "--quiet"),
        ("tune", "run.yaml", "--trials", "2", "--set", "tune.folds=2"),
        ("convert", "rows", "train.parquet", "-o", "t.tfrecord"),
        ("convert", "rows", "train.parquet", "-o", "t.avro"),
        ("score", "runs/one", "t.tfrecord", "-o", "t.parquet"),
        ("score", "runs/one", "t.avro", "-o", "a.parquet"),
    ):  # fmt: skip
        variables = {**environment(), "NUMBA_CACHE_DIR": str(cache)}
        subprocess.run(command(*arguments), env=variables, check=True, capture_output=True)
        compiled.append({p.name for p in cache.rglob("*.nbc")})
    assert compiled[0]
    assert compiled[-1] == compiled[0]


def test_example(tmp_path: Path, gdmix: Cli, monkeypatch: Any) -> None:
    seen = {}

    def prepare(directory: Path, source: Path | None, by: str) -> movielens.MovieLensFiles:
        seen["source"] = source
        return movielens.MovieLensFiles(directory / "t.parquet", directory / "v.parquet", 80, 20)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(movielens, "prepare", prepare)
    code, out, err = gdmix("example", "movielens", "ml", "--source", "x.zip")
    assert (code, err) == (0, "")
    assert (
        out == "ml/t.parquet: 80 rows\nml/v.parquet: 20 rows\nnext: gdmix train ml/movielens.yaml\n"
    )
    assert seen["source"] == Path("x.zip")
    assert Path("ml/movielens.yaml").exists()


# Mistakes: exit code 2, a line each, nothing left behind

TRAIN = ("train", "run.yaml")
SCORE = ("score", "runs/one", "validation.parquet", "-o", "s.parquet")
MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "no such config": (("train", "runn.yaml"), "runn.yaml: no such file (did you mean 'run.yaml'"),
    "bad YAML": (("train", "bad.yaml"), "bad.yaml: line 2: not valid YAML: "),
    "unknown key": ((*TRAIN, "--set", "pases=2"), "run.yaml: pases: unknown key (did you"),
    "unknown nested key": (
        (*TRAIN, "--set", "coordinates.global.l3=2"),
        "run.yaml: coordinates.global.l3: unknown key",
    ),
    "bad --set": ((*TRAIN, "--set", "passes"), "--set passes: expected KEY=VALUE"),
    "missing rows": (
        (*TRAIN, "--set", "data.train=tain.parquet"),
        "tain.parquet: no such file or folder (did you mean 'train.parquet'?)",
    ),
    "missing column": (
        (*TRAIN, "--set", "features.row=[xx, kind]"),
        "train.parquet: column 'xx' is missing",
    ),
    "unknown metric": ((*TRAIN, "--set", "metrics=auk"), "run.yaml: metrics: unknown metric 'auk'"),
    "metric of a missing column": (
        (*TRAIN, "--set", "metrics=[auc, ndcg@5:usr]"),
        "train.parquet: column 'usr' is missing",
    ),
    "metric that does not fit the labels": (
        (*TRAIN, "--set", "task=linear_regression", "--set", "columns.response=level",
         "--set", "metrics=auc"),
        "metric 'auc' needs a response of 0 and 1 only",
    ),
    "labels that do not fit the task": (
        (*TRAIN, "--set", "columns.response=level"),
        "train.parquet: column 'level': 6",
    ),
    "output in a file": ((*TRAIN, "-o", "run.yaml"), "run.yaml: is a file; the output is a folder"),
    "output among others": ((*TRAIN, "-o", "mine"), "mine: holds files that gdmix did not write"),
    "no model": (("inspect", "runs"), "runs: is not a model: has no manifest.json"),
    "no model to score with": (("score", "mine", *SCORE[2:]), "mine: is not a model"),
    "unknown coordinate": (
        ("inspect", "runs/one", "-c", "per-usr"),
        "no coordinate 'per-usr' (did you mean 'per-user'?)",
    ),
    "unknown entity": (
        ("inspect", "runs/one", "-c", "per-user", "-e", "99"),
        "coordinate 'per-user' has no model of entity '99'",
    ),
    "entity of what": (("inspect", "runs/one", "-e", "99"), "--entity needs --coordinate"),
    "no rows to score": (
        ("score", "runs/one", "alidation.parquet", *SCORE[3:]),
        "alidation.parquet: no such file or folder (did you mean 'validation.parquet'?)",
    ),
    "unknown output": ((*SCORE[:-1], "s.txt"), "s.txt: unknown kind of file"),
    "unknown mode": ((*SCORE, "--validate", "lax"), "--validate lax: is none of strict, drop, off"),
    "no scores": (("evaluate", "s.parquet"), "s.parquet: no such file or folder"),
    "not scores": (("evaluate", "train.parquet"), "train.parquet: column 'total_score' is missing"),
    "unknown metric of scores": (
        ("evaluate", "runs/one/global/train_scores", "-m", "auk"),
        "unknown metric 'auk' (did you mean 'auc'?)",
    ),
    "unknown task": (
        ("evaluate", "runs/one/global/train_scores", "--task", "ranking"),
        "--task ranking: unknown",
    ),
    "no run": (("compare", "runs/one", "mine"), "mine: is not a run folder: has no history.json"),
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, set_up: Callable[[Path], None]) -> Path:
    """A folder with a run in it, which no mistake may change."""
    folder = tmp_path_factory.mktemp("finished")
    set_up(folder)
    (folder / "bad.yaml").write_text("task: [\n")
    (folder / "mine").mkdir()
    (folder / "mine/thesis.txt").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(RunConfig.from_yaml(Path("run.yaml")))
    return folder


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_line_each(
    finished: Path, gdmix: Cli, monkeypatch: Any, mistake: str
) -> None:
    monkeypatch.chdir(finished)
    monkeypatch.setattr("gdmix.estimator.descend", None)  # no mistake is found by training
    before = sorted(finished.rglob("*"))
    arguments, message = MISTAKES[mistake]
    if arguments[0] == "train" and "-o" not in arguments:
        arguments = (*arguments, "-o", "runs/new")
    code, out, err = gdmix(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert all(line.startswith("error: ") for line in err.splitlines())
    assert sorted(finished.rglob("*")) == before


def test_several_mistakes_at_once(project: Path, gdmix: Cli) -> None:
    code, _, err = gdmix("train", "run.yaml", "--set", "passes=0", "--set", "task=ranking")
    assert code == 2
    task, passes = err.splitlines()
    assert task.startswith("error: run.yaml: task: ")
    assert passes.startswith("error: run.yaml: passes: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("scoer",), "No such command 'scoer'"),
        (("train",), "Missing argument"),
        (("train", "run.yaml", "--fast"), "No such option"),
        (("inspect", "runs/one", "--top", "0"), "Invalid value for '--top'"),
        (("score", "runs/one", "x.parquet"), "Missing option"),
    ],
)
def test_mistakes_on_the_command_line(gdmix: Cli, arguments: Any, message: str) -> None:
    code, out, err = gdmix(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: gdmix")
    assert message in err


def test_a_defect_of_ours_is_not_hidden(project: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("gdmix.estimator.descend", None)
    with pytest.raises(TypeError):
        app(["train", "run.yaml"])
    assert list((project / "runs").iterdir()) == []


def test_out_of_memory(project: Path, gdmix: Cli, monkeypatch: Any) -> None:
    def descend(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("gdmix.estimator.descend", descend)
    assert gdmix("train", "run.yaml") == (3, "", "error: out of memory\n")
    assert list((project / "runs").iterdir()) == []


@pytest.mark.parametrize("name", ["", *COMMANDS, "example movielens", "convert features"])
def test_help_fits_80_columns_and_is_not_cut(gdmix: Cli, name: str) -> None:
    code, out, _ = gdmix(*name.split(), "--help")
    lines = out.splitlines()
    assert code == 0
    assert max(map(len, lines)) <= 80
    assert "bool" not in out
    assert not any(line.endswith("...") for line in lines[1:])


# In its own process


def environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "80", "TERM": "dumb"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gdmix", *arguments]


def test_a_failing_process_prints_a_line_and_no_traceback(project: Path) -> None:
    done = subprocess.run(
        command("train", "run.yaml", "--set", "data.train=x"),
        env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert (done.stdout, done.stderr) == ("", "error: x: no such file or folder\n")


@pytest.mark.parametrize("earlier", [False, True])
def test_ctrl_c_leaves_nothing_half_written(project: Path, earlier: bool) -> None:
    if earlier:
        run(RunConfig.from_yaml(Path("run.yaml")))
    before = files(project)
    process = subprocess.Popen(
        command("train", "run.yaml", "--overwrite", "--set", "passes=1000000"),
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell makes its background jobs, and so perhaps this test, ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300  # kernels may have to be compiled
        while time.monotonic() < deadline and process.poll() is None:
            logs = list(project.glob("runs/.one.unfinished/run.log"))
            if logs and "pass 3," in logs[0].read_text():
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    unfinished = (project / "runs" / ".one.unfinished").resolve()
    assert (out, err) == ("", f"interrupted; {unfinished} keeps the state: --resume goes on\n")
    shutil.rmtree(unfinished)
    assert files(project) == before
    assert [p.name for p in (project / "runs").iterdir()] == ["one"] * earlier


def test_version(gdmix: Cli) -> None:
    assert gdmix("--version") == (0, f"gdmix {__version__}\n", "")


def test_without_arguments_it_explains_itself(gdmix: Cli) -> None:
    _, out, err = gdmix()
    assert all(name in out + err for name in COMMANDS)
