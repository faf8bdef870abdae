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

PURE = r"""
import json, sys, time
from pathlib import Path
from orchestration.params import load_params
root = Path.cwd(); params = load_params(root); seconds = {}
def out(*names):
    folder = root.joinpath("data", *names); folder.mkdir(parents=True); return folder
def timed(name, function, *arguments, **options):
    started = time.perf_counter(); function(*arguments, **options)
    seconds[name] = seconds.get(name, 0) + time.perf_counter() - started
from assets.base_model.load import model_folder
from assets.raw_corpus.ingest import build_raw_corpus
data = root / "data"; model = model_folder(params.model, root)
timed("raw_corpus", build_raw_corpus, params.corpus, root, out("raw_corpus"))
from assets.tokenized_samples.tokenize import build_tokenized_samples
timed("tokenized_samples", build_tokenized_samples, params.tokenize, model, data/"raw_corpus", out("tokenized_samples"))
from assets.sample_features.embed import build_sample_features
timed("sample_features", build_sample_features, params.features, model, data/"tokenized_samples", out("sample_features"), root=root)
from assets.calibration_choice.choice import build_choice
from assets.calibration_set.select import build_calibration_set
from assets.activation_stats.collect import build_activation_stats
for c in params.grid.calibrations:
    timed("calibration_choice", build_choice, c, params.calibrations[c], {}, out("calibration_choice", c))
for c in params.grid.calibrations:
    timed("calibration_set", build_calibration_set, data/"calibration_choice"/c, data/"tokenized_samples", data/"sample_features", out("calibration_set", c))
for c in params.grid.calibrations:
    timed("activation_stats", build_activation_stats, params.statistics, params.model, data/"calibration_set"/c, out("activation_stats", c), root)
from assets.quantized_model.build import build_quantized_model
from assets.evaluation.evaluate import build_evaluation
for pair, (c, s) in params.pairs().items():
    timed("quantized_model", build_quantized_model, s, params.schemes[s], params.model, data/"activation_stats"/c, data/"calibration_set"/c, out("quantized_model", pair), root)
for pair in params.pairs():
    timed("evaluation", build_evaluation, params.evaluation, params.model, data/"quantized_model"/pair, data/"tokenized_samples", out("evaluation", pair), root)
from assets.calibration_report.report import build_calibration_report
grid = {"calibrations": list(params.grid.calibrations), "schemes": list(params.grid.schemes)}
timed("calibration_report", build_calibration_report, params.report, grid, {p: data/"evaluation"/p for p in params.pairs()}, {c: data/"calibration_set"/c for c in params.grid.calibrations}, out("calibration_report"))
json.dump(seconds, open("seconds.json", "w"))
"""

TIMED_RUN = r"""
import json, time
from pathlib import Path
from orchestration import study
seconds = {}
class Clock:
    name = None; started = 0.0
def announce(line):
    now = time.perf_counter()
    if line.startswith("▸"):
        Clock.name, Clock.started = line.split()[1], now
    else:
        seconds[Clock.name] = seconds.get(Clock.name, 0) + now - Clock.started
study.run_study(Path.cwd(), announce=announce)
json.dump(seconds, open("seconds.json", "w"))
"""


def fresh_copy(folder: Path) -> Path:
    """The project without what it made, as a workspace of its own."""
    made = shutil.ignore_patterns(
        ".git", ".venv", "data", "dvc.lock", ".plumbline", "mlflow.db*", "mlruns", "cache", "tmp", "__pycache__", "storage",
        "history", "schedules",
    )  # fmt: skip
    shutil.copytree(PROJECT, folder, ignore=made)
    (folder / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    return folder


def measure(code: str, folder: Path) -> tuple[float, dict[str, float]]:
    """(seconds of the whole process, seconds per stage)."""
    environment = {**os.environ, "PLUMBLINE_ROOT": str(folder), "PYTHONPATH": str(folder)}
    environment["DAGSTER_HOME"] = str(folder / ".dagster")
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started, json.loads((folder / "seconds.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="pairs of runs; the median pair is shown")
    rounds = parser.parse_args().rounds
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(rounds):
            pure = measure(PURE, fresh_copy(Path(scratch) / f"pure-{index}"))
            full = measure(TIMED_RUN, fresh_copy(Path(scratch) / f"full-{index}"))
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
