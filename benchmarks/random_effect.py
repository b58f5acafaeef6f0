"""How fast are many small models fitted, and are they right? gdmix beside its alternatives.

    python benchmarks/random_effect.py [--problem A] [--entities 200000] [--json FILE]

Problem A has entities of about 10 rows, problem B of about 200. Each is posed twice: as a
random effect needs it (offsets, entities of one class), and once more without offsets and
without entities of one class, for programs that take neither. Every coefficient has L2 weight
1, the intercept's included.

How to read the tables:

- "CPU s" is the median over the repetitions of one fit of the entities in the column before;
  its range is in brackets. Slow programs fit a sample that has the same mix of sizes.
- "time / gdmix" compares CPU seconds per entity with gdmix's on the same problem, "/ default"
  with gdmix's at its default tolerance.
- "tolerance" is the program's own, each with its own meaning: the loosest of powers of ten at
  which the sample's summed objective is within 1e-6 of the optimum, relative to it. GDMix's call
  of SciPy runs at its default, which is tighter; so does gdmix in the row that says so.
- The last columns compare the sample's models with optima computed by plain numpy in double
  precision: the largest and the median difference of a coefficient, and how far the sample's
  objective is above the optimum, relative to it.
- "do nothing" reads all data once and computes margins and losses: the floor under all.

Not in any time: bringing data into the program's own form (grouped arrays for gdmix, dense
arrays per entity, one block-diagonal sparse matrix, padded tensors), and start-up, which is
listed apart.
"""

# ruff: noqa: D102 - the methods of a program are documented by `harness.Program`.
from __future__ import annotations

import harness  # before numpy: it pins the threads

# isort: split
import argparse
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import fmin_l_bfgs_b

from gdmix.glm.entities import fit_entities
from gdmix.glm.losses import LOGISTIC, total_loss
from gdmix.glm.objective import add_margins
from gdmix.glm.status import CONVERGED
from harness import Program, Result, Solution
from libraries import fit_scikit, fit_snapml
from problems import EntityProblem, dense_newton, entity_problem, logistic, without_offsets

F64 = NDArray[np.float64]

DEFAULT_TOLERANCE = 1e-8


# --- on the grouped arrays ---------------------------------------------------------------


class DoNothing(Program[EntityProblem]):
    """One pass over the data: margins and losses at zero."""

    name = "do nothing (one pass)"
    judged = False

    def prepare(self, problem: EntityProblem) -> None:
        self.problem = problem
        self.theta = np.zeros(int(np.diff(problem.block.coefficient_ptr).max()))
        self.z = np.empty(problem.block.n_rows)

    def fit(self, tolerance: float | None) -> None:
        b = self.problem.block
        arrays = b.indptr, b.indices, b.values
        add_margins(b.n_rows, *arrays, 1.0, self.theta, self.problem.offset, self.z)
        self.loss = total_loss(LOGISTIC, self.z, b.response, b.weight)

    def solution(self) -> Solution:
        return Solution(np.empty(0), self.problem.block.n_entities)


class Gdmix(Program[EntityProblem]):
    """The solver of this package."""

    name = "gdmix"
    tolerances: Sequence[float] = tuple(10.0**-k for k in range(1, 9))

    threads = 1

    def prepare(self, problem: EntityProblem) -> None:
        self.problem = problem

    def fit(self, tolerance: float | None) -> None:
        self.result = fit_entities(
            self.problem.block,
            self.problem.offset,
            loss=LOGISTIC,
            l2=self.problem.l2,
            intercept_l2=self.problem.l2,
            tolerance=tolerance or 0.0,
            threads=self.threads,
        )

    def solution(self) -> Solution:
        result = self.result
        return Solution(
            self.problem.of_sample(result.coefficients),
            self.problem.block.n_entities,
            bool((result.status == CONVERGED).all()),
            {"mean iterations": float(result.iterations.mean())},
        )


class GdmixDefault(Gdmix):
    """The same at its default tolerance."""

    name = "gdmix, default tolerance"
    tolerances = (DEFAULT_TOLERANCE,)


# --- loops over dense entities -----------------------------------------------------------


class Loop(Program[EntityProblem]):
    """A Python loop over the sample, one dense design per entity."""

    def prepare(self, problem: EntityProblem) -> None:
        self.l2 = problem.l2
        self.entities = [problem.dense(int(e)) for e in problem.sample]

    def fit(self, tolerance: float | None) -> None:
        fits = [self.fit_one(*entity, tolerance) for entity in self.entities]
        self.thetas = [theta for theta, _ in fits]
        self.converged = all(converged for _, converged in fits)

    @abstractmethod
    def fit_one(self, x: F64, y: F64, offset: F64, tolerance: float | None) -> tuple[F64, bool]:
        """Return one entity's coefficients, and whether the program says that it converged."""

    def solution(self) -> Solution:
        return Solution(np.concatenate(self.thetas), len(self.entities), self.converged)


