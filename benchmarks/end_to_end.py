"""From files to scores on MovieLens-100k: gdmix beside Vowpal Wabbit and LightFM.

    gdmix example movielens movielens
    python benchmarks/end_to_end.py [--folder movielens] [--json FILE]

`GDMIX_MOVIELENS` may name the folder instead. Every program gets the same prepared Parquet files,
predicts whether a rating is above 3, and writes a probability per validation row:

- gdmix: the example `movielens.yaml`, a global model, one per user and one per movie, five passes;
- Vowpal Wabbit: one linear model with the crosses that span the same model, ids times features;
- LightFM: factors of ids and features, which can express more than the other models.

How to read the table:

- "CPU s" is that of the whole process, start and reading included, one thread, median over the
  repetitions; "fit" is the training alone, without reading and without writing scores.
- Each runs at the best of a few settings by AUC of these validation rows (gdmix: the L2 weight of
  the entities' models, 1 in the example); the search is not timed.
- gdmix runs once before, so that its compiled kernels lie on disk.
"""

from __future__ import annotations

import harness  # before numpy: it pins the threads

# isort: split
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score

F64 = NDArray[np.float64]
Rows = dict[str, list[Any]]
Settings = dict[str, float]


# --- the programs, each in a process of its own ----------------------------------------------


def read(folder: Path, split: str) -> Rows:
    rows: Rows = pq.read_table(folder / f"{split}.parquet").to_pydict()
    return rows


def sigmoid(z: F64) -> F64:
    return 1.0 / (1.0 + np.exp(-z))


def gdmix_scores(folder: Path, scratch: Path, settings: Settings) -> tuple[F64, float]:
    """Fit gdmix's example; return the probabilities and the CPU seconds of the fit."""
    import gdmix

    example = Path(gdmix.__file__).parent / "examples" / "movielens.yaml"
    changes = {f"coordinates.per-{entity}.l2": str(settings["l2"]) for entity in ("user", "movie")}
    config = gdmix.RunConfig.from_yaml(example, changes)
    model = gdmix.MixedModel(
        list(config.coordinates.values()),
        features=config.features,
        columns=config.columns.model_dump(exclude_unset=True),
        passes=config.passes,
        threads=1,
    )
    rows = pq.read_table(folder / "train.parquet")
    cost = harness.timed(lambda: model.fit(rows))
    return np.asarray(model.predict(folder / "validation.parquet")), cost


def vowpal_wabbit_scores(folder: Path, scratch: Path, settings: Settings) -> tuple[F64, float]:
    """Fit Vowpal Wabbit with crosses of ids and features."""
    from vowpalwabbit import Workspace

    for split in ("train", "validation"):
        write_vowpal_wabbit(read(folder, split), scratch / split)
    options = (
        f"-d {scratch / 'train'} -f {scratch / 'model'} --loss_function logistic -q im -q ju -b 20 "
        f"--passes {settings['passes']} --cache_file {scratch / 'cache'} -k --holdout_off "
        f"-l {settings['rate']} --l2 {settings['l2']} --quiet"
    )
    cost = harness.timed(lambda: Workspace(options).finish())
    Workspace(
        f"-d {scratch / 'validation'} -t -i {scratch / 'model'} -p {scratch / 'scores'} --quiet"
    ).finish()
    return sigmoid(np.loadtxt(scratch / "scores")), cost


def write_vowpal_wabbit(rows: Rows, path: Path) -> None:
    """Write rows as Vowpal Wabbit reads them: the ids and the two bags of features apart."""

    def number(name: str, value: float | None) -> str:
        return "" if value is None or value != value else f"{name}:{value:.4f}"

    with path.open("w") as file:
        for k, response in enumerate(rows["response"]):
            genres = " ".join(rows["genres"][k])
            file.write(
                f"{2 * response - 1} |i {rows['user_id'][k]} |j {rows['movie_id'][k]} "
                f"|u {number('age', rows['age'][k])} {rows['gender'][k]} {rows['occupation'][k]} "
                f"|m {genres} {number('year', rows['release_date'][k])}\n"
            )


