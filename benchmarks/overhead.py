"""Overhead of Dagster, DVC and MLflow in a study: `python -m benchmarks.overhead`.

`plumbline run` executes the study of params.yaml from scratch in a copy of this project. Each stage is timed, and the
pure function in it. Both times come from one run, because the speed of a shared machine drifts by more than the
overhead between two runs. Everything outside the functions is overhead: starting the process, loading the definitions,
recording in DVC, Dagster's events and checks, MLflow. The import of libraries by a function (torch, transformers)
counts as its own time.
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

GENERATED = (
    ".git", ".venv", "data", "dvc.lock", ".plumbline", "mlflow.db*", "mlruns", "cache", "tmp", "__pycache__",
    "storage", "history", "schedules",
)  # fmt: skip
"""Generated files of a workspace and git's folder, which are not copied."""


def fresh_copy(folder: Path) -> Path:
    """A copy of the project without generated files, as a separate workspace."""
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns(*GENERATED))
    (folder / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    return folder


def measure(folder: Path) -> tuple[float, dict[str, dict[str, float]]]:
    """(seconds of the whole process, seconds per stage: in total and in its function)."""
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
