"""The benchmark runs, end to end, on pools small enough for a test; its figures are its own business."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.selection import LIBRARIES, ON_ACTIVATIONS, STRATEGIES, growth, measure, measure_apart, why_not
from benchmarks.synthetic_pool import TUNING, write_pool
from plumbline.calibration_set.pool import Sources
from tests.helpers.paths import PROJECT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder, 200)
    return folder


def test_the_pool_is_what_the_pipeline_leaves(folder: Path) -> None:
    sources = Sources(folder / "tokenized_samples", folder / "sample_features")
    pool = sources.pool()
    assert (len(pool), len(pool.tuning), pool.special_prefix) == (200, TUNING, 1)
    assert sources.fingerprint
    assert [len(ids) for ids in pool.input_ids(range(200))] == pool.lengths.tolist()
    norms = np.linalg.norm(pool.embeddings().astype(np.float64), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-3)
    assert set(pool.domains) == {"prose", "code", "chat"}


@pytest.mark.parametrize("name", [*STRATEGIES, *ON_ACTIVATIONS, *LIBRARIES[:2]])  # apricot compiles for half a minute
def test_everything_is_measured(name: str, folder: Path) -> None:
    figures = measure(name, folder, 16)
    assert set(figures) == {"seconds", "cpu", "bytes"}
    assert min(figures.values()) > 0


def test_a_measurement_ends_at_the_limit_or_says_why_it_failed(folder: Path) -> None:
    assert measure_apart("random", folder, 16, limit=0.01) == "over 0 s"
    found = measure_apart("random", folder / "nowhere", 16, limit=60)
    assert isinstance(found, str) and found.startswith("failed: FileNotFoundError")


def test_what_would_not_fit_is_not_started() -> None:
    assert why_not("apricot FacilityLocation", 100_000) == "75 GiB"
    assert why_not("apricot FacilityLocation", 10_000) is None
    assert why_not("hessian_matching", 100_000) == "prefiltered"
    assert why_not("embedding_cluster", 10**6) is None


def test_growth_is_the_slope_in_logs() -> None:
    figures = {size: {"cpu": 3e-6 * size**1.5} for size in (100, 1000, 10_000)}
    assert growth({**figures, 100_000: "over 600 s"}) == pytest.approx(1.5)
    assert growth({100: {"cpu": 1.0}, 1000: "prefiltered"}) is None


def test_the_command_prints_a_table() -> None:
    names = ["first_n", "embedding_cluster"]
    command = [
        sys.executable,
        "-m",
        "benchmarks.selection",
        "--sizes",
        "200",
        "400",
        "-n",
        "16",
        "--strategies",
        *names,
    ]
    ran = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert all(word in ran.stdout for word in ("200", "400", "growth", *names))
    assert max(map(len, ran.stdout.splitlines())) <= 120
