"""Bits per layer: the knapsack against all allocations there are, sensitivities against their formula."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from plumbline.quantized_model.grid import Grid, dequantize
from plumbline.quantized_model.mixed import allocate, cheapest, error_at, output_energy, writers
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.rtn import rtn
from plumbline.quantized_model.scheme import quantizable_linears


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.lists(st.floats(0, 1e3), min_size=3, max_size=3)), min_size=1, max_size=6
    ),
    st.floats(2, 8),
)
@settings(max_examples=60, deadline=None)
def test_the_knapsack_is_solved_exactly(sites, average_bits) -> None:
    widths = [2, 4, 8]
    numbers = [number * 7 for number, _ in sites]
    losses = np.array([loss for _, loss in sites])
    chosen = cheapest(losses, numbers, widths, average_bits)

    def used(choice) -> int:
        return sum(widths[k] * number for k, number in zip(choice, numbers, strict=True))

    def lost(choice) -> float:
        return sum(row[k] for row, k in zip(losses, choice, strict=True))

    fitting = [c for c in itertools.product(range(3), repeat=len(sites)) if used(c) <= average_bits * sum(numbers)]
    assert used(chosen) <= average_bits * sum(numbers)
    assert lost(chosen) <= min(map(lost, fitting)) + 1e-6 * losses.max()


def test_large_layers_are_counted_to_the_weight() -> None:
    """One weight too many must not fit, however large the layers: 3.5 bits on average of 10^9 + 7 and 10^9 + 9."""
    numbers = [10**9 + 7, 10**9 + 9]
    losses = np.array([[1.0, 0.0], [1.0, 0.0]])
    chosen = cheapest(losses, numbers, [3, 4], 3.5)
    assert chosen == [1, 0]


def test_a_budget_below_the_smallest_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"average_bits 2\.5 is below the smallest of mixed\.widths \[3, 4\]"):
        cheapest(np.ones((2, 2)), [10, 10], [3, 4], 2.5)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_allocation_of_a_model(llama, stats, method) -> None:
    scheme = SchemeParams.model_validate(
        {"method": method, "group_size": 32, "mixed": {"average_bits": 3.5, "widths": (2, 3, 4, 8)}}
    )
    linears = quantizable_linears(llama, scheme.ignore)
    found = allocate(linears, stats, scheme)
    assert list(found.bits) == list(linears)
    for site in stats.sites.values():
        assert len({found.bits[name] for name in site.members if name in found.bits}) <= 1
    numbers = {name: module.weight.numel() for name, module in linears.items()}
    average = sum(found.bits[name] * n for name, n in numbers.items()) / sum(numbers.values())
    assert average <= 3.5
    assert found.facts["average_bits"] == pytest.approx(average, abs=1e-4)
    assert found.facts["bits"] == found.bits
    uniform = found.facts["predicted_error_uniform"]
    assert uniform["8"] < found.facts["predicted_error"] < uniform["3"]
    assert found.facts["without_tokens"] == []


def test_sensitivities_are_what_the_formulas_say(llama, stats, seen) -> None:
    scheme = SchemeParams.model_validate({"method": "rtn", "group_size": 16})
    for name in ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.k_proj"):
        W = llama.get_submodule(name).weight.detach()
        site = next(site for site in stats.sites.values() if name in site.members)
        x = seen[name].x
        y = x @ W.double().T
        group = 4 if W.shape[1] == 172 else 16
        wrong = x @ (W.double() - dequantize(rtn(W, Grid(3, group))).double()).T
        expected = float(wrong.square().sum() / y.square().sum())
        assert error_at(W, site, 3, group, scheme, None) == pytest.approx(expected, rel=1e-2)
        assert output_energy(W, site) == pytest.approx(float(y.square().sum()), rel=1e-2)


def test_an_error_is_counted_where_it_is_written() -> None:
    def linear(inputs: int, outputs: int) -> nn.Linear:
        return nn.Linear(inputs, outputs, bias=False)

    layer = {"q": linear(8, 8), "k": linear(8, 4), "o": linear(8, 8), "up": linear(8, 20), "down": linear(20, 8)}
    linears = {f"model.layers.{i}.{name}": module for i in (0, 11) for name, module in layer.items()}
    linears["head"] = linear(8, 99)
    by_site = {f"model.layers.{i}.{n}": [f"model.layers.{i}.{n}"] for i in (0, 11) for n in ("o", "up", "down")}
    sites = [[f"model.layers.{i}.q", f"model.layers.{i}.k"] for i in (0, 11)]
    by_site = {
        names[0]: names
        for names in (sites[0], *list(by_site.values())[:3], sites[1], *list(by_site.values())[3:], ["head"])
    }
    assert writers(linears, by_site) == [
        *(f"model.layers.0.{name}" for name in ("o", "o", "down", "down")),
        *(f"model.layers.11.{name}" for name in ("o", "o", "down", "down")),
        "head",
    ]


def test_a_layer_that_no_token_reached_gets_a_width_and_is_named(llama, stats) -> None:
    class Fewer:
        sites = {name: site for name, site in stats.sites.items() if "layers.1.mlp" not in name}  # noqa: RUF012
        unreached = ()

    scheme = SchemeParams.model_validate({"method": "gptq", "mixed": {"average_bits": 3.2}})
    linears = quantizable_linears(llama, scheme.ignore)
    found = allocate(linears, Fewer(), scheme)  # type: ignore[arg-type]
    names = [f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")]
    assert found.facts["without_tokens"] == names
    assert set(found.bits) == set(linears)


def test_the_number_of_threads_does_not_matter(llama, stats) -> None:
    scheme = SchemeParams.model_validate({"method": "gptq", "mixed": {"average_bits": 3.2}})
    linears = quantizable_linears(llama, scheme.ignore)
    threads, facts = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            facts.append(allocate(linears, stats, scheme).facts)
    finally:
        torch.set_num_threads(threads)
    assert facts[0] == facts[1]
