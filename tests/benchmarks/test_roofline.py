"""What the roofline counts, against a counter that watches the model; its seconds are its own business."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.roofline import LENGTH, STEPS, Work, best, collection_lines, passes, solver_shares, spent_lines, work_of
from plumbline.activation_stats.collect import collect
from plumbline.quantized_model.gptq import gptq
from plumbline.quantized_model.grid import Grid


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def test_the_forward_pass_is_counted_as_a_counter_counts_it(model: LlamaForCausalLM) -> None:
    model.set_attn_implementation("eager")  # the counter does not know the fused kernel of the CPU
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.base_model(input_ids=torch.randint(0, 96, (1, LENGTH)), use_cache=False)
    model.set_attn_implementation("sdpa")
    counts = counter.get_flop_counts()["Global"]
    matrices = sum(flop for op, flop in counts.items() if "bmm" not in str(op))
    attention = sum(flop for op, flop in counts.items() if "bmm" in str(op))  # with the half that is masked
    # To the counter the angles of the rotary embedding are a product, too: the tolerance.
    assert work_of(model, 3).forward == pytest.approx(3 * (matrices + attention / 2), rel=1e-3)


def test_hessians_are_counted_as_a_triangle_per_distinct_input(model: LlamaForCausalLM) -> None:
    pairs = sum(1 for width in (64, 64, 64, 176) for i, j in itertools.product(range(width), repeat=2) if i <= j)
    assert work_of(model, 3).hessians == 2 * 2 * pairs * 3 * LENGTH


def test_each_step_switches_on_one_part(model: LlamaForCausalLM) -> None:
    tokens = [("a", torch.randint(0, 96, (LENGTH,)).tolist())]
    found = [
        next(iter(collect(model, tokens, settings, base_model_digest="", fingerprint="").sites.values()))
        for settings, _ in STEPS.values()
    ]
    assert [site.hessian is not None for site in found] == [False, True, True]
    assert [int(site.histogram.counts.sum()) for site in found] == [0, 0, LENGTH * 176]
    assert [site.top_values.shape[1] for site in found] == [1, 1, 8]
    assert list(passes(model, [tokens[0][1]])) == ["plain forward pass", *STEPS]


def test_the_fastest_turn_counts_and_the_parts_add_up() -> None:
    times = iter([0.0, 5.0, 5.0, 6.0, 6.0, 8.0, 8.0, 8.5])
    assert best({"a": lambda: None, "b": lambda: None}, 2, lambda: next(times)) == {"a": 2.0, "b": 0.5}
    seconds = dict(zip(["plain forward pass", *STEPS], [4.0, 5.0, 6.0, 8.0], strict=True))
    work = Work(2e12, 0.5e12)
    said = "".join(spent_lines(seconds, work, 1e12))
    shares = [int(word.split("%")[0].rsplit(" ", 1)[1]) for word in said.split(",") if "%" in word]
    assert shares == [25, 25, 12, 6, 6, 25]
    lines = collection_lines("a model", seconds, work, 1e12, aims=True)
    assert lines[-4].split()[-6:] == ["8.00", "2.00", "1.80", "2500", "312", "31%"]
    assert max(map(len, lines)) <= 100


def test_the_shares_of_the_solver_add_up_and_name_its_parts() -> None:
    ticks = itertools.count()
    W, X = torch.randn(16, 64), torch.randn(200, 64, dtype=torch.float64)
    shares = solver_shares(lambda: gptq(W, X.T @ X, 200, Grid(4, 32)), lambda: float(next(ticks)))
    assert sum(shares.values()) == pytest.approx(1)
    assert {"Cholesky factor", "what a group starts from", "the rest"} < shares.keys()
    assert ("columns one by one" in shares) != ("columns in PyTorch" in shares)
