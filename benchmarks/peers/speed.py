"""Time of Plumbline and llm-compressor side by side: turns of one scheme, and a sweep of eight.

Both round alike (`like` of recipes.py), in separate processes that alternate. Plumbline writes its statistics and reads
them back as in production, with histograms and extremes that GPTQ does not need.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.contest import Contest, without
from benchmarks.peers.recipes import LIKE_SCHEME
from benchmarks.peers.tables import OURS, PEER

ONE = "w4a16-gptq"
SCHEMES: dict[str, dict[str, Any]] = {
    ONE: {"method": "gptq", "weight_bits": 4, "group_size": 128} | LIKE_SCHEME,
    "w4a16-gptq-g32": {"method": "gptq", "weight_bits": 4, "group_size": 32} | LIKE_SCHEME,
    "w3a16-gptq": {"method": "gptq", "weight_bits": 3, "group_size": 128} | LIKE_SCHEME,
    "w8a16-gptq": {"method": "gptq", "weight_bits": 8} | LIKE_SCHEME,
    "w4a16-rtn": {"method": "rtn", "weight_bits": 4, "group_size": 128, "range": "minmax"},
    "w8a16-rtn": {"method": "rtn", "weight_bits": 8, "range": "minmax"},
    "w8a8-static": {"method": "rtn", "weight_bits": 8, "range": "minmax", "activations": {}},
    "w8a8-dynamic": {"method": "rtn", "weight_bits": 8, "range": "minmax", "activations": {"dynamic": True}},
}
"""Schemes of the sweep: four of GPTQ with different widths and groups, four that round to nearest."""


def turns(contest: Contest, repeats: int) -> dict[str, list[Any]]:
    """Figures of both contenders' runs of one scheme, one after the other in turn."""
    runs: dict[str, list[Any]] = {PEER: [], OURS: []}
    for turn in range(repeats):
        for contender in runs:
            runs[contender].append(measured(contest, contender, ONE, f"turn {turn + 1}"))
    return runs


def sweep(contest: Contest) -> dict[str, Any]:
    """Figures of eight schemes: a run of llm-compressor for each, one run of Plumbline for all."""
    return {
        PEER: {name: measured(contest, PEER, name, "sweep") for name in SCHEMES},
        OURS: contest.measured(OURS, "eight schemes", SCHEMES, lambda: contest.ours(_scratch(contest), SCHEMES)),
    }


def measured(contest: Contest, contender: str, scheme: str, label: str) -> Any:
    """Figures of a contender's run of one scheme."""
    entry = SCHEMES[scheme]

    def run() -> Any:
        if contender == OURS:
            return contest.ours(_scratch(contest), {scheme: entry})["all"]
        return contest.handed_over(f"speed-{scheme}", entry, {}, _scratch(contest))

    return contest.measured(contender, f"{scheme}, {label}", entry, run)


def _scratch(contest: Contest) -> Path:
    return without(contest.folder / "speed")
