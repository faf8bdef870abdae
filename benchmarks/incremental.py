"""Cost of updating statistics for a changed calibration set: `python -m benchmarks.incremental`.

The statistics of a set are collected anew, and updated from those of a set that shares 90 % of its samples: with 10 %
added, and with 10 % replaced. Each round measures all three in turn, so that other load on the machine affects them
alike; medians over the rounds of times and ratios are reported. All samples have the same length. Integers and extremes
of an update must equal those of a collection anew; the largest difference of sums is printed, and the share of sums
that are equal to the last bit.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats
from plumbline.activation_stats.totals import Sample
from plumbline.activation_stats.update import updated
from plumbline.base_model.load import load_model

BUNDLED = Path(__file__).resolve().parents[1] / "plumbline" / "base_model" / "llama-stdlib-6m"
AIM = 0.15
SETTINGS = StatisticsParams()
ORIGIN = {"base_model_digest": "model", "fingerprint": "tokenizer"}


def random_llama() -> PreTrainedModel:
    """51 M parameters outside the embeddings: hidden 1024, feed-forward 2816, 4 layers, bfloat16, random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=6144,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=1024,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16).eval().requires_grad_(False)


def random_samples(n: int, tokens: int, vocabulary: int) -> list[Sample]:
    drawn = torch.randint(6, vocabulary, (n, tokens), generator=torch.Generator().manual_seed(0))
    return [(f"{number:05d}", ids) for number, ids in enumerate(drawn.tolist())]


def clocked(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, wall seconds, CPU seconds of this process)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def measure(model: PreTrainedModel, n: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Seconds of every method and round, and how far the results differ."""
    tenth = n // 10
    samples = random_samples(n + tenth, tokens, int(model.config.vocab_size))
    old, added, swapped = samples[:n], samples, samples[tenth:]

    def anew(some: Sequence[Sample]) -> ActivationStats:
        return collect(model, some, SETTINGS, **ORIGIN)

    def renewed(some: Sequence[Sample]) -> ActivationStats:
        return updated(previous, model, some, SETTINGS, leaving=old, **ORIGIN)

    previous = anew(old)  # also warms up caches
    ways = {
        "anew": lambda: anew(swapped),
        "10 % came": lambda: renewed(added),
        "10 % left, 10 % came": lambda: renewed(swapped),
    }
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    results: dict[str, ActivationStats] = {}
    for _ in range(rounds):
        for way, work in ways.items():
            results[way], wall, cpu = clocked(work)
            seconds[way].append((wall, cpu))
    return {"seconds": seconds, **compared(results["10 % left, 10 % came"], results["anew"])}


def compared(updated_stats: ActivationStats, expected: ActivationStats) -> dict[str, Any]:
    """How far an update differs from a collection anew.

    Raises:
        AssertionError: an integer or an extreme differs.
    """
    same, sums, largest = 0, 0, 0.0
    for name, x in expected.sites.items():
        y = updated_stats.sites[name]
        assert torch.equal(x.histogram.counts, y.histogram.counts) and x.histogram.first == y.histogram.first
        for attribute in ("sample_tokens", "sample_min", "sample_max", "top_values", "top_positions", "top_channels"):
            assert torch.equal(getattr(x, attribute), getattr(y, attribute)), (name, attribute)
        for attribute in ("sum", "sum_abs", "sum_sq", "hessian"):
            left, right = getattr(x, attribute), getattr(y, attribute)
            same += int((left == right).sum())
            sums += left.numel()
            largest = max(largest, float((left - right).abs().max() / left.abs().max()))
    return {"same": same / sums, "largest": largest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=130, help="samples of the set, a multiple of 10")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=("bundled", "random"), default=["bundled", "random"])
    arguments = parser.parse_args()
    print(
        f"{arguments.samples} samples of {arguments.tokens} tokens, {torch.get_num_threads()} threads, "
        f"{arguments.rounds} rounds"
    )
    for name in arguments.models:
        model = load_model(BUNDLED, "cpu") if name == "bundled" else random_llama()
        figures = measure(model, arguments.samples, arguments.tokens, arguments.rounds)
        print(f"\n{'bundled, hidden 256' if name == 'bundled' else 'random, hidden 1024'}")
        print(f"{'':<24}{'wall':>10}{'CPU':>10}{'of anew':>10}{'CPU':>10}")
        whole = figures["seconds"]["anew"]
        for way, rounds in figures["seconds"].items():
            wall, cpu = (statistics.median(values) for values in zip(*rounds, strict=True))
            ratios = (
                statistics.median(a[kind] / b[kind] for a, b in zip(rounds, whole, strict=True)) for kind in (0, 1)
            )
            print(f"{way:<24}{wall:>8.2f} s{cpu:>8.2f} s" + "".join(f"{ratio:>10.3f}" for ratio in ratios))
        print(
            f"counts and extremes equal those collected anew; sums differ by at most {figures['largest']:.1e} of "
            f"the largest, {100 * figures['same']:.2f} % of them not at all"
        )
    print(f"\naim: 10 % new samples cost at most {AIM} of a collection")


if __name__ == "__main__":
    main()
