"""What Dagster, DVC and MLflow add to a study: `python -m benchmarks.overhead`.

The study of params.yaml is run from nothing in a copy of this project, through `plumbline run`, with a clock around
each stage and another around the pure function in it. Both are read in one run: between two runs, the speed of a shared
machine drifts by more than the plumbing costs. What is outside the functions is the plumbing: starting the process,
loading the definitions, recording in DVC, Dagster's events and checks, MLflow. Libraries that a function imports
(torch, transformers) count as the function's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]

MADE = (
    ".git", ".venv", "data", "dvc.lock", ".plumbline", "mlflow.db*", "mlruns", "cache", "tmp", "__pycache__",
    "storage", "history", "schedules",
)  # fmt: skip
"""What a workspace made and what git keeps."""


def fresh_copy(folder: Path) -> Path:
    """The project without what it made, as a workspace of its own."""
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns(*MADE))
    (folder / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    return folder


def measure(folder: Path) -> tuple[float, dict[str, dict[str, float]]]:
    """(seconds of the whole process, seconds per stage: whole and in its function)."""
    environment = {**os.environ, "PLUMBLINE_ROOT": str(folder), "PYTHONPATH": str(folder)}
    environment["DAGSTER_HOME"] = str(folder / ".dagster")
    command = [sys.executable, "-m", "benchmarks.timed_run"]
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started, json.loads((folder / "seconds.json").read_text())


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        process, seconds = measure(fresh_copy(Path(scratch) / "workspace"))
    print(f"{'stage':<22}{'function':>12}{'plumbline run':>16}{'added':>10}")
    for name, whole in seconds["whole"].items():
        function = seconds["functions"][name]
        print(f"{name:<22}{function:>10.1f} s{whole:>14.1f} s{whole - function:>8.1f} s")
    functions = sum(seconds["functions"].values())
    print(f"{'whole process':<22}{functions:>10.1f} s{process:>14.1f} s{process - functions:>8.1f} s")
    print(f"\nDagster + DVC + MLflow add {100 * (process / functions - 1):.1f} % (aim: 15 % or less)")


if __name__ == "__main__":
    main()
