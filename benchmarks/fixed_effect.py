"""How fast is one large sparse model fitted, and is it right? gdmix beside its alternatives.

    python benchmarks/fixed_effect.py [--rows 1000000] [--json FILE]

Rows have 20 features out of 100,000, their frequencies by a power law as ids have. The slopes
have L2 weight 1 and the intercept none. liblinear and Snap ML always penalise the intercept, so
they, and gdmix once more, get that problem in a table of its own.

How to read the tables:

- "CPU s" is the median over the repetitions, with the range; slow programs run once.
- "tolerance" is the program's own: the loosest power of ten at which the objective is within
  1e-6 of the optimum, relative to it. "stopped by us": SciPy's L-BFGS is watched and stopped
  in the moment when it is there, which no tolerance of its own could beat.
- A program that needed more CPU seconds than the cap was killed and is marked.
- "MB" is the peak memory of the fit, the data in the program's own form included, see `harness`.
  SciPy and scikit-learn take the problem's own matrix, 12 bytes a value, which is not counted.
- "passes" are those over the data that gdmix counts, a product with X or with X' as one half.
- The last columns compare with an optimum computed by numpy and SciPy in double precision. At
  a suboptimality of 1e-6 the coefficients of rare features still differ in the second digit;
  gdmix at its default tolerance shows what the rest costs.

The section on memory bandwidth compares the pass over the data that dominates gdmix, a product
with the Hessian, and the whole fit with a stream triad on the same core: how far from the limit
of the machine they are.

Not in any time: bringing data into the program's own form, and start-up, which is listed apart.
"""

# ruff: noqa: D102 - the methods of a program are documented by `harness.Program`.
from __future__ import annotations

import harness  # before numpy: it pins the threads

# isort: split
import argparse
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from gdmix.glm.compiled import kernel
from gdmix.glm.large import fit_large
from gdmix.glm.losses import LOGISTIC
from gdmix.glm.objective import add_hessian_product_paired, margins
from gdmix.glm.penalty import QuadraticPenalty
from gdmix.glm.status import FitStatus
from harness import Program, Result, Solution
from libraries import fit_snapml
from problems import FixedProblem, fixed_problem, with_penalised_intercept

F64 = NDArray[np.float64]

DEFAULT_TOLERANCE = 1e-8
PLAIN_STREAMS = "copy (numpy)", "triad"


class DoNothing(Program[FixedProblem]):
    """One product with the design."""

    name = "do nothing (one X v)"
    judged = False

    def prepare(self, problem: FixedProblem) -> None:
        self.design = problem.design
        self.theta = np.zeros(self.design.n_columns + 1)
        self.z = np.empty(self.design.n_rows)

    def fit(self, tolerance: float | None) -> None:
        x = self.design
        margins(x.n_rows, x.indptr, x.indices, x.values, 1.0, self.theta, self.z)

    def solution(self) -> Solution:
        return Solution(np.empty(0), self.z.size, details={"passes": 0.5})


class Gdmix(Program[FixedProblem]):
    """The solver of this package."""

    name = "gdmix"
    tolerances: Sequence[float] = tuple(10.0**-k for k in range(1, 9))

    threads = 1

    def prepare(self, problem: FixedProblem) -> None:
        self.problem, self.design = problem, problem.design
        self.weight, self.offset = np.ones_like(problem.response), np.zeros_like(problem.response)

    def fit(self, tolerance: float | None) -> None:
        self.result = fit_large(
            self.design,
            self.problem.response,
            self.weight,
            self.offset,
            loss=LOGISTIC,
            penalty=QuadraticPenalty(self.problem.penalty),
            tolerance=tolerance or 0.0,
            threads=self.threads,
        )

    def solution(self) -> Solution:
        result = self.result
        return Solution(
            result.coefficients,
            self.offset.size,
            result.status == FitStatus.CONVERGED,
            {"iterations": float(result.iterations), "passes": result.passes},
        )


class GdmixDefault(Gdmix):
    """The same at its default tolerance."""

    name = "gdmix, default tolerance"
    tolerances = (DEFAULT_TOLERANCE,)


