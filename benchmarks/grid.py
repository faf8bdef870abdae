"""A grid of calibration choices and schemes, with evaluation, against one-shots: `python -m benchmarks.grid`.

Plumbline collects the statistics of a choice once and makes every scheme from them; llm-compressor runs a one-shot per
choice and scheme, on the same samples with the same settings. Every model is then evaluated alike: one forward pass
over the same held-out documents, compared with base logits that are computed once. So the evaluation costs both the
same, and the table shows the ratio with and without it. Model: the bundled one; its loading is not counted.

llm-compressor's one-shots of one scheme take the same time on every choice, so `--peer-choices 1` measures one column
of its grid and multiplies; the output says so.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.__main__ import quiet
from benchmarks.peers.contenders.process import cpu_seconds
from benchmarks.peers.contest import Contest, without
from benchmarks.peers.environments import WORK
from benchmarks.peers.evaluation import Judge
from benchmarks.peers.recipes import LLM_COMPRESSOR, PLUMBLINE
from benchmarks.peers.results import Results
from benchmarks.peers.speed import SCHEMES
from benchmarks.peers.subjects import BUNDLED_NAME, Subject, subject, write_set
from plumbline.calibration_set.reader import read_calibration_set

GRID = ("w4a16-gptq", "w4a16-gptq-g32", "w3a16-gptq", "w4a16-rtn", "w8a8-static", "w8a8-dynamic")
"""Six of the schemes of benchmarks/peers/speed.py."""
AIM = 15


@dataclass(frozen=True)
class Cost:
    """Wall seconds, CPU seconds and the peak of resident bytes."""

    wall: float = 0.0
    cpu: float = 0.0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.cpu + other.cpu, max(self.bytes, other.bytes))

    def times(self, factor: float) -> Cost:
        """The cost of `factor` as many runs, one after the other."""
        return Cost(self.wall * factor, self.cpu * factor, self.bytes)


def cost_of(figures: Any) -> Cost:
    """The cost of a contender's run."""
    return Cost(figures["work"], figures["cpu"], figures["bytes"])


def choices(about: Subject, count: int, samples: int, work: Path) -> Iterator[Subject]:
    """The subject with `count` sets of `samples` samples, drawn from its own set, which has more."""
    rows = read_calibration_set(about.samples, ["input_ids"])["input_ids"].to_pylist()
    for number in range(count):
        folder = work / f"choice-{number}-of-{samples}"
        if not (folder / "manifest.json").is_file():
            drawn = np.random.default_rng(number).choice(len(rows), size=samples, replace=False)
            folder.mkdir(parents=True, exist_ok=True)
            write_set(folder, f"choice-{number}", [np.array(rows[row], np.int32) for row in drawn])
        yield replace(about, samples=folder)


def timed_evaluation(judge: Judge, folder: Path) -> dict[str, float]:
    """Seconds and CPU seconds of one evaluation, loading included, and the KL it finds."""
    started, cpu = time.perf_counter(), cpu_seconds()
    sums = judge.sums(folder)
    kl = sum(sums["kl"]) / sum(sums["tokens"])
    return {"work": time.perf_counter() - started, "cpu": cpu_seconds() - cpu, "bytes": 0, "kl": kl}