def lightfm_scores(folder: Path, scratch: Path, settings: Settings) -> tuple[F64, float]:
    """Fit LightFM with an indicator per id beside the features."""
    import scipy.sparse
    from lightfm import LightFM

    splits = {split: read(folder, split) for split in ("train", "validation")}
    places: dict[str, dict[int, int]] = {"user_id": {}, "movie_id": {}}
    features: dict[str, list[dict[str, float]]] = {"user_id": [], "movie_id": []}
    for rows in splits.values():
        for k in range(len(rows["uid"])):
            about = {
                "user_id": {"age": rows["age"][k], rows["gender"][k]: 1.0},
                "movie_id": {
                    "year": rows["release_date"][k],
                    **dict.fromkeys(rows["genres"][k], 1.0),
                },
            }
            about["user_id"][rows["occupation"][k]] = 1.0
            for entity, known in places.items():
                if rows[entity][k] not in known:
                    known[rows[entity][k]] = len(known)
                    features[entity].append(about[entity])

    def matrix(entity: str) -> Any:
        names: dict[str, int] = {}
        n = len(features[entity])
        cells = [(e, e, 1.0) for e in range(n)]
        for e, own in enumerate(features[entity]):
            for name, value in own.items():
                if value is not None and value == value:
                    cells.append((e, n + names.setdefault(name, len(names)), value))
        row, column, value = zip(*cells, strict=True)
        shape = n, n + len(names)
        return scipy.sparse.csr_matrix((value, (row, column)), shape=shape, dtype=np.float32)

    def ids(rows: Rows) -> list[NDArray[np.int32]]:
        return [np.array([places[e][v] for v in rows[e]], np.int32) for e in places]

    users, movies = matrix("user_id"), matrix("movie_id")
    labels = 2.0 * np.array(splits["train"]["response"], np.float32) - 1.0
    shape = users.shape[0], movies.shape[0]
    ratings = scipy.sparse.coo_matrix((labels, tuple(ids(splits["train"]))), shape=shape)
    model = LightFM(
        no_components=int(settings["components"]),
        loss="logistic",
        user_alpha=settings["alpha"],
        item_alpha=settings["alpha"],
        random_state=1,
    )
    sides = {"user_features": users, "item_features": movies, "num_threads": 1}
    epochs = int(settings["epochs"])
    cost = harness.timed(lambda: model.fit(ratings, epochs=epochs, **sides))
    scores = model.predict(*ids(splits["validation"]), **sides)
    return sigmoid(np.asarray(scores, np.float64)), cost


# --- side by side ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Contestant:
    """One program: how it is run in its process, and the settings to choose from."""

    name: str
    scores: Callable[[Path, Path, Settings], tuple[F64, float]]
    settings: Sequence[Settings] = ({},)


@dataclass
class Outcome:
    """One row of the table."""

    program: str
    settings: Settings
    auc: float
    logloss: float
    cpu_seconds: list[float]
    fit_seconds: list[float]


CONTESTANTS = {
    "gdmix": Contestant("gdmix", gdmix_scores, [{"l2": l2} for l2 in (1.0, 3.0, 10.0, 30.0)]),
    "vowpalwabbit": Contestant(
        "Vowpal Wabbit, crosses",
        vowpal_wabbit_scores,
        [
            {"passes": passes, "rate": rate, "l2": l2}
            for passes in (1, 5, 20)
            for rate in (0.1, 0.5)
            for l2 in (0.0, 1e-6, 1e-5)
        ],
    ),
    "lightfm": Contestant(
        "LightFM",
        lightfm_scores,
        [
            {"components": components, "epochs": epochs, "alpha": alpha}
            for components in (8, 32)
            for epochs in (5, 10, 20, 30)
            for alpha in (0.0, 1e-5, 1e-4)
        ],
    ),
}


