"""calibration_set: reads choice.json, the pool and its features; writes samples, manifest and representativeness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plumbline.artifact import read_json, write_json, write_table
from plumbline.calibration_set.pool import Sources, of_domains
from plumbline.calibration_set.representativeness.compare import representativeness
from plumbline.calibration_set.representativeness.plots import LENGTHS, PANEL, plot_lengths, plot_panel
from plumbline.calibration_set.select import choose, joined, manifest_of
from plumbline.calibration_set.strategies import get


def build_calibration_set(choice: Path, sources: Sources, out: Path) -> None:
    """Choose the calibration set of one choice from the pool split.

    Args:
        choice: folder with `choice.json`.
        sources: samples, features and base model. A strategy sees pool, tuning and production; report is not read.
        out: existing empty folder; gets samples.parquet, manifest.json, representativeness.json and its two plots.

    Raises:
        ValueError: features and samples differ in tokenization; an unknown domain; the pool or the strategy gives
            fewer than n samples and the choice does not allow it; the strategy broke its contract.
    """
    asked: dict[str, Any] = read_json(choice / "choice.json")
    fingerprint = sources.fingerprint
    whole = sources.pool()
    pool = of_domains(whole, asked["domains"], asked["name"])
    strategy = get(asked["strategy"])
    selection = choose(pool, strategy, asked, len(whole))
    rows = joined(pool, selection, asked["name"])
    write_table(out / "samples.parquet", rows)
    manifest = manifest_of(asked, strategy, fingerprint, rows, selection, pool, len(whole))
    manifest["fingerprint_parts"] = read_json(sources.samples / "accounting.json")["fingerprint_parts"]
    write_json(out / "manifest.json", manifest)
    measured = representativeness(sources, pool, selection, rows)
    write_json(out / "representativeness.json", measured)
    if measured["primary"] is not None:
        plot_panel(measured["references"][measured["primary"]], out / PANEL)
        plot_lengths(rows["n_tokens"].to_numpy(), whole.reference.lengths, measured["primary"], out / LENGTHS)
