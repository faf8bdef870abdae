"""What Dagster, DVC and MLflow add to a study: `python -m benchmarks.overhead`.

The study of params.yaml is run from nothing in two copies of this project, in turn: through `plumbline run`, and as
the same pure functions called one after the other in one process. Reported are the seconds of each stage and the share
that the plumbing adds, start of the process and imports included on both sides.
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


def measure(module: str, folder: Path) -> tuple[float, dict[str, float]]:
    """(seconds of the whole process, seconds per stage)."""
    environment = {**os.environ, "PLUMBLINE_ROOT": str(folder), "PYTHONPATH": str(folder)}
    environment["DAGSTER_HOME"] = str(folder / ".dagster")
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", module], cwd=folder, env=environment, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started, json.loads((folder / "seconds.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="pairs of runs; the median pair is shown")
    rounds = parser.parse_args().rounds
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(rounds):
            pure = measure("benchmarks.pure", fresh_copy(Path(scratch) / f"pure-{index}"))
            full = measure("benchmarks.timed_run", fresh_copy(Path(scratch) / f"full-{index}"))
            results.append((full[0] / pure[0], pure, full))
    _, pure, full = sorted(results, key=lambda r: r[0])[len(results) // 2]
    print(f"{'stage':<22}{'functions':>12}{'plumbline run':>16}{'added':>10}")
    for name in full[1]:
        a, b = pure[1].get(name, 0.0), full[1][name]
        print(f"{name:<22}{a:>10.1f} s{b:>14.1f} s{b - a:>8.1f} s")
    print(f"{'whole process':<22}{pure[0]:>10.1f} s{full[0]:>14.1f} s{full[0] - pure[0]:>8.1f} s")
    print(f"\nDagster + DVC + MLflow add {100 * (full[0] / pure[0] - 1):.0f} % (aim: 15 % or less)")


if __name__ == "__main__":
    main()