def run(key: str, folder: Path, settings: Settings) -> tuple[F64, float, float]:
    """Run a program in a process of its own; return probabilities, its CPU seconds, the fit's."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, __file__, "--program", key, "--folder", str(folder)]
        command += ["--scratch", scratch, "--settings", json.dumps(settings)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout is not None
        answer = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise RuntimeError(f"{key} failed, exit code {child.returncode}")
        probabilities = np.load(Path(scratch) / "probabilities.npy")
    return probabilities, usage.ru_utime + usage.ru_stime, float(answer)


def compare(folder: Path, keys: Sequence[str], *, repeats: int, quick: bool) -> list[Outcome]:
    """Choose each program's settings, then let the programs take turns."""
    labels = np.array(read(folder, "validation")["response"])
    outcomes = {}
    for key in keys:
        contestant = CONTESTANTS[key]
        for settings in contestant.settings[:1] if quick else contestant.settings:
            probabilities, _, _ = run(key, folder, settings)
            auc, loss = roc_auc_score(labels, probabilities), log_loss(labels, probabilities)
            harness.say(f"  {contestant.name} {settings}: AUC {auc:.4f}, log loss {loss:.4f}")
            if key not in outcomes or auc > outcomes[key].auc:
                outcomes[key] = Outcome(contestant.name, settings, auc, loss, [], [])
    for _ in range(repeats):
        for key, outcome in outcomes.items():
            _, cpu, fit = run(key, folder, outcome.settings)
            outcome.cpu_seconds.append(cpu)
            outcome.fit_seconds.append(fit)
    return list(outcomes.values())


def report(outcomes: Sequence[Outcome]) -> str:
    """Return the table."""
    ours = outcomes[0]

    def cells(values: list[float], of: list[float]) -> tuple[str, str]:
        cost = statistics.median(values)
        return (
            f"{cost:.3g} ({min(values):.3g}-{max(values):.3g})",
            f"{cost / statistics.median(of):.3g}",
        )

    rows = [
        (
            f"{o.program} {' '.join(f'{k} {v:g}' for k, v in o.settings.items())}".strip(),
            f"{o.auc:.4f}",
            f"{o.logloss:.4f}",
            *cells(o.cpu_seconds, ours.cpu_seconds),
            *cells(o.fit_seconds, ours.fit_seconds),
        )
        for o in outcomes
    ]
    header = ("program", "AUC", "log loss", "CPU s", "/ gdmix", "fit, CPU s", "/ gdmix")
    return harness.table(header, rows)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = os.environ.get("GDMIX_MOVIELENS") or "movielens"
    parser.add_argument("--folder", type=Path, default=Path(default), help="of the prepared rows")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the results there")
    parser.add_argument("--quick", action="store_true", help="does it still run?")
    parser.add_argument("--program", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.program:
        scores = CONTESTANTS[options.program].scores
        probabilities, cost = scores(options.folder, options.scratch, options.settings)
        np.save(options.scratch / "probabilities.npy", probabilities)
        print(cost)
        return
    if not (options.folder / "train.parquet").exists():
        harness.say(f"left out: {options.folder} holds no rows; run `gdmix example movielens`")
        return

    about = harness.machine()
    keys = ["gdmix"]
    keys += ["vowpalwabbit"] if harness.installed("vowpalwabbit") else []
    keys += ["lightfm"] if harness.installed("lightfm", "rectools-lightfm") else []
    repeats = 1 if options.quick else options.repeats
    outcomes = compare(options.folder, keys, repeats=repeats, quick=options.quick)
    head = ["# End to end: MovieLens-100k", harness.machine_list(about)]
    head += [f"{repeats} runs of each program, taking turns; medians of CPU time."]
    print("\n\n".join([*head, report(outcomes)]))
    harness.write_json(
        options.json, {"machine": about, "programs": [asdict(outcome) for outcome in outcomes]}
    )


if __name__ == "__main__":
    main()
