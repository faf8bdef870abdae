"""Time and memory of choosing a calibration set: `python -m benchmarks.selection [--sizes ...] [--strategies ...]`.

Every measurement runs in a separate process on a synthetic pool on disk (synthetic_pool.py). The seconds of a strategy
exclude opening the pool, which has its own line; its memory includes that and all imports. For comparison, two
libraries run on embeddings in memory: scikit-learn's k-means with the samples nearest to its centroids, and apricot's
facility location. A measurement is stopped at the time limit, and a library whose matrices exceed the memory is not
started.

Strategies on activations read only samples with a stored signature, at most `features.signatures.pool` whatever the
size of the pool. Their sizes count these samples, and their signatures are synthetic and in memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.peak_memory import peak_bytes

if TYPE_CHECKING:
    from plumbline.calibration_set.strategies.base import Pool

PROJECT = Path(__file__).resolve().parents[1]
OPENING = "(opening the pool)"
STRATEGIES: dict[str, dict[str, Any]] = {
    OPENING: {},
    **{
        name: {"strategy": name}
        for name in (
            "random",
            "length_stratified",
            "first_n",
            "packed_windows",
            "embedding_cluster",
            "token_coverage",
            "domain_matched",
            "mixture",
        )
    },
}
ON_ACTIVATIONS: dict[str, dict[str, Any]] = {
    "embedding_cluster, activations": {"strategy": "embedding_cluster", "features": "activations"},
    "activation_coverage": {"strategy": "activation_coverage"},
    "hessian_matching": {"strategy": "hessian_matching"},
}
LIBRARIES = ("scikit-learn KMeans", "scikit-learn MiniBatchKMeans", "apricot FacilityLocation")
MAY_REPEAT = ("packed_windows", "scikit-learn KMeans", "scikit-learn MiniBatchKMeans")
"""May choose a sample twice: windows can begin in one sample, and one sample can be nearest to several centroids."""
MOST_SIGNED = 10_000
MEMORY = 8 * 2**30
"""A library whose matrices would take more bytes than this is not started."""


def measure(name: str, folder: Path, n: int) -> dict[str, float]:
    """Wall and CPU seconds of choosing n samples of the pool in `folder`, and peak memory of this process in bytes."""
    from plumbline.calibration_set.pool import Sources

    clock = time.perf_counter(), time.process_time()
    pool = Sources(folder / "tokenized_samples", folder / "sample_features").pool()
    if name != OPENING:
        choose = _library(name, pool, n) if name in LIBRARIES else _strategy(name, pool, n)
        clock = time.perf_counter(), time.process_time()
        chosen = np.asarray(choose())
        if len(np.unique(chosen)) != n and name not in MAY_REPEAT:
            raise RuntimeError(f"{name} chose {len(np.unique(chosen))} samples, asked for {n}")
    seconds, cpu = time.perf_counter() - clock[0], time.process_time() - clock[1]
    return {"seconds": seconds, "cpu": cpu, "bytes": peak_bytes()}


def _strategy(name: str, pool: Pool, n: int) -> Callable[[], NDArray[np.int64]]:
    from benchmarks.synthetic_pool import signatures
    from plumbline.calibration_set.strategies import get
    from plumbline.calibration_set.strategies.base import generator

    options = dict({**STRATEGIES, **ON_ACTIVATIONS}[name])
    if name in ON_ACTIVATIONS:
        signed = signatures([*pool.sample_ids, *pool.tuning.sample_ids[:512]])
        readers = replace(pool.readers, signatures=signed.by_id, signed=lambda: signed.sample_ids)
        pool = replace(pool, readers=readers, tuning=replace(pool.tuning, readers=readers))
    strategy = get(options.pop("strategy"))
    filled = strategy.options.model_validate(options)
    keywords = {key: getattr(filled, key) for key in type(filled).model_fields}
    return lambda: strategy.select(pool, n, generator(0, strategy.name), **keywords).indices


def _library(name: str, pool: Pool, n: int) -> Callable[[], NDArray[np.int64]]:
    """The selection by another library; includes reading the embeddings as float32, which it needs."""

    def facility_location() -> NDArray[np.int64]:
        x = pool.embeddings().astype(np.float32)
        return FacilityLocationSelection(n, metric="cosine", random_state=0).fit(x).ranking

    def nearest_to_centroids() -> NDArray[np.int64]:
        from sklearn.cluster import KMeans, MiniBatchKMeans
        from sklearn.metrics import pairwise_distances_argmin

        x = pool.embeddings().astype(np.float32)
        method = MiniBatchKMeans if "MiniBatch" in name else KMeans
        return pairwise_distances_argmin(method(n, n_init=1, random_state=0).fit(x).cluster_centers_, x)

    if "apricot" not in name:
        return nearest_to_centroids
    from apricot import FacilityLocationSelection  # type: ignore[import-untyped]

    warm_up = np.random.default_rng(0).random((8, 4), dtype=np.float32)
    FacilityLocationSelection(2, metric="cosine", random_state=0).fit(warm_up)  # compiles on first use
    return facility_location


def measure_apart(name: str, folder: Path, n: int, limit: float) -> dict[str, float] | str:
    """`measure` in a separate process, or the reason why it failed."""
    command = [sys.executable, "-m", "benchmarks.selection", "--measure", name, "--folder", str(folder), "-n", str(n)]
    try:
        process = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"over {limit:.0f} s"
    if process.returncode:
        return f"failed: {(process.stderr.strip().splitlines() or ['killed'])[-1]}"
    figures: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return figures


def why_not(name: str, size: int) -> str | None:
    """The reason why a strategy is not measured at a size; None if it is."""
    if name in ON_ACTIVATIONS and size > MOST_SIGNED:
        return "prefiltered"
    needed = {"apricot FacilityLocation": 8 * size * size, "scikit-learn KMeans": 8 * 384 * size}.get(name, 0)
    return f"{needed / 2**30:.0f} GiB" if needed > MEMORY else None


def growth(figures: Mapping[int, dict[str, float] | str]) -> float | None:
    """Slope of log CPU seconds over log N by least squares; None with fewer than two sizes."""
    measured = [(size, measurement["cpu"]) for size, measurement in figures.items() if isinstance(measurement, dict)]
    if len(measured) < 2:
        return None
    x, y = np.log(np.array(measured)).T
    return float(np.polyfit(x, y, 1)[0])


def table(results: Mapping[str, Mapping[int, dict[str, float] | str]], sizes: Sequence[int], n: int) -> Table:
    """Wall seconds, CPU seconds and memory of each strategy at each size."""
    output = Table(title=f"{n} samples chosen: wall / CPU seconds, peak memory", title_justify="left", box=box.SIMPLE)
    output.add_column("", no_wrap=True)
    for size in sizes:
        output.add_column(f"{size:,}", justify="right", no_wrap=True)
    output.add_column("growth", justify="right", no_wrap=True)
    for name, figures in results.items():
        cells = []
        for size in sizes:
            measurement = figures[size]
            cells.append(measurement if isinstance(measurement, str) else _cell(measurement))
        slope = growth(figures)
        output.add_row(name, *cells, "" if slope is None else f"{slope:.2f}")
    return output


def _cell(measurement: dict[str, float]) -> str:
    return f"{_short(measurement['seconds'])}/{_short(measurement['cpu'])} {measurement['bytes'] / 2**30:.1f}G"


def _short(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 9.5 else f"{seconds:.1f}" if seconds >= 0.095 else f"{seconds:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = [*STRATEGIES, *ON_ACTIVATIONS, *LIBRARIES]
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--strategies", nargs="+", default=everything, choices=everything, metavar="NAME")
    parser.add_argument("-n", type=int, default=512, help="samples to choose (512)")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a measurement is stopped (600)")
    parser.add_argument("--measure", choices=everything, help=argparse.SUPPRESS)  # used for the subprocesses
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.folder, arguments.n)))
        return
    results: dict[str, dict[int, dict[str, float] | str]] = {name: {} for name in arguments.strategies}
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as scratch:
            from benchmarks.synthetic_pool import write_pool

            folder = Path(scratch)
            write_pool(folder, size)
            for name in tqdm(arguments.strategies, f"{size:,} samples", disable=None):
                reason = why_not(name, size)
                results[name][size] = reason or measure_apart(name, folder, arguments.n, arguments.limit)
    Console(width=None if sys.stdout.isatty() else 110).print(table(results, arguments.sizes, arguments.n))
    print("growth: slope of log CPU seconds over log N. GiB: not started, its matrices need that much memory.")
    print(f"prefiltered: reads 1,024 samples of any pool by default, so measured up to {MOST_SIGNED:,}.")


if __name__ == "__main__":
    main()