def run(arguments: argparse.Namespace) -> dict[str, dict[str, Cost]]:
    """Costs by tool and part, over the whole grid."""
    schemes = {name: SCHEMES[name] for name in GRID}
    about = subject(BUNDLED_NAME, arguments.pool, arguments.length, WORK)
    home = WORK / "grid"
    results = Results(home / "results.json")
    judge = Judge(about)
    judge.sums(about.model)  # the base logits, once for both
    costs = {tool: {"quantizing": Cost(), "evaluation": Cost()} for tool in (PLUMBLINE, LLM_COMPRESSOR)}
    for number, choice in enumerate(choices(about, arguments.choices, arguments.samples, home)):
        contest = Contest(choice, arguments.threads, home / f"models-{number}", results)
        out = home / f"models-{number}" / "grid"
        figures = contest.measured(
            PLUMBLINE, f"choice {number}, six schemes", schemes, partial(_ours, contest, out, schemes), out
        )
        for part in ("statistics", *GRID):
            costs[PLUMBLINE]["quantizing"] += cost_of(figures[part])
        for name in GRID:
            evaluated = contest.measured(
                PLUMBLINE,
                f"choice {number}, {name}, evaluation",
                schemes[name],
                partial(timed_evaluation, judge, out / name),
            )
            costs[PLUMBLINE]["evaluation"] += cost_of(evaluated)
        if number >= arguments.peer_choices:
            continue
        for name in GRID:
            folder = home / f"models-{number}" / "one-shot" / name
            one_shot = contest.measured(
                LLM_COMPRESSOR,
                f"choice {number}, {name}",
                schemes[name],
                partial(_one_shot, contest, name, schemes[name], folder),
                folder,
            )
            costs[LLM_COMPRESSOR]["quantizing"] += cost_of(one_shot)
    scale = arguments.choices / max(arguments.peer_choices, 1)
    costs[LLM_COMPRESSOR]["quantizing"] = costs[LLM_COMPRESSOR]["quantizing"].times(scale)
    costs[LLM_COMPRESSOR]["evaluation"] = costs[PLUMBLINE]["evaluation"]
    return costs


def _ours(contest: Contest, out: Path, schemes: dict[str, Any]) -> dict[str, Any]:
    return contest.ours(without(out), schemes)


def _one_shot(contest: Contest, name: str, scheme: dict[str, Any], out: Path) -> dict[str, Any]:
    return contest.handed_over(name, scheme, {}, without(out))


def table(costs: dict[str, dict[str, Cost]]) -> Iterator[str]:
    """Lines of Markdown: a row per part, both tools and the ratio."""
    yield "| | llm-compressor: wall, CPU | Plumbline: wall, CPU | ratio of wall, of CPU |"
    yield "|---|---|---|---|"
    rows = {part: (costs[LLM_COMPRESSOR][part], costs[PLUMBLINE][part]) for part in ("quantizing", "evaluation")}
    rows["together"] = tuple(a + b for a, b in zip(*rows.values(), strict=True))  # type: ignore[assignment]
    for part, (peer, ours) in rows.items():
        ratio = f"{peer.wall / ours.wall:.1f}, {peer.cpu / ours.cpu:.1f}"
        yield f"| {part} | {peer.wall:.0f} s, {peer.cpu:.0f} s | {ours.wall:.0f} s, {ours.cpu:.0f} s | {ratio} |"
    peaks = [costs[tool]["quantizing"].bytes / 2**30 for tool in (LLM_COMPRESSOR, PLUMBLINE)]
    yield f"| peak memory of quantizing | {peaks[0]:.2f} GiB | {peaks[1]:.2f} GiB | {peaks[0] / peaks[1]:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choices", type=int, default=8)
    parser.add_argument("--peer-choices", type=int, default=8, help="choices that llm-compressor quantizes (8)")
    parser.add_argument("--samples", type=int, default=64, help="of a choice (64)")
    parser.add_argument("--pool", type=int, default=256, help="samples that choices are drawn from (256)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sample (512)")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    quiet()
    torch.set_num_threads(arguments.threads)
    costs = run(arguments)
    print(
        f"\n{arguments.choices} choices of {arguments.samples} samples × {len(GRID)} schemes, "
        f"{arguments.threads} threads"
    )
    print("\n".join(table(costs)))
    if arguments.peer_choices < arguments.choices:
        print(
            f"llm-compressor: {arguments.peer_choices} of {arguments.choices} choices measured, the others at that rate"
        )
    print(f"aim: {AIM} times, evaluation included")


if __name__ == "__main__":
    main()
