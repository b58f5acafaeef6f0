"""The benchmarks still run, and what they run of ours is right. No time is looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
OURS = "gdmix, default tolerance"  # the accuracy that users get
PROBLEMS = {
    "random_effect.py": ["A", "A without offsets", "B", "B without offsets"],
    "fixed_effect.py": ["fixed effect", "fixed effect, penalised intercept"],
}


def run(script: str, folder: Path) -> tuple[str, dict[str, Any]]:
    target = folder / "results.json"
    command = [sys.executable, str(BENCHMARKS / script), "--quick", "--json", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(target.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("script", PROBLEMS)
def test_benchmark_runs_and_we_reach_the_optimum(script: str, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")

    printed, results = run(script, tmp_path)

    assert [problem["problem"] for problem in results["problems"]] == PROBLEMS[script]
    for problem in results["problems"]:
        programs = {row["program"]: row for row in problem["programs"]}
        ours = programs[OURS]
        assert ours["reached"]
        assert ours["converged"]
        assert ours["accuracy"]["max_difference"] <= 1e-6
        assert all(f"| {name} " in printed for name in programs)
    assert results["machine"]["processor"] in printed