class NumpyNewton(Loop):
    """The routine that also computes the reference, stopped earlier."""

    name = "numpy Newton, loop"
    tolerances = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)

    def fit_one(self, x: F64, y: F64, offset: F64, tolerance: float | None) -> tuple[F64, bool]:
        limit = tolerance or 0.0
        theta, _, relative_norm = dense_newton(x, y, offset, self.l2, limit)
        return theta, relative_norm <= limit


class ScipyAsGdmix(Loop):
    """What LinkedIn's GDMix calls per entity, with its parameters, and SciPy's default pgtol.

    Two changes in its favour: value and gradient share one product with the design, and the
    design is dense.
    """

    name = "scipy L-BFGS as in GDMix, loop"
    tolerances = (1e-12,)

    def fit_one(self, x: F64, y: F64, offset: F64, tolerance: float | None) -> tuple[F64, bool]:
        n, l2 = y.size, self.l2

        def objective(theta: F64) -> tuple[float, F64]:
            loss, d1, _ = logistic(x @ theta + offset, y)
            return (loss + 0.5 * l2 * float(theta @ theta)) / n, (d1 @ x + l2 * theta) / n

        theta, _, report = fmin_l_bfgs_b(
            objective,
            np.zeros(x.shape[1]),
            m=10,
            maxiter=100,
            factr=(tolerance or 0.0) / np.finfo(float).eps,
        )
        return theta, report["warnflag"] == 0


class ScikitLoop(Loop):
    """scikit-learn's default solver; the constant column makes the intercept penalised."""

    name = "scikit-learn lbfgs, loop"
    tolerances = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)

    def fit_one(self, x: F64, y: F64, offset: F64, tolerance: float | None) -> tuple[F64, bool]:
        return fit_scikit("lbfgs", x, y, self.l2, tolerance)


# --- all entities as one problem ---------------------------------------------------------


class BlockDiagonal(Program[EntityProblem]):
    """All entities as one sparse logistic regression: their columns are disjoint."""

    tolerances = tuple(10.0**-k for k in range(2, 13))

    def __init__(self, solver: str) -> None:
        self.solver = solver
        self.name = f"scikit-learn {solver}, block-diagonal"

    def prepare(self, problem: EntityProblem) -> None:
        self.problem = problem
        self.matrix = problem.block_diagonal()

    def fit(self, tolerance: float | None) -> None:
        self.coefficients, self.converged = fit_scikit(
            self.solver, self.matrix, self.problem.block.response, self.problem.l2, tolerance
        )

    def solution(self) -> Solution:
        return Solution(
            self.problem.of_sample(self.coefficients),
            self.problem.block.n_entities,
            self.converged,
        )


class SnapMlBlockDiagonal(Program[EntityProblem]):
    """The same by IBM Snap ML's dual coordinate descent."""

    name = "snapml dual, block-diagonal"
    tolerances = tuple(10.0**-k for k in range(2, 8))

    def prepare(self, problem: EntityProblem) -> None:
        self.problem = problem
        self.matrix = problem.block_diagonal().astype(np.float32)

    def fit(self, tolerance: float | None) -> None:
        self.coefficients = fit_snapml(
            self.matrix, self.problem.block.response, self.problem.l2, tolerance, dual=True
        )

    def solution(self) -> Solution:
        return Solution(self.problem.of_sample(self.coefficients), self.problem.block.n_entities)


