"""What the benchmarks share: fair timing, the machine's description, Markdown and JSON.

Import this module before numpy: it pins every thread pool to one thread, which the numerical
libraries read only when they are loaded.

How a program is timed:

- Each run is a forked child of the benchmark. It first fits a tiny problem, so that lazy
  imports and compiled code are in place, then brings the data into the form that the program
  likes best; only the fit itself is timed. The child is killed at a cap of CPU seconds.
- CPU time of the child (user and system), not wall time: other people use the machine.
- Memory, on Linux, is the peak of the child's resident memory during the fit, above what it
  held before it got the data: the data in the program's own form, and what it works with.
- First the loosest tolerance is sought at which the program reaches the target accuracy; so no
  program is charged for digits that were not asked for. Then the programs take turns, so that
  a noisy minute hits all of them; the median counts. A slow program runs only once.
- What a program returns is judged by the caller against a reference that none of the programs
  computed. A program that does not reach the target at any tolerance stays in the table,
  marked.
"""

from __future__ import annotations

import os

os.environ.update(
    dict.fromkeys(
        (
            "OMP_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "MKL_NUM_THREADS",
            "BLIS_NUM_THREADS",
            "NUMEXPR_NUM_THREADS",
            "VECLIB_MAXIMUM_THREADS",
        ),
        "1",
    )
)

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import math
import multiprocessing
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

import gdmix

F64 = NDArray[np.float64]
Problem = TypeVar("Problem")

# Relative suboptimality, (F - F*) / F*, at which a program counts as arrived.
TARGET = 1e-6
# A program whose run takes this many CPU seconds is not repeated.
SLOW_SECONDS = 20.0
MEGABYTE = 1e6
ACCURACY_HEADER = ("coefficient difference, max", "median", "suboptimality", "optimum")


@dataclass(frozen=True)
class Solution:
    """What a program returned.

    Attributes
    ----------
    coefficients
        Those that the judge looks at.
    size
        How much was fitted: entities, or rows.
    converged
        Whether the program itself says that it converged.
    details
        Counters to report, such as iterations.
    """

    coefficients: F64
    size: int
    converged: bool = True
    details: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Accuracy:
    """The distance from the reference: of the objective, relative; of the coefficients."""

    suboptimality: float
    max_difference: float
    median_difference: float

    @property
    def reached(self) -> bool:
        """Whether the objective is within `TARGET` of the optimum."""
        return self.suboptimality <= TARGET


class Program(ABC, Generic[Problem]):
    """One way to fit the problem. A fresh copy lives in the child of every run.

    Attributes
    ----------
    name
        As printed.
    tolerances
        The program's own stopping tolerances, loosest first; (None,) if it has none to choose.
    judged
        False for a program that fits nothing.
    """

    name: str
    tolerances: Sequence[float | None] = (None,)
    judged = True

    @abstractmethod
    def prepare(self, problem: Problem) -> None:
        """Bring the data into the form that the program likes best; not timed."""

    @abstractmethod
    def fit(self, tolerance: float | None) -> None:
        """Fit; timed."""

    @abstractmethod
    def solution(self) -> Solution:
        """Return what was fitted; not timed."""


@dataclass
class Result:
    """One row of a table: a program at one tolerance, over its repetitions."""

    program: str
    tolerance: float | None
    size: int
    converged: bool
    accuracy: Accuracy | None
    details: dict[str, float]
    cpu_seconds: list[float]
    wall_seconds: list[float]
    memory_bytes: list[float]
    over_cap: bool = False

    @property
    def cpu(self) -> float:
        """Median CPU seconds of a run."""
        return statistics.median(self.cpu_seconds)

    @property
    def memory(self) -> float:
        """Median peak memory of a run, bytes; NaN where it is not known."""
        return statistics.median(self.memory_bytes or [math.nan])

    @property
    def reached(self) -> bool:
        """Whether the target was reached."""
        return self.accuracy is not None and self.accuracy.reached

    @property
    def verdict(self) -> str:
        """One phrase for the table."""
        if self.over_cap:
            return f"**not reached** in {self.cpu:g} s"
        if self.accuracy is None:
            return "fits nothing"
        if self.reached:
            return "reached"
        return "**not reached**" + (", claims convergence" if self.converged else "")


def compare(
    programs: Sequence[Program[Problem]],
    problem: Problem,
    tiny: Problem,
    judge: Callable[[F64], Accuracy],
    *,
    repeats: int,
    cap: float,
) -> list[Result]:
    """Run every program on the problem; see the head of this module for how."""
    results = [_calibrate(program, problem, tiny, judge, cap) for program in programs]
    for _ in range(repeats - 1):
        for program, result in zip(programs, results, strict=True):
            if result.over_cap or result.cpu_seconds[0] > SLOW_SECONDS:
                continue
            run = _run(program, problem, tiny, result.tolerance, 2.0 * cap)
            if run is not None:
                result.cpu_seconds.append(run.cpu)
                result.wall_seconds.append(run.wall)
                result.memory_bytes += run.memory
    return results


