"""The tables that the benchmark prints: quality in Markdown, times and the sweep in columns."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.evaluation import CONFIDENCE, Sums, interval, verdict
from benchmarks.peers.recipes import LLM_COMPRESSOR, OWN_DEFAULT, PLUMBLINE

PEER, OURS = LLM_COMPRESSOR, PLUMBLINE
"""The two whose times are compared."""
AIMS = {"bundled-6M": 10, "random-6M": 10, "random-51M": 5}
SWEEP_AIM = 3
MIB = 2**20


@dataclass(frozen=True)
class Row:
    """A recipe of a tool on one subject and format: its figures and quality, or the reason why there are none."""

    tool: str
    recipe: str
    figures: Mapping[str, float] | None = None
    sums: Sums | None = None
    reason: str = ""


def quality_table(rows: Sequence[Row], says_something: bool) -> list[str]:
    """The lines of a Markdown table: KL and its difference to Plumbline's default, ΔNLL, top-1, time and memory.

    Args:
        says_something: False where tokens are random, and no difference is claimed.
    """
    own = next((row.sums for row in rows if (row.tool, row.recipe) == OWN_DEFAULT), None)
    lines = [
        "| tool | recipe | KL, nats | ΔNLL, nats | top-1, % | CPU seconds | peak MiB | KL less Plumbline's default |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if row.figures is None or row.sums is None:
            lines.append(f"| {row.tool} | {row.recipe} | not run: {row.reason} | | | | | |")
            continue
        kl, nll, top1 = (interval(row.sums, name) for name in ("kl", "nll", "top1"))
        difference = "–"
        if own is not None and (row.tool, row.recipe) != OWN_DEFAULT:
            estimate, half = interval(row.sums, "kl", own)
            claim = verdict(estimate, half) if says_something else "random tokens: no claim"
            difference = f"{estimate:+.4f} ± {half:.4f}: {claim}"
        cells = [
            row.tool,
            row.recipe,
            f"{kl[0]:.4f} ± {kl[1]:.4f}",
            f"{nll[0]:+.4f} ± {nll[1]:.4f}",
            f"{100 * top1[0]:.1f} ± {100 * top1[1]:.1f}",
            f"{row.figures['cpu']:,.0f}",
            f"{row.figures['bytes'] / MIB:,.0f}",
            difference,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def caption(sums: Sums) -> str:
    """What the intervals of a quality table are."""
    tokens, documents = sum(sums["tokens"]), len(sums["tokens"])
    return f"± is half of a {CONFIDENCE:.0%} interval over {documents} documents ({tokens:,.0f} tokens)"


def spread(values: Sequence[float], unit: str = "") -> str:
    """The median, with the range of several values."""
    middle = f"{_short(statistics.median(values))}{unit}"
    return middle if len(values) < 2 else f"{middle} ({_short(min(values))}–{_short(max(values))})"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 0.95 else f"{value:.2f}"


COLUMNS = {
    "work": ("without load", 1.0),
    "process": ("whole process", 1.0),
    "cpu": ("CPU", 1.0),
    "bytes": ("peak MiB", float(MIB)),
}


def times_table(results: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> list[str]:
    """The lines of a table: both contenders per subject and the ratio of their medians."""
    lines = [f"{'':<11}{'seconds':<15}" + "".join(f"{title:>17}" for title, _ in COLUMNS.values())]
    for name, runs in results.items():
        for contender in (PEER, OURS):
            cells = [spread([run[key] / unit for run in runs[contender]]) for key, (_, unit) in COLUMNS.items()]
            lines.append(f"{name if contender == PEER else '':<11}{contender:<15}" + "".join(f"{c:>17}" for c in cells))
        ratios = [f"{_ratio(runs, key):.1f}x" for key in COLUMNS]
        ratios[0] = f"{ratios[0]}, aim {AIMS[name]}x"
        lines.append(f"{'':<11}{'ratio':<15}" + "".join(f"{r:>17}" for r in ratios))
    return lines


def _ratio(runs: Mapping[str, Sequence[Mapping[str, Any]]], key: str) -> float:
    peer, ours = (statistics.median(run[key] for run in runs[name]) for name in (PEER, OURS))
    return float(peer / ours)


def sweep_table(results: Mapping[str, Any], single_runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The lines of a table: seconds of eight schemes relative to those of one, for both contenders."""
    peer, ours = results[PEER], dict(results[OURS])
    whole = {PEER: sum(run["work"] for run in peer.values()), OURS: ours.pop("all")["work"]}
    lines = [f"{'':<22}{PEER:>16}{OURS:>14}   seconds without load"]
    lines.append(f"{'statistics':<22}{'':>16}{ours['statistics']['work']:>14.1f}")
    lines += [f"{name:<22}{peer[name]['work']:>16.1f}{ours[name]['work']:>14.1f}" for name in peer]
    single = {name: statistics.median(run["work"] for run in single_runs[name]) for name in (PEER, OURS)}
    lines.append(f"{'all eight':<22}{whole[PEER]:>16.1f}{whole[OURS]:>14.1f}")
    times = {name: whole[name] / single[name] for name in whole}
    lines.append(f"{'against one':<22}{times[PEER]:>15.1f}x{times[OURS]:>13.1f}x   aim {SWEEP_AIM}x")
    return lines