class TorchBatched(Program[EntityProblem]):
    """Damped Newton on padded batches of entities of similar size, by torch.linalg.

    It fits the sample only where the padded designs of all entities would not fit in `BYTES`.
    """

    name = "torch batched Newton"
    tolerances = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    BYTES = 2 << 30
    BATCH_VALUES = 1 << 18

    def prepare(self, problem: EntityProblem) -> None:
        import torch

        torch.set_num_threads(1)
        self.problem, self.torch = problem, torch
        rows = np.diff(problem.block.row_ptr)
        columns = np.diff(problem.block.coefficient_ptr)
        fits = 8 * int(np.sum(rows * columns)) <= self.BYTES
        self.entities = np.arange(rows.size) if fits else problem.sample
        by_size = self.entities[np.lexsort((columns[self.entities], rows[self.entities]))]
        self.batches: list[tuple[NDArray[np.int64], list[Any]]] = []
        while by_size.size:
            largest = columns[by_size].max() * np.maximum.accumulate(rows[by_size])
            count = max(
                1, int(np.sum(np.arange(1, by_size.size + 1) * largest <= self.BATCH_VALUES))
            )
            self.batches.append(self._pad(by_size[:count]))
            by_size = by_size[count:]

    def _pad(self, entities: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[Any]]:
        """Pad with rows of weight zero and columns of zeros."""
        dense = [self.problem.dense(int(e)) for e in entities]
        n, d = max(x.shape[0] for x, _, _ in dense), max(x.shape[1] for x, _, _ in dense)
        x = np.zeros((len(dense), n, d))
        y, offset, weight = np.zeros((3, len(dense), n))
        for k, (own_x, own_y, own_offset) in enumerate(dense):
            x[k, : own_x.shape[0], : own_x.shape[1]] = own_x
            y[k, : own_y.size], offset[k, : own_y.size] = own_y, own_offset
            weight[k, : own_y.size] = 1.0
        return entities, [self.torch.from_numpy(a) for a in (x, y, offset, weight)]

    def fit(self, tolerance: float | None) -> None:
        self.thetas = [self._newton(tolerance or 0.0, *batch) for _, batch in self.batches]

    def _newton(self, tolerance: float, x: Any, y: Any, offset: Any, weight: Any) -> Any:
        torch, l2 = self.torch, self.problem.l2
        theta = torch.zeros(x.shape[0], x.shape[2], dtype=torch.float64)
        penalty = l2 * torch.eye(x.shape[2], dtype=torch.float64)
        transposed = x.transpose(1, 2)

        def value(z: Any, theta: Any) -> Any:
            loss = weight * (torch.nn.functional.softplus(z) - y * z)
            return loss.sum(1) + 0.5 * l2 * (theta * theta).sum(1)

        z, first = offset, None
        current = value(z, theta)
        for _ in range(50):
            mean = torch.sigmoid(z)
            gradient = (transposed @ (weight * (mean - y))[:, :, None])[:, :, 0] + l2 * theta
            norm = gradient.norm(dim=1)
            first = norm if first is None else first
            if bool((norm <= tolerance * first).all()):
                break
            hessian = (transposed * (weight * mean * (1.0 - mean))[:, None, :]) @ x + penalty
            factor = torch.linalg.cholesky(hessian)
            step = -torch.cholesky_solve(gradient[:, :, None], factor)[:, :, 0]
            move = (x @ step[:, :, None])[:, :, 0]
            slope = (gradient * step).sum(1)
            t = torch.ones_like(slope)
            for _ in range(30):
                new_theta, new_z = theta + t[:, None] * step, z + t[:, None] * move
                new = value(new_z, new_theta)
                bad = new > current + 1e-4 * t * slope + 1e-12 * current.abs()
                if not bool(bad.any()):
                    break
                t = torch.where(bad, 0.5 * t, t)
            theta, z, current = new_theta, new_z, new
        return theta

    def solution(self) -> Solution:
        found: dict[int, F64] = {}
        for (entities, _), thetas in zip(self.batches, self.thetas, strict=True):
            found |= {int(e): theta.numpy() for e, theta in zip(entities, thetas, strict=True)}
        sizes = np.diff(self.problem.block.coefficient_ptr)
        parts = [found[int(e)][: sizes[e]] for e in self.problem.sample]
        return Solution(np.concatenate(parts), self.entities.size)


# --- the run -----------------------------------------------------------------------------


def problem_a(entities: int, sample: int) -> EntityProblem:
    """Return entities with few rows: most have fewer rows than features."""
    return entity_problem(
        "A",
        entities,
        mean_rows=10,
        features_per_row=10,
        features_per_entity=32,
        sample=sample,
        seed=1,
    )


def problem_b(entities: int, sample: int) -> EntityProblem:
    """Return entities with many rows."""
    return entity_problem(
        "B",
        entities,
        mean_rows=200,
        features_per_row=20,
        features_per_entity=200,
        sample=sample,
        seed=2,
    )


