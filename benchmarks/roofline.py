"""Share of the machine's peak that is reached: `python -m benchmarks.roofline [--samples 32] [--rounds 3] [--cpu]`.

The limit is the rate of a matrix product in the same run, on as many threads: in bfloat16 for the collection of
statistics, or float32 if the processor has no bfloat16 units; in float64 for GPTQ's solver. `collect` is timed with its
parts enabled one after the other, alternating with the plain forward pass; the fastest round counts. Operations are
counted by formula: 2 m n k per matrix product, half of that for attention (causal) and Hessians (symmetric). The time
of other parts is computed by subtraction.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from benchmarks.peers.subjects import subject
from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats
from plumbline.base_model.bfloat16 import has_units
from plumbline.base_model.folder import BUNDLED
from plumbline.base_model.load import load_model
from plumbline.base_model.one_thread import one_thread
from plumbline.quantized_model import gptq as gptq_module
from plumbline.quantized_model import solver
from plumbline.quantized_model.gptq import gptq, solve_flops
from plumbline.quantized_model.grid import Grid
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantize import quantize_model

LENGTH = 512
NO_HISTOGRAM = 1e-9
"""Share of the tokens in the histogram, small enough for none."""
STEPS: dict[str, tuple[StatisticsParams, float]] = {
    "+ min, max, sums": (StatisticsParams(hessian=False, histogram_share=NO_HISTOGRAM, top_k=1), 1.25),
    "+ Hessians": (StatisticsParams(histogram_share=NO_HISTOGRAM, top_k=1), 1.6),
    "+ histogram, 8 largest": (StatisticsParams(), 1.8),
}
"""Settings that enable one part after the other, with the time allowed relative to the plain forward pass."""
ENOUGH = 0.5
"""Target share of the limit for collecting everything at hidden 1024."""
SHAPES = ((2048, 1024, 1024), (2048, 1024, 2816), (2048, 2816, 1024), (2048, 2048, 2048))
"""(m, k, n) of the matrix products that measure the limit."""

Tasks = Mapping[str, Callable[[], object]]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Work:
    """Floating-point operations of a pass over the samples."""

    forward: float
    hessians: float


def cpu_clock() -> float:
    """CPU seconds of this process per thread: the wall time on an undisturbed machine."""
    return time.process_time() / torch.get_num_threads()


def best(tasks: Tasks, rounds: int, clock: Clock) -> dict[str, float]:
    """Seconds of each task, the fastest of `rounds`; tasks alternate, so that other load affects them alike."""
    fastest = dict.fromkeys(tasks, float("inf"))
    for _ in range(rounds):
        for name, task in tasks.items():
            started = clock()
            task()
            fastest[name] = min(fastest[name], clock() - started)
    return fastest


def matrix_rate(dtype: torch.dtype, rounds: int, clock: Clock) -> float:
    """FLOP/s of the fastest of a few matrix products on torch's current threads."""
    rate = 0.0
    for m, k, n in SHAPES:
        a, b = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
        a @ b.T
        (seconds,) = best({"": lambda a=a, b=b: a @ b.T}, rounds, clock).values()
        rate = max(rate, 2 * m * k * n / seconds)
    return rate


def work_of(model: PreTrainedModel, samples: int) -> Work:
    """The operations of a pass over samples of LENGTH tokens: decoder matrices and attention, Hessians of inputs."""
    tokens = samples * LENGTH
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"}
    matrices = sum(2.0 * tokens * linear.weight.numel() for linear in linears.values())
    config = model.config
    attention = 2.0 * tokens * LENGTH * config.hidden_size * config.num_hidden_layers
    first = ("q_proj", "o_proj", "gate_proj", "down_proj")  # one Linear per site
    inputs = [linear.in_features for name, linear in linears.items() if name.endswith(first)]
    return Work(matrices + attention, sum(float(tokens) * width * (width + 1) for width in inputs))


