"""KL of every format under every solver, from one pass of statistics."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.formats import peer
from benchmarks.formats.arms import PRESETS, RTN, arms
from benchmarks.peers.contest import LIMIT, Contest, code
from benchmarks.peers.environments import Unavailable
from benchmarks.peers.evaluation import Judge, Sums, interval, verdict
from benchmarks.peers.results import Results
from benchmarks.peers.subjects import Subject
from benchmarks.peers.tables import caption
from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.base_model.folder import base_model_digest
from plumbline.base_model.load import load_model
from plumbline.calibration_set.reader import read_calibration_set
from plumbline.quantized_model.factors import Factors
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantize import quantize_model
from plumbline.quantized_model.simulate import simulate


class Matrix:
    """The cells of one model. Finished ones are kept in results.json, and an interrupted run resumes there."""

    def __init__(self, about: Subject, work: Path) -> None:
        self.about, self.judge, self.factors = about, Judge(about), Factors()
        self.folder = work / about.name.replace(" ", "-")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results = Results(self.folder / "results.json")
        table = read_calibration_set(about.samples, ["sample_id", "input_ids"]).to_pylist()
        self.samples = [(row["sample_id"], row["input_ids"]) for row in table]
        self.model = load_model(about.model, "cpu")
        self.decided_by = {
            "model": base_model_digest(about.model),
            "samples": [name for name, _ in self.samples],
            "held out": about.held_out.digest,
            "code": code("plumbline"),
        }
        started = time.process_time()
        self.stats = collect(self.model, self.samples, StatisticsParams(), base_model_digest="", fingerprint="")
        self.cpu, self.passes, self.computed = time.process_time() - started, 0, 0

    def _count(self, *_: Any) -> None:
        self.passes += 1

    def sums(self, format_: str, solver: str, scheme: SchemeParams) -> Sums:
        """The quality of a cell.

        Raises:
            ValueError: the format does not suit the model.
        """
        decided_by = {**self.decided_by, "scheme": scheme.model_dump(mode="json")}
        sums: Sums = self.results.get(f"{format_}: {solver}", decided_by, partial(self._measure, scheme))
        return sums

    def _measure(self, scheme: SchemeParams) -> Sums:
        counting = self.model.register_forward_pre_hook(self._count)
        try:
            quantized = quantize_model(self.model, self.stats, scheme, self.factors, errors=False)
        finally:
            counting.remove()
        self.computed += 1
        with torch.no_grad():
            return self.judge.sums_of(simulate(self.model, quantized, scheme))

    def peer(self, format_: str, solver: str) -> Sums:
        """The quality of llm-compressor's model.

        Raises:
            Unavailable: it does not run here.
        """
        contest = Contest(self.about, torch.get_num_threads(), self.folder, self.results, LIMIT)
        decided_by = {**self.decided_by, "pins": peer.pins(), "recipe": peer.recipe(format_, solver)}
        sums: Sums = self.results.get(
            f"{format_}: llm-compressor, {solver}",
            decided_by,
            lambda: self.judge.sums(peer.quantized(contest, format_, solver)),
        )
        return sums

    def lines(self, formats: Sequence[str], solvers: Sequence[str], peers: Sequence[str]) -> Iterator[str]:
        """The lines of a Markdown table.

        Args:
            peers: solvers for which llm-compressor runs, too.
        """
        tokens = sum(len(ids) for _, ids in self.samples)
        yield f"\n## {self.about.name}\n"
        yield f"{len(self.samples)} samples, {tokens:,} tokens.\n"
        yield "| format | solver | KL, nats | top-1, % | KL less that of rtn |"
        yield "|---|---|---:|---:|---|"
        said = ""
        for name in formats:
            rows: dict[str, Sums] = {}
            try:
                for solver, scheme in arms(name).items():
                    if solver in solvers:
                        rows[solver] = self.sums(name, solver, scheme)
            except ValueError as problem:
                yield f"| {name} | refused: {problem} | | | |"
                continue
            for solver, sums in rows.items():
                said = said or caption(sums)
                yield _line(name, solver, sums, None if solver == RTN else rows.get(RTN), "")
            for solver in peers if name in PRESETS else ():
                try:
                    theirs = self.peer(name, solver)
                except Unavailable as problem:
                    yield f"| {name} | llm-compressor, {solver}: not run: {problem} | | | |"
                    continue
                yield _line(name, f"llm-compressor {PRESETS[name]}, {solver}", theirs, rows.get(solver), "to ours: ")
        yield f"\n{said}. Statistics: {self.cpu:.0f} CPU seconds in one pass. {self.computed} models were computed from"
        yield f"them now, with {self.passes} forward passes of the base model: none for a new format."


def _line(name: str, solver: str, sums: Sums, other: Sums | None, prefix: str) -> str:
    (kl, half), (top1, _) = interval(sums, "kl"), interval(sums, "top1")
    difference = ""
    if other is not None:
        estimate, width = interval(sums, "kl", other)
        difference = f"{prefix}{estimate:+.5f} ± {width:.5f}, {verdict(estimate, width)}"
    return f"| {name} | {solver} | {kl:.5f} ± {half:.5f} | {100 * top1:.1f} | {difference} |"