def _calibrate(
    program: Program[Problem],
    problem: Problem,
    tiny: Problem,
    judge: Callable[[F64], Accuracy],
    cap: float,
) -> Result:
    """Run at the loosest tolerance that reaches the target, else at the tightest possible."""
    result = None
    for tolerance in program.tolerances:
        run = _run(program, problem, tiny, tolerance, cap)
        if run is None:
            say(f"  {program.name}, tolerance {tolerance}: stopped after {cap:g} CPU s")
            return Result(
                program.name, tolerance, 0, False, None, {}, [cap], [cap], [], over_cap=True
            )
        solution = run.solution
        accuracy = judge(solution.coefficients) if program.judged else None
        result = Result(
            program.name,
            tolerance,
            solution.size,
            solution.converged,
            accuracy,
            solution.details,
            [run.cpu],
            [run.wall],
            run.memory,
        )
        distance = "" if accuracy is None else f", suboptimality {accuracy.suboptimality:.1e}"
        say(f"  {program.name}, tolerance {tolerance}: {run.cpu:.3f} CPU s{distance}")
        if accuracy is None or accuracy.reached:
            break
    assert result is not None, "a program has at least one tolerance"
    return result


@dataclass(frozen=True)
class _Run:
    cpu: float
    wall: float
    memory: list[float]
    solution: Solution


def _run(
    program: Program[Problem], problem: Problem, tiny: Problem, tolerance: float | None, cap: float
) -> _Run | None:
    """Fit in a child; None if it used more than `cap` CPU seconds."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, program, problem, tiny, tolerance, cap))
    child.start()
    sender.close()
    try:
        run: _Run = receiver.recv()
    except EOFError:
        child.join()
        if child.exitcode == -signal.SIGXCPU:
            return None
        raise RuntimeError(f"{program.name} failed, exit code {child.exitcode}") from None
    child.join()
    return run


def _child(
    sender: Connection,
    program: Program[Problem],
    problem: Problem,
    tiny: Problem,
    tolerance: float | None,
    cap: float,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program.prepare(tiny)
        program.fit(tolerance)
    with contextlib.suppress(AttributeError):  # freed memory, used again, would not be counted
        ctypes.CDLL(None).malloc_trim(0)
    before = _memory("VmRSS")
    program.prepare(problem)
    _forget_peak()
    limit = math.ceil(cpu_seconds() + cap)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 10))
    cpu, wall = cpu_seconds(), time.perf_counter()
    program.fit(tolerance)
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    peak = _memory("VmHWM")
    memory = [] if before is None or peak is None else [peak - before]
    sender.send(_Run(cpu, wall, memory, program.solution()))


def _memory(field: str) -> float | None:
    """Return a line of what Linux says about this process's memory, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    values = [float(line.split()[1]) * 1024 for line in lines if line.startswith(field)]
    return values[0] if values else None


def _forget_peak() -> None:
    """Let the peak count from here; where that is not allowed it includes the preparation."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def cpu_seconds() -> float:
    """Return the CPU time of this process, all threads, to the microsecond.

    Not ``time.process_time``: under a limit on CPU time Linux rounds that to clock ticks.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def agreement(results: Sequence[Result]) -> str:
    """Say whether all programs that claim convergence reached the same optimum."""
    judged = [r for r in results if r.accuracy is not None]
    liars = [r.program for r in judged if r.converged and not r.reached]
    others = [r.program for r in results if r.over_cap or (r in judged and not r.converged)]
    others = [name for name in others if not any(r.program == name and r.reached for r in judged)]
    text = (
        f"All programs that claim to have converged reached the same optimum, to {TARGET:g} of it."
        if not liars
        else f"Claimed convergence away from the optimum: {', '.join(liars)}."
    )
    return text + (f" Did not arrive, and do not claim it: {', '.join(others)}." if others else "")


# --- two threads -------------------------------------------------------------------------


def two_threads(name: str, fit: Callable[[int], object], repeats: int) -> dict[str, Any]:
    """Compare the wall time of one thread and of two, taking turns.

    `fit` gets the number of threads. The ratio means something only while nobody else uses
    the machine: the load average, taken before, tells.
    """
    load = os.getloadavg()[0]
    wall: dict[int, list[float]] = {1: [], 2: []}
    for k in range(repeats + 1):
        for threads, found in wall.items():
            before = time.perf_counter()
            fit(threads)
            if k:  # the first turn warms up
                found.append(time.perf_counter() - before)
    one, two = (statistics.median(found) for found in wall.values())
    return {"problem": name, "one": one, "two": two, "ratio": one / two, "load": load}