def passes(model: PreTrainedModel, ids: list[list[int]]) -> dict[str, Callable[[], object]]:
    """The plain forward pass of the decoder, and collection with one part after the other."""
    samples = [(f"{row:04}", tokens) for row, tokens in enumerate(ids)]

    def plain() -> None:
        with torch.no_grad():
            for tokens in ids:
                model.base_model(input_ids=torch.tensor([tokens]), use_cache=False)

    def collecting(settings: StatisticsParams) -> Callable[[], ActivationStats]:
        return lambda: collect(model, samples, settings, base_model_digest="", fingerprint="")

    return {"plain forward pass": plain, **{name: collecting(settings) for name, (settings, _) in STEPS.items()}}


def collection_lines(title: str, seconds: Mapping[str, float], work: Work, rate: float, aims: bool) -> list[str]:
    """The lines of the table of one model."""
    forward = seconds["plain forward pass"]
    lines = [f"{title:<46}{'seconds':>9}{'x forward':>10}{'aim':>6}{'GFLOP':>8}{'GFLOP/s':>9}{'of limit':>9}"]
    for name, took in seconds.items():
        with_hessians = name in STEPS and STEPS[name][0].hessian
        flop = work.forward + (work.hessians if with_hessians else 0.0)
        aim = f"{STEPS[name][1]:.2f}" if aims and name in STEPS else ""
        figures = f"{took:>9.2f}{took / forward:>10.2f}{aim:>6}{flop / 1e9:>8.0f}{flop / took / 1e9:>9.0f}"
        lines.append(f"  {name:<44}{figures}{flop / took / rate:>9.0%}")
    return [*lines, *spent_lines(seconds, work, rate)]


def spent_lines(seconds: Mapping[str, float], work: Work, rate: float) -> list[str]:
    """The lines that split the time of collecting everything, in percent."""
    plain, sums, hessians, everything = seconds.values()
    ideal, triangle = work.forward / rate, work.hessians / rate
    parts = {
        "products of the forward pass at the limit": ideal,
        "rest of the forward pass": plain - ideal,
        "min, max, sums": sums - plain,
        "Hessians at the limit": triangle,
        "rest of the Hessians": hessians - sums - triangle,
        "histogram, largest": everything - hessians,
    }
    words = [f"{name} {part / everything:.0%}" for name, part in parts.items()]
    return [
        "  spent on: " + ", ".join(words[:2]) + ",",
        "            " + ", ".join(words[2:5]) + ",",
        f"            {words[5]}",
    ]


def solver_lines(stats: ActivationStats, model: PreTrainedModel, rounds: int, clock: Clock) -> list[str]:
    """GPTQ W4A16 in groups of 128: the sites of a layer on one thread, and the whole model on all."""
    grid, threads = Grid(4, 128), torch.get_num_threads()
    with one_thread():
        double, single = (matrix_rate(dtype, rounds, clock) for dtype in (torch.float64, torch.float32))
        rates = f"{double / 1e9:.0f} GFLOP/s in float64, {single / 1e9:.0f} in float32"
        lines = [
            f"GPTQ in float64 on one thread, where a matrix product reaches {rates}",
            f"  {'site':<42}{'seconds':>9}{'rows':>8}{'columns':>9}{'GFLOP':>8}{'GFLOP/s':>9}{'of limit':>9}",
        ]
        for name, site in stats.sites.items():
            if ".layers.0." in name and site.hessian is not None:
                W = torch.cat([_weight(model, member) for member in site.members])
                S, tokens, flop = site.hessian, site.tokens, solve_flops(len(W), site.width)
                (took,) = best({"": lambda W=W, S=S, t=tokens: gptq(W, S, t, grid)}, rounds, clock).values()
                figures = f"{took:>9.2f}{len(W):>8}{site.width:>9}{flop / 1e9:>8.1f}{flop / took / 1e9:>9.0f}"
                lines.append(f"  {name:<42}{figures}{flop / took / double:>9.0%}")
                shares = solver_shares(lambda W=W, S=S, t=tokens: gptq(W, S, t, grid), clock)
                lines.append("    spent on: " + ", ".join(f"{what} {share:.0%}" for what, share in shares.items()))
    scheme = SchemeParams(method="gptq", weight_bits=4, group_size=128)
    (took,) = best({"": lambda: quantize_model(model, stats, scheme)}, rounds, clock).values()
    flop = sum(solve_flops(_rows(model, site.members), site.width) for site in stats.sites.values())
    figures = f"{took:>9.2f}{'':>17}{flop / 1e9:>8.1f}{flop / took / 1e9:>9.0f}{flop / took / (double * threads):>9.0%}"
    return [*lines, f"  {f'quantize_model, whole model, {threads} threads':<42}{figures}"]