class ScipyLbfgs(Program[FixedProblem]):
    """SciPy's L-BFGS on numpy's objective, stopped as soon as the target is reached.

    With `scaled`, each column is divided by the root of its curvature at zero, which is what an
    expert would do.
    """

    def __init__(self, scaled: bool) -> None:
        self.scaled = scaled
        self.name = f"scipy L-BFGS, {'scaled' if scaled else 'unscaled'}"

    def prepare(self, problem: FixedProblem) -> None:
        self.problem = problem
        self.goal = (1.0 + harness.TARGET) * problem.reference[1]
        self.scale = np.ones_like(problem.penalty)
        if self.scaled:
            squared = problem.matrix.copy()
            squared.data **= 2
            columns = np.concatenate(([problem.response.size], np.asarray(squared.sum(axis=0))[0]))
            self.scale = 1.0 / np.sqrt(0.25 * columns + problem.penalty)

    def fit(self, tolerance: float | None) -> None:
        def objective(theta: F64) -> tuple[float, F64]:
            value, gradient = self.problem.objective(theta * self.scale)
            return value, gradient * self.scale

        def watch(intermediate_result: Any) -> None:
            if intermediate_result.fun <= self.goal:
                raise StopIteration

        self.result = minimize(
            objective,
            np.zeros(self.scale.size),
            jac=True,
            method="L-BFGS-B",
            callback=watch,
            options={"maxiter": 100_000, "maxfun": 100_000, "ftol": 0.0, "gtol": 0.0},
        )

    def solution(self) -> Solution:
        # Its own status only says that the callback stopped it.
        return Solution(
            self.result.x * self.scale,
            self.problem.response.size,
            bool(self.result.fun <= self.goal),
            {"iterations": float(self.result.nit)},
        )


class Scikit(Program[FixedProblem]):
    """scikit-learn; liblinear gets the intercept as a penalised column of ones."""

    tolerances = tuple(10.0**-k for k in range(2, 10))

    def __init__(self, solver: str) -> None:
        self.solver, self.name = solver, f"scikit-learn {solver}"

    def prepare(self, problem: FixedProblem) -> None:
        self.problem = problem

    def fit(self, tolerance: float | None) -> None:
        self.model = LogisticRegression(
            C=1.0 / self.problem.l2, solver=self.solver, tol=tolerance, max_iter=100_000
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.model.fit(self.problem.matrix, self.problem.response)
        self.converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)

    def solution(self) -> Solution:
        theta = np.concatenate((self.model.intercept_, self.model.coef_[0]))
        iterations = float(np.max(self.model.n_iter_))
        return Solution(
            theta, self.problem.response.size, self.converged, {"iterations": iterations}
        )