def report(problem: EntityProblem, results: Sequence[Result]) -> str:
    """Return one problem's part of the report."""
    ours = next(r for r in results if r.program == Gdmix.name)
    default = next(r for r in results if r.program == GdmixDefault.name)

    def ratio(r: Result, to: Result) -> str:
        return f"{r.cpu / r.size * to.size / to.cpu:.3g}" if r.size else ""

    rows = []
    for r in results:
        rows.append(
            (
                r.program,
                harness.power(r.tolerance),
                f"{r.size:,}" if r.size else "",
                harness.seconds(r),
                f"{r.size / r.cpu:,.0f}" if r.size else "",
                ratio(r, ours),
                ratio(r, default),
                *harness.accuracy_cells(r),
            )
        )
    header = (
        "program",
        "tolerance",
        "entities",
        "CPU s",
        "entities / CPU s",
        "time / gdmix",
        "/ default",
        *harness.ACCURACY_HEADER,
    )
    _, value, norm = problem.reference
    return "\n\n".join(
        (
            f"## Problem {problem.name}",
            problem.describe(),
            harness.table(header, rows),
            f"{harness.agreement(results)} Reference: objective {value:.6f} over the sample, "
            f"largest gradient norm {norm:.0e} of the one at zero.",
        )
    )


def measure_threads(title: str, problem: EntityProblem, repeats: int) -> dict[str, Any]:
    """Compare one thread and two at the default tolerance."""
    program = Gdmix()
    program.prepare(problem)

    def fit(threads: int) -> None:
        program.threads = threads
        program.fit(DEFAULT_TOLERANCE)

    return harness.two_threads(title, fit, repeats)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problem", choices=("A", "B", "both"), default="both")
    parser.add_argument("--entities", type=int, default=20_000, help="of problem A")
    parser.add_argument("--entities-b", type=int, default=2_000, help="of problem B")
    parser.add_argument("--sample", type=int, default=1_000, help="of A; of B a fifth of it")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cap", type=float, default=300.0, help="CPU seconds of one fit")
    parser.add_argument("--json", type=Path, help="also write the results there")
    parser.add_argument("--quick", action="store_true", help="tiny: does it still run?")
    parser.add_argument("--first-fit", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.entities, options.entities_b, options.sample, options.repeats = 300, 40, 50, 1

    ours = Gdmix()
    tiny = {"A": problem_a(40, 5), "B": problem_b(4, 2)}

    def fit_tiny() -> None:
        for problem in tiny.values():
            ours.prepare(problem)
            ours.fit(DEFAULT_TOLERANCE)

    if options.first_fit:
        print(harness.timed(fit_tiny))
        return
    fit_tiny()

    about = harness.machine()
    torch = [TorchBatched()] if harness.installed("torch") else []
    snapml = [SnapMlBlockDiagonal()] if harness.installed("snapml") else []
    both: list[Program[EntityProblem]] = [ours, GdmixDefault()]
    make: dict[str, Callable[[], EntityProblem]] = {
        "A": lambda: problem_a(options.entities, options.sample),
        "B": lambda: problem_b(options.entities_b, max(1, options.sample // 5)),
    }
    parts, content, scaling = [], [], []
    for name in make if options.problem == "both" else options.problem:
        problem = make[name]()
        plain = without_offsets(problem)
        contests: list[tuple[EntityProblem, EntityProblem, list[Program[EntityProblem]]]] = [
            (problem, tiny[name], [DoNothing(), *both, *torch, NumpyNewton(), ScipyAsGdmix()]),
            (
                plain,
                without_offsets(tiny[name]),
                [
                    *both,
                    BlockDiagonal("liblinear"),
                    BlockDiagonal("newton-cg"),
                    *snapml,
                    ScikitLoop(),
                ],
            ),
        ]
        harness.say(f"problem {name} on two threads")
        title = f"{name}, {problem.block.n_entities:,} entities"
        scaling.append(measure_threads(title, problem, options.repeats))
        for problem, small, programs in contests:
            harness.say(f"problem {problem.name}")
            results = harness.compare(
                programs, problem, small, problem.judge, repeats=options.repeats, cap=options.cap
            )
            parts.append(report(problem, results))
            content.append(
                {
                    "problem": problem.name,
                    "description": problem.describe(),
                    "programs": harness.as_json(results),
                }
            )

    started = {} if options.quick else harness.start_up(Path(__file__))
    head = [
        "# Random effects: many small logistic models",
        harness.machine_list(about),
        f"Up to {options.repeats} runs of each program, taking turns; medians of CPU time.",
    ]
    parts.append(harness.two_threads_section(scaling))
    print("\n\n".join(head + parts + harness.start_up_section(started)))
    harness.write_json(
        options.json,
        {"machine": about, "start up": started, "threads": scaling, "problems": content},
    )


if __name__ == "__main__":
    main()