def solver_shares(solve: Callable[[], object], clock: Clock) -> dict[str, float]:
    """The shares of the parts of a solve in its time."""
    clocked = {
        "Cholesky factor": (gptq_module, "factor"),
        "products": (solver, "add_product"),
        "columns one by one": (solver, "solve_columns"),
        "columns in PyTorch": (gptq_module, "_one_by_one"),
        "what a group starts from": (solver, "solve_lower"),
    }
    seconds = dict.fromkeys(clocked, 0.0)
    inside: list[str] = []

    def with_clock(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if inside:  # products of the factor count as the factor
                return function(*arguments, **named)
            inside.append(what)
            began = clock()
            result = function(*arguments, **named)
            seconds[inside.pop()] += clock() - began
            return result

        return call

    with ExitStack() as stack:
        for what, (module, name) in clocked.items():
            stack.enter_context(mock.patch.object(module, name, with_clock(what, getattr(module, name))))
        began = clock()
        solve()
        whole = clock() - began
    shares = {what: took / whole for what, took in seconds.items() if took}
    return {**shares, "the rest": 1 - sum(shares.values())}


def _weight(model: nn.Module, name: str) -> Tensor:
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear.weight.detach()


def _rows(model: nn.Module, members: tuple[str, ...]) -> int:
    return sum(len(_weight(model, member)) for member in members)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32, help=f"samples of {LENGTH} tokens (32)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the fastest counts (3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu", action="store_true", help="measure CPU seconds per thread, for a shared machine")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    clock = cpu_clock if arguments.cpu else time.perf_counter
    ids = np.random.default_rng(0).integers(3, 4096, size=(arguments.samples, LENGTH)).tolist()
    with tempfile.TemporaryDirectory() as scratch:
        large = load_model(subject("random-51M", 1, LENGTH, Path(scratch)).model, "cpu")
    models = {"hidden 1024 (51 M, 4 layers)": large, "bundled model (hidden 256, 6 layers)": load_model(BUNDLED, "cpu")}
    dtype = torch.bfloat16 if has_units() else torch.float32
    rate = matrix_rate(dtype, arguments.rounds, clock)
    for title, model in models.items():
        best(passes(model, ids[:1]), 1, clock)
        seconds = best(passes(model, ids), arguments.rounds, clock)
        rate = max(rate, matrix_rate(dtype, arguments.rounds, clock))  # the machine may have been busy the first time
        work, heading = work_of(model, arguments.samples), f"{title}, {arguments.samples} x {LENGTH}"
        print("\n".join(collection_lines(heading, seconds, work, rate, aims=model is large)), "\n", flush=True)
    print(f"limit: {rate / 1e9:.0f} GFLOP/s, the fastest {str(dtype)[6:]} product here on {arguments.threads} threads")
    print(f"aim: {ENOUGH:.0%} of the limit with everything at hidden 1024\n")
    samples = [(f"{row:04}", tokens) for row, tokens in enumerate(ids)]
    stats = collect(large, samples, StatisticsParams(), base_model_digest="", fingerprint="")
    print("\n".join(solver_lines(stats, large, arguments.rounds, clock)))


if __name__ == "__main__":
    main()