class Glum(Program[FixedProblem]):
    """glum's L-BFGS, the one of its solvers without a dense Hessian, on its own matrix type.

    It scales every column to unit variance. That helps frequent columns, and makes a column that
    occurs once with a tiny value far stiffer than all others: it likes many rows per column.
    """

    name = "glum lbfgs"
    tolerances = tuple(10.0**-k for k in range(2, 10))

    def prepare(self, problem: FixedProblem) -> None:
        import tabmat

        self.problem = problem
        self.matrix = tabmat.SparseMatrix(problem.matrix.tocsc())

    def fit(self, tolerance: float | None) -> None:
        from glum import GeneralizedLinearRegressor

        self.model = GeneralizedLinearRegressor(
            family="binomial",
            alpha=self.problem.l2 / self.problem.response.size,
            l1_ratio=0.0,
            solver="lbfgs",
            gradient_tol=tolerance,
            max_iter=100_000,
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.model.fit(self.matrix, self.problem.response)
        self.converged = not any("converge" in str(w.message) for w in caught)

    def solution(self) -> Solution:
        theta = np.concatenate(([self.model.intercept_], self.model.coef_))
        iterations = float(self.model.n_iter_)
        return Solution(
            theta, self.problem.response.size, self.converged, {"iterations": iterations}
        )


class SnapMl(Program[FixedProblem]):
    """IBM Snap ML's coordinate descent; the intercept is a penalised column of ones, given."""

    tolerances = tuple(10.0**-k for k in range(2, 8))

    def __init__(self, dual: bool) -> None:
        self.dual, self.name = dual, f"snapml, {'dual' if dual else 'primal'}"

    def prepare(self, problem: FixedProblem) -> None:
        self.problem = problem
        ones = np.ones((problem.response.size, 1))
        matrix = scipy.sparse.hstack((ones, problem.matrix), format="csr")
        self.matrix = matrix.astype(np.float32)

    def fit(self, tolerance: float | None) -> None:
        self.theta = fit_snapml(
            self.matrix, self.problem.response, self.problem.l2, tolerance, dual=self.dual
        )

    def solution(self) -> Solution:
        return Solution(self.theta, self.problem.response.size)


# --- memory bandwidth --------------------------------------------------------------------


@kernel
def triad(a: F64, b: F64, c: F64, factor: float) -> None:
    """Fill ``a = b + factor * c``: the stream benchmark's measure of memory bandwidth."""
    for i in range(a.size):
        a[i] = b[i] + factor * c[i]


def bandwidth(problem: FixedProblem, repeats: int) -> dict[str, dict[str, float]]:
    """Measure plain streams through memory and the two products with the design."""
    x = problem.design
    arrays = x.n_rows, x.indptr, x.indices, x.values
    direction = np.random.default_rng(0).standard_normal(x.n_columns + 1)
    curvature, z = np.full(x.n_rows, 0.25), np.empty(x.n_rows)
    pairs = np.column_stack((direction, np.zeros_like(direction)))
    a, b, c = np.ones((3, 16_000_000))  # far larger than the last cache
    matrix_bytes = x.indptr.nbytes + x.indices.nbytes + x.values.nbytes

    def hessian_product() -> None:
        add_hessian_product_paired(*arrays, 1.0, curvature, z, pairs)

    jobs: dict[str, tuple[int, Callable[[], object]]] = {
        "copy (numpy)": (2 * a.nbytes, lambda: np.copyto(a, b)),
        "triad": (3 * a.nbytes, lambda: triad(a, b, c, 3.0)),
        "X v": (matrix_bytes + z.nbytes, lambda: margins(*arrays, 1.0, direction, z)),
        "Hessian product": (matrix_bytes + curvature.nbytes + z.nbytes, hessian_product),
    }
    medians = {}
    for name, (_, job) in jobs.items():
        job()  # touches the pages
        medians[name] = statistics.median(harness.timed(job) for _ in range(repeats))
    limit = jobs["triad"][0] / medians["triad"]
    return {
        name: {
            "bytes": float(size),
            "cpu_seconds": medians[name],
            "gigabytes_per_second": size / medians[name] / 1e9,
            "fraction_of_triad": size / medians[name] / limit,
            "nanoseconds_per_value": 1e9 * medians[name] / x.nnz,
        }
        for name, (size, _) in jobs.items()
    }


def bandwidth_section(measured: dict[str, dict[str, float]], gdmix: Result) -> str:
    """Return the part of the report on memory bandwidth."""
    header = ("stream", "MB", "CPU ms", "GB / s", "of triad", "ns per stored value")
    rows = [
        (
            name,
            f"{m['bytes'] / 1e6:.0f}",
            f"{1e3 * m['cpu_seconds']:.1f}",
            f"{m['gigabytes_per_second']:.1f}",
            f"{100 * m['fraction_of_triad']:.0f} %",
            "" if name in PLAIN_STREAMS else f"{m['nanoseconds_per_value']:.2f}",
        )
        for name, m in measured.items()
    ]
    one_pass = measured["Hessian product"]["cpu_seconds"]
    share = gdmix.details["passes"] * one_pass / gdmix.cpu
    moved = gdmix.details["passes"] * measured["Hessian product"]["bytes"] / gdmix.cpu
    of_triad = moved / 1e9 / measured["triad"]["gigabytes_per_second"]
    return "\n\n".join(
        (
            "## Memory bandwidth, one core",
            harness.table(header, rows),
            "Counted once: indices, values, row pointers and vectors over rows, each read or "
            "written; not the vectors over features, which stay in cache. "
            f"gdmix's {gdmix.details['passes']:g} passes at a Hessian product each would take "
            f"{100 * share:.0f} % of its {gdmix.cpu:.3g} CPU s; the rest is per row "
            "(exponentials) and per coefficient. Over the whole fit they move "
            f"{moved / 1e9:.1f} GB / s, {100 * of_triad:.0f} % of the triad.",
        )
    )


# --- the run -----------------------------------------------------------------------------


def report(problem: FixedProblem, results: Sequence[Result]) -> str:
    """Return one problem's part of the report."""
    ours = next(r for r in results if r.program == Gdmix.name)
    rows = []
    for r in results:
        watched = r.program.startswith("scipy")
        count = "iterations" if "iterations" in r.details else ""
        passes = r.details.get("passes")
        rows.append(
            (
                r.program,
                "stopped by us" if watched else harness.power(r.tolerance),
                harness.seconds(r),
                f"{'> ' if r.over_cap else ''}{r.cpu / ours.cpu:.3g}",
                f"{r.details[count]:.0f}" if count else "",
                "" if passes is None else f"{passes:g}",
                harness.megabytes(r),
                "" if r.over_cap else f"{r.memory / ours.memory:.2f}",
                *harness.accuracy_cells(r),
            )
        )
    header = (
        "program",
        "tolerance",
        "CPU s",
        "time / gdmix",
        "iterations",
        "passes",
        "MB",
        "MB / gdmix",
        *harness.ACCURACY_HEADER,
    )
    _, value, norm = problem.reference
    return "\n\n".join(
        (
            f"## {problem.name[0].upper()}{problem.name[1:]}",
            problem.describe(),
            harness.table(header, rows),
            f"{harness.agreement(results)} Reference: objective {value:.6f}, gradient norm "
            f"{norm:.0e} of the one at zero.",
        )
    )


def measure_threads(title: str, problem: FixedProblem, repeats: int) -> dict[str, Any]:
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
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dimension", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cap", type=float, default=100.0, help="CPU seconds of one fit")
    parser.add_argument("--json", type=Path, help="also write the results there")
    parser.add_argument("--fast", action="store_true", help="without what needs minutes")
    parser.add_argument("--quick", action="store_true", help="tiny: does it still run?")
    parser.add_argument("--first-fit", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.rows, options.dimension, options.repeats = 5_000, 2_000, 1

    ours = Gdmix()
    tiny = fixed_problem(500, features_per_row=20, dimension=1_000, seed=0)
    ours.prepare(tiny)
    if options.first_fit:
        print(harness.timed(lambda: ours.fit(DEFAULT_TOLERANCE)))
        return
    ours.fit(DEFAULT_TOLERANCE)

    about = harness.machine()
    harness.say(f"problem: {options.rows:,} rows")
    problem = fixed_problem(options.rows, features_per_row=20, dimension=options.dimension, seed=3)
    penalised = with_penalised_intercept(problem)
    programs: list[Program[FixedProblem]] = [DoNothing(), ours, GdmixDefault()]
    programs += [ScipyLbfgs(scaled=True)]
    programs += [Glum()] if harness.installed("glum") else []
    programs += [Scikit("newton-cg")]
    penalising: list[Program[FixedProblem]] = [ours, GdmixDefault()]
    snapml = harness.installed("snapml")
    penalising += [SnapMl(dual=True)] if snapml else []
    if not options.fast:
        programs += [ScipyLbfgs(scaled=False), Scikit("lbfgs")]
        penalising += [Scikit("liblinear"), *([SnapMl(dual=False)] if snapml else [])]

    parts, content = [], []
    for case, contest in ((problem, programs), (penalised, penalising)):
        harness.say(f"{case.name}: computing the reference")
        _ = case.reference
        results = harness.compare(
            contest,
            case,
            tiny if case is problem else with_penalised_intercept(tiny),
            case.judge,
            repeats=options.repeats,
            cap=options.cap,
        )
        parts.append(report(case, results))
        content.append(
            {
                "problem": case.name,
                "description": case.describe(),
                "programs": harness.as_json(results),
            }
        )
        if case is problem:
            measured = bandwidth(problem, 3 if options.quick else 11)
            streams = bandwidth_section(measured, next(r for r in results if r.program == "gdmix"))

    harness.say("two threads")
    scaling = [measure_threads(problem.name, problem, options.repeats)]
    started = {} if options.quick else harness.start_up(Path(__file__))
    head = [
        "# Fixed effect: one large sparse logistic model",
        harness.machine_list(about),
        f"Up to {options.repeats} runs of each program, taking turns; medians of CPU time.",
    ]
    parts += [streams, harness.two_threads_section(scaling)]
    print("\n\n".join([*head, *parts, *harness.start_up_section(started)]))
    harness.write_json(
        options.json,
        {
            "machine": about,
            "start up": started,
            "bandwidth": measured,
            "threads": scaling,
            "problems": content,
        },
    )


if __name__ == "__main__":
    main()