def two_threads_section(measured: Sequence[dict[str, Any]]) -> str:
    """Return the part of the report on threads."""
    header = ("problem", "one thread, wall s", "two threads, wall s", "ratio", "load before")
    rows = [
        (
            m["problem"],
            f"{m['one']:.3g}",
            f"{m['two']:.3g}",
            f"{m['ratio']:.2f}",
            f"{m['load']:.1f}",
        )
        for m in measured
    ]
    note = f"gdmix at its default tolerance, medians of wall time, {os.cpu_count()} cores."
    return "\n\n".join(("## Two threads", table(header, rows), note))


# --- start-up ----------------------------------------------------------------------------


def start_up(script: Path) -> dict[str, float]:
    """Measure a fresh process's first fit, without and with compiled kernels on disk.

    `script` must print the CPU seconds of one when it is called with ``--first-fit``.
    """
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("nothing compiled yet", "compiled kernels on disk"):
            run = subprocess.run(
                [sys.executable, str(script), "--first-fit"],
                env={**os.environ, "NUMBA_CACHE_DIR": folder},
                capture_output=True,
                text=True,
                check=True,
            )
            measured[kind] = float(run.stdout)
    return measured


def timed(fit: Callable[[], object]) -> float:
    """Return the CPU seconds that a call takes."""
    before = cpu_seconds()
    fit()
    return cpu_seconds() - before


def start_up_section(measured: dict[str, float]) -> list[str]:
    """Return the start-up's part of the report, if it was measured."""
    if not measured:
        return []
    rows = [(kind, f"{cost:.2f}") for kind, cost in measured.items()]
    header = ("gdmix in a fresh process", "first fit of a tiny problem, CPU s")
    return ["## Start-up, in no time above", table(header, rows)]


# --- the machine -------------------------------------------------------------------------


def machine() -> dict[str, str]:
    """Describe where and when this ran."""
    packages = ("numpy", "numba", "scipy", "scikit-learn", "glum", "snapml", "torch")
    packages += ("vowpalwabbit", "rectools-lightfm")
    about = {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f} when the benchmark began; each program on one thread",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
    versions = [f"gdmix {gdmix.__version__}{_revision()}"]
    versions += [f"{name} {_version(name)}" for name in packages if _version(name)]
    return {**about, "packages": ", ".join(versions)}


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    fields = {name.strip(): value.strip() for name, _, value in lines}
    flags = fields.get("flags", "").split()
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    family = f"family {fields.get('cpu family')}, model {fields.get('model')}"
    return f"{fields.get('model name', platform.processor())} ({family}, {vectors})"


def _revision() -> str:
    """Return git's name of the sources, where they are a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        name = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f" ({name.replace('-dirty', ' with uncommitted changes')})"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def installed(module: str, package: str = "") -> bool:
    """Whether an optional competitor can be imported; says so if not."""
    if importlib.util.find_spec(module) is None:
        say(f"  {package or module} is left out: it is not installed here")
        return False
    return True


# --- output ------------------------------------------------------------------------------


def say(line: str) -> None:
    """Report progress, apart from the results."""
    print(line, file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: first column left, the others right."""
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    line = "|".join(
        f" {'-' * width} " if k == 0 else f" {'-' * (width - 1)}: "
        for k, width in enumerate(widths)
    )

    def render(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return f"| {' | '.join(cells)} |"

    return "\n".join([render(header), f"|{line}|", *(render(row) for row in rows)])


def machine_list(about: dict[str, str]) -> str:
    """Return the machine's description as Markdown."""
    return "\n".join(f"- {what}: {value}" for what, value in about.items())


def seconds(result: Result) -> str:
    """Return the median CPU time, and the range where there was more than one run."""
    median, values = f"{result.cpu:.3g}", result.cpu_seconds
    if result.over_cap:
        return f"> {median}"
    return median if len(values) == 1 else f"{median} ({min(values):.3g}-{max(values):.3g})"


def megabytes(result: Result) -> str:
    """Return the median peak memory."""
    return "" if math.isnan(result.memory) else f"{result.memory / MEGABYTE:.0f}"


def power(value: float | None) -> str:
    """Return a number of which only the magnitude counts."""
    if value is None:
        return ""
    return "< 1e-15" if value < 1e-15 else f"{value:.0e}"


def accuracy_cells(result: Result) -> tuple[str, str, str, str]:
    """Return a row's cells under `ACCURACY_HEADER`."""
    a = result.accuracy
    if a is None:
        return "", "", "", result.verdict
    numbers = power(a.max_difference), power(a.median_difference), power(a.suboptimality)
    return *numbers, result.verdict


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return results as plain data."""
    return [
        {**asdict(r), "cpu": r.cpu, "reached": r.reached, "verdict": r.verdict} for r in results
    ]


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Write the report if a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(content, indent=2) + "\n")
