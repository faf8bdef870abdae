"""Share of Dagster, DVC and MLflow in a run: `python -m benchmarks.overhead`.

`plumbline run` in a copy of this project: everything from scratch; again, when all is up to date; after 5 % more text
arrived in the inbox; and with one more scheme. Each stage is timed, and the pure function in it. Both times come from
one run, because the speed of a shared machine drifts by more than the overhead between two runs. Everything outside the
functions is orchestration: starting the process, importing torch and transformers for the look ahead, loading the
definitions, recording in DVC, Dagster's events and checks, MLflow. What a function imports counts as its own time. CPU
seconds of one thread, so that other work on the machine does not count.

`--small` takes a model of 30 thousand weights and few texts, with the same graph, which takes minutes: orchestration
hardly depends on the model, so the share is of no interest there.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
AIM = 0.10
ADDED = 0.05
NEW_SCHEME = "w4a16-mse"
"""A scheme of params.yaml that its grid does not have."""

GENERATED = (
    ".git", ".venv", "data", "dvc.lock", ".plumbline", "mlflow.db*", "mlruns", "cache", "tmp", "__pycache__",
    "storage", "history", "schedules", "site",
)  # fmt: skip
"""Generated files of a workspace and git's folder, which are not copied."""


def fresh_copy(folder: Path) -> Path:
    """A copy of the project without generated files, as a separate workspace."""
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns(*GENERATED))
    (folder / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    return folder


SMALL = {
    "name: llama-stdlib-6m ": "name: base ",
    "stdlib: {kind: python_stdlib}": "texts: {kind: directory, path: texts}",
    "max_length: 1024": "max_length: 64",
    "{pool: 192, reference: 96}": "{pool: 24, reference: 12}",
    "n: 64": "n: 8",
    "domains: [prose]": "domains: [docs]",
    "group_size: 128": "group_size: 32",
    "tokens_per_domain: 16384": "tokens_per_domain: 512",
}
"""Edits of params.yaml for `--small`."""


def make_small(folder: Path) -> None:
    """Give a workspace a small model and few texts; its graph stays as it is."""
    from tests.helpers.small_model import write_base_model

    params = (folder / "params.yaml").read_text(encoding="utf-8")
    for before, after in SMALL.items():
        if before not in params:
            raise RuntimeError(f"params.yaml has no {before!r}, which this benchmark edits")
        params = params.replace(before, after)
    (folder / "params.yaml").write_text(params, encoding="utf-8")
    write_base_model(folder / "base")
    for kind, pattern in (("docs", "*.md"), ("plumbline", "*.py")):
        (folder / "texts" / kind).mkdir(parents=True)
        for number, path in enumerate(sorted((folder / kind).rglob(pattern))[:24]):
            text = path.read_text(encoding="utf-8")[:3000]
            (folder / "texts" / kind / f"{number}.txt").write_text(text, encoding="utf-8")


def measure(folder: Path) -> tuple[float, dict[str, Any]]:
    """(wall seconds of the whole process, what timed_run.py writes)."""
    environment = {**os.environ, "PLUMBLINE_ROOT": str(folder), "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    environment["DAGSTER_HOME"] = str(folder / ".dagster")
    command = [sys.executable, "-m", "benchmarks.timed_run"]
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started, json.loads((folder / "seconds.json").read_text())


def nothing(folder: Path) -> None:
    """Change nothing."""


def more_text(folder: Path) -> None:
    """Put 5 % of the corpus's bytes of other text into the inbox: this project's own sources and pages."""
    manifest = json.loads((folder / "data/raw_corpus/manifest.json").read_text())
    wanted = ADDED * sum(row["bytes"] for row in manifest["shards"])
    files = [path for kind in ("plumbline/**/*.py", "docs/**/*.md") for path in sorted(folder.glob(kind))]
    for number, path in enumerate(files):
        if wanted <= 0:
            return
        text = path.read_text(encoding="utf-8")
        wanted -= len(text.encode())
        (folder / "inbox" / f"{number:04}-{path.stem}.txt").write_text(text, encoding="utf-8")


def more_schemes(folder: Path) -> None:
    """Add a scheme to the grid."""
    params = folder / "params.yaml"
    before = params.read_text(encoding="utf-8")
    after = before.replace("  schemes: [w8a8-minmax, ", f"  schemes: [{NEW_SCHEME}, w8a8-minmax, ")
    if after == before:
        raise RuntimeError("params.yaml has another grid than this benchmark edits")
    params.write_text(after, encoding="utf-8")


CASES: dict[str, Callable[[Path], None]] = {
    "from scratch": nothing,
    "up to date": nothing,
    "5 % more text": more_text,
    "one more scheme": more_schemes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", action="store_true", help="a row per stage, too")
    parser.add_argument("--small", action="store_true", help="with a small model")
    arguments = parser.parse_args()
    print(f"{'':<18}{'steps':>6}{'wall':>10}{'CPU':>10}{'functions':>12}{'orchestration':>15}{'share':>8}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = fresh_copy(Path(scratch) / "workspace")
        if arguments.small:
            make_small(folder)
        for name, change in CASES.items():
            change(folder)
            wall, seconds = measure(folder)
            cpu, functions = seconds["cpu"], sum(of_cpu for _, of_cpu in seconds["functions"].values())
            rest = cpu - functions
            line = f"{name:<18}{seconds['steps']:>6}{wall:>8.1f} s{cpu:>8.1f} s{functions:>10.1f} s{rest:>13.1f} s"
            print(f"{line}{rest / cpu:>8.0%}", flush=True)
            for stage, (_, whole) in seconds["whole"].items() if arguments.stages else ():
                function = seconds["functions"].get(stage, [0.0, 0.0])[1]
                print(f"  {stage:<32}{whole:>10.1f} s{function:>10.1f} s{whole - function:>13.1f} s")
    print(f"aim: orchestration at most {AIM:.0%} of the CPU seconds where there is work")


if __name__ == "__main__":
    main()
