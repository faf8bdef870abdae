"""The study: KL to the mixture of every arm, on the same draws and documents. A finished cell is kept in a file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.experts import arms
from benchmarks.experts.texts import Windows
from benchmarks.peers.evaluation import Judge
from benchmarks.peers.subjects import Subject, held_out_of
from plumbline.artifact import read_json, write_json
from plumbline.base_model.load import load_model
from plumbline.calibration_report.bootstrap import Resampled, holm, strata_of
from plumbline.calibration_report.verdict import FEWEST_DOCUMENTS
from plumbline.quantized_model.factors import Factors
from plumbline.quantized_model.layer import Layer
from plumbline.quantized_model.simulate import simulate
from plumbline.study.resampling import crossed_bootstrap

Nearest = dict[str, dict[str, Layer]]
RESAMPLES, CONFIDENCE = 4000, 0.95


@dataclass(frozen=True)
class Plan:
    """What is measured: sizes of calibration sets, draws of each, widths."""

    sizes: Sequence[int]
    draws: int
    bits: Sequence[int]


def measure(folder: Path, pool: Windows, held_out: Windows, plan: Plan, work: Path) -> None:
    """Write a file per draw, size and width that `work` lacks: for every arm, sums per document.

    A smaller set is the start of a larger one of the same draw.
    """
    missing: dict[tuple[int, int], list[int]] = {}
    for draw, size, bits in itertools.product(range(plan.draws), plan.sizes, plan.bits):
        if not _file(work, draw, size, bits).is_file():
            missing.setdefault((draw, size), []).append(bits)
    if not missing:
        return
    model = load_model(folder, "cpu")
    about = Subject("mixture", folder, folder, held_out_of(held_out.domains, held_out.documents, list(held_out.ids)))
    judge = Judge(about)
    nearest: dict[int, Nearest] = {}
    for (draw, size), widths in tqdm(missing.items(), desc="calibration sets", mininterval=10):
        rows = np.random.default_rng(1000 + draw).permutation(len(pool.ids))[:size]
        stats = arms.statistics(model, {f"{row:06d}": pool.ids[row].tolist() for row in rows})
        factors = {name: Factors() for name in stats}
        for bits in widths:
            if bits not in nearest:
                nearest[bits] = arms.experts_to_nearest(model, stats[arms.ROUTED], bits)
            results: dict[str, Any] = {}
            for name, quantized, rounded in arms.models(model, stats, bits, nearest[bits], factors):
                routed = results.get(arms.ROUTED, {"rounded": None})
                if name in arms.FLOORED and rounded == routed["rounded"]:
                    sums = routed["sums"]  # no expert is under the floor: the same model
                else:
                    with torch.no_grad():
                        sums = dict(judge.sums_of(simulate(model, quantized, arms.scheme(bits))))
                results[name] = {"sums": sums, "rounded": rounded}
            write_json(_file(work, draw, size, bits), results)


def _file(work: Path, draw: int, size: int, bits: int) -> Path:
    return work / f"draw-{draw}-samples-{size}-bits-{bits}.json"


@dataclass(frozen=True)
class Cell:
    """One width and size of calibration sets: KL of every arm, float64 (draws, documents), summed over tokens."""

    bits: int
    size: int
    kl: dict[str, np.ndarray]
    tokens: np.ndarray
    strata: np.ndarray
    rounded: dict[str, float]
    """Mean number of expert matrices that were rounded to nearest."""


def read(plan: Plan, work: Path) -> list[Cell]:
    """The cells with two draws or more in `work`."""
    cells = []
    for bits, size in itertools.product(plan.bits, plan.sizes):
        files = [_file(work, draw, size, bits) for draw in range(plan.draws)]
        parts = [read_json(file) for file in files if file.is_file()]
        if len(parts) < 2:
            continue
        first = parts[0][arms.ROUTED]["sums"]
        kl = {name: np.array([part[name]["sums"]["kl"] for part in parts]) for name in arms.ARMS}
        rounded = {name: float(np.mean([part[name]["rounded"] for part in parts])) for name in arms.ARMS}
        strata = strata_of(first["domain"], FEWEST_DOCUMENTS)
        cells.append(Cell(bits, size, kl, np.array(first["tokens"]), strata, rounded))
    return cells


def lines(cells: Sequence[Cell]) -> Iterator[str]:
    """The table and a sentence per comparison with GPTQ on the routed tokens."""
    rivals = arms.ARMS[1:]
    compared = [
        result
        for cell in cells
        for result in crossed_bootstrap(
            [(cell.kl[arms.ROUTED], cell.kl[name]) for name in rivals], cell.strata, RESAMPLES, 0
        )
    ]
    adjusted = holm([result.p_value() for result in compared])
    yield f"{len(cells[0].tokens)} documents, {cells[0].tokens.sum():.0f} predicted tokens; KL in nats per token\n"
    yield "| bits | samples | draws | experts | KL | against `gptq, routed` | matrices rounded to nearest |"
    yield "|---:|---:|---:|---|---:|---:|---:|"
    sentences = []
    row = iter(zip(compared, adjusted, strict=True))
    for cell in cells:
        draws = len(cell.kl[arms.ROUTED])
        for name in arms.ARMS:
            kl = cell.kl[name].sum() / cell.tokens.sum() / draws
            difference = ""
            if name != arms.ROUTED:
                result, p = next(row)
                half = result.half_width(CONFIDENCE)
                difference = f"{100 * result.estimate:+.1f} ± {100 * half:.1f} %"
                sentences.append(f"- W{cell.bits}, {cell.size} samples, {name}: {sentence(result, p)}")
            rounded = cell.rounded[name]
            yield f"| {cell.bits} | {cell.size} | {draws} | {name} | {kl:.4f} | {difference} | {rounded:.0f} |"
    yield f"\nAgainst `{arms.ROUTED}`, p by Holm over {len(compared)} comparisons:\n"
    yield from sentences


def sentence(result: Resampled, p: float) -> str:
    """What a relative difference of KL says; `p` is adjusted for all comparisons."""
    estimate, half = 100 * result.estimate, 100 * result.half_width(CONFIDENCE)
    if not half:
        return "the same model." if not estimate else f"{estimate:+.1f} %, without spread."
    if p <= 1 - CONFIDENCE:
        return f"{'worse' if estimate > 0 else 'better'} by {abs(estimate):.1f} ± {half:.1f} % (p = {p:.3f})."
    alone = ", though its own interval excludes 0" if abs(estimate) > half else ""
    return f"no difference, at most {abs(estimate) + half:.1f} % (p = {p:.2f}{alone})."
