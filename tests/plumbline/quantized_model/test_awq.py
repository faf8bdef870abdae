"""AWQ against its formula on raw activations, and on the bundled model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from plumbline.quantized_model import awq as module
from plumbline.quantized_model.awq import (
    ALPHAS,
    awq,
    choose,
    doubled_upper,
    quadratic,
    rounding,
    scales_of,
    why_no_clipping,
)
from plumbline.quantized_model.clipping import clipped
from plumbline.quantized_model.fold_search import find_folds
from plumbline.quantized_model.folding import Fold
from plumbline.quantized_model.grid import Grid, dequantize
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantize import quantize_model
from plumbline.quantized_model.rtn import rtn
from plumbline.quantized_model.scheme import quantizable_linears
from plumbline.quantized_model.smoothquant import sites_read_by

FOLD = Fold("norm", 0.0, torch.arange(48), ("a", "b"))


def scheme_of(**changes: Any) -> SchemeParams:
    return SchemeParams.model_validate({"method": "rtn", "transform": "awq"} | changes)


class Measured:
    """A site whose statistics come from raw activations, without the project's collection."""

    def __init__(self, x: Tensor) -> None:
        x = x.double()
        self.members, self.width, self.tokens = ("a", "b"), x.shape[1], len(x)
        self.sum_abs, self.hessian = x.abs().sum(0), x.T @ x


def problem(seed: int, tokens: int = 300, width: int = 48) -> tuple[Tensor, list[Tensor]]:
    """Activations with a few large channels, two weights that read them."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=g) * torch.exp(torch.randn(width, generator=g))
    x = x @ (torch.eye(width) + 0.2 * torch.randn(width, width, generator=g))
    return x, [torch.randn(rows, width, generator=g) for rows in (24, 40)]


def asymmetric(W: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Round to nearest with zero points, by hand, in float32 as the model stores it."""
    grouped = W.astype(np.float32).reshape(len(W), -1, group)
    low, high = np.minimum(grouped.min(-1, keepdims=True), 0), np.maximum(grouped.max(-1, keepdims=True), 0)
    scale = (high - low) / np.float32(2**bits - 1)
    zero = np.rint(-(2 ** (bits - 1)) - low / scale)
    codes = np.clip(np.rint(grouped / scale + zero), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return ((codes - zero) * scale).reshape(W.shape).astype(np.float64)


def direct(x: Tensor, weights: list[Tensor], bits: int, group: int) -> list[float]:
    """The paper's loss for every alpha, on the activations themselves, in float64."""
    X = x.double().numpy()
    losses = []
    for step in range(21):
        s = np.abs(X).mean(0) ** (step / 20)
        s = (s / np.sqrt(s.max() * s.min())).astype(np.float32).astype(np.float64)
        loss = 0.0
        for weight in weights:
            W = weight.double().numpy()
            folded = (weight.numpy() * s.astype(np.float32)).astype(np.float64)
            loss += ((X @ (asymmetric(folded, bits, group) / s - W).T) ** 2).sum()
        losses.append(loss)
    return losses


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("bits", "group"), [(4, 16), (3, 48)])
def test_chooses_the_alpha_of_least_output_error_on_raw_activations(seed: int, bits: int, group: int) -> None:
    x, weights = problem(seed)
    site: Any = Measured(x)
    scheme = scheme_of(weight_bits=bits, group_size=group, symmetric=False)
    chosen = choose(scales_of(site, FOLD), weights, site, torch.float32, rounding(Grid(bits, group, False), scheme))
    losses = direct(x, weights, bits, group)
    assert chosen.alpha == ALPHAS[int(np.argmin(losses))]
    assert chosen.error == pytest.approx(min(losses), rel=1e-3)
    assert chosen.before == pytest.approx(losses[0], rel=1e-3)
    assert chosen.alpha > 0


def test_what_bfloat16_stores_is_what_is_measured() -> None:
    x, weights = problem(0)
    site: Any = Measured(x)
    Q = rounding(Grid(4, 16), scheme_of())
    tried = scales_of(site, FOLD)
    chosen = choose(tried, weights, site, torch.bfloat16, Q)
    s = tried[ALPHAS.index(chosen.alpha)]
    stored = [dequantize(rtn((W * s).bfloat16(), Grid(4, 16))).double() / s.double() for W in weights]
    loss = sum(float(((q - W.double()) @ x.double().T).square().sum()) for q, W in zip(stored, weights, strict=True))
    assert chosen.error == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_of_many_rows_the_best_few_are_measured_in_full(seed: int) -> None:
    x, _ = problem(seed)
    W = torch.randn(500, 48, generator=torch.Generator().manual_seed(seed))
    site: Any = Measured(x)
    grid = Grid(4, 16)
    tried = scales_of(site, FOLD)
    chosen = choose(tried, [W], site, torch.float32, rounding(grid, scheme_of()))
    errors = []
    for s in tried:
        D = dequantize(rtn(W * s, grid)).double() / s.double() - W.double()
        errors.append(float((D @ x.double().T).square().sum()))
    assert chosen.before == pytest.approx(errors[0], rel=1e-4)
    assert chosen.error == pytest.approx(errors[ALPHAS.index(chosen.alpha)], rel=1e-4)
    assert chosen.error <= sorted(errors)[3] * (1 + 1e-4)


def test_never_worse_than_rounding_to_nearest() -> None:
    """Where all channels are alike, no scale helps, and the site is left as it is."""
    x = torch.eye(48).repeat(4, 1)
    site: Any = Measured(x)
    weights = [torch.randn(24, 48, generator=torch.Generator().manual_seed(0))]
    chosen = choose(scales_of(site, FOLD), weights, site, torch.float32, rounding(Grid(4, 16), scheme_of()))
    assert chosen.alpha == 0
    assert torch.equal(chosen.s, torch.ones(48))


def test_channels_never_used_and_shared_rows() -> None:
    x, _ = problem(1)
    x[:, 5] = 0
    site: Any = Measured(x)
    s = scales_of(site, FOLD)[10]
    assert s[5] == s.min()
    assert s[torch.arange(48) != 5].min() == s.min()
    rows = torch.arange(24).repeat(2)
    s = scales_of(site, Fold("v", 0.0, rows, ("o",)))[10]
    assert torch.equal(s[:24], s[24:])
    magnitude = x.abs().mean(0).view(2, 24).mean(0).double()
    torch.testing.assert_close(s[:24].double() / s[0], (magnitude / magnitude[0]) ** 0.5, rtol=1e-5, atol=0)
    nothing: Any = Measured(torch.zeros(3, 48))
    assert all(torch.equal(s, torch.ones(48)) for s in scales_of(nothing, FOLD))


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_half_the_products_give_the_whole_form(width: int, block: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(30, width, generator=g, dtype=torch.float64)
    D = torch.randn(7, width, generator=g)
    S = x.T @ x
    before, module.BLOCK = module.BLOCK, block
    try:
        found = quadratic(D, doubled_upper(S))
    finally:
        module.BLOCK = before
    assert found == pytest.approx(float((D.double() @ x.T).square().sum()), rel=1e-4)


def test_lowers_the_output_error_of_a_model(llama, stats, tokens, see, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "clipped", lambda W, S, grid: W)
    scheme = scheme_of(weight_bits=3, group_size=32)
    linears = quantizable_linears(llama, scheme.ignore)
    found = awq(llama, linears, stats, scheme)
    assert found.unfolded == {}
    assert 0 < len(found.scales) <= len(stats.sites)
    facts = found.facts["sites"]
    assert all((facts[name]["alpha"] > 0) == (name in found.scales) for name in facts)
    assert all(value["error"] <= 1 for value in facts.values())
    # The recorded gain is that on the activations, of what is stored (before the rows of v and up are scaled).
    x = see(llama, tokens)
    name = "model.layers.1.mlp.down_proj"
    W, s = linears[name].weight.detach(), found.scales.get(name, torch.ones(172))
    grid = Grid(3, 4)  # the largest divisor of 172 up to 32
    lost = [
        float(((dequantize(rtn(V, grid)).double() / t.double() - W.double()) @ x[name].x.T).square().sum())
        for V, t in ((found.weights[name], s), (W, torch.ones(172)))
    ]
    assert facts[name]["error"] == pytest.approx(lost[0] / lost[1], rel=2e-3)


def test_bits_of_each_layer_are_those_searched(llama, stats) -> None:
    scheme = scheme_of(weight_bits=4)
    linears = quantizable_linears(llama, scheme.ignore)
    as_given = awq(llama, linears, stats, scheme, dict.fromkeys(linears, 2)).facts
    assert as_given == awq(llama, linears, stats, scheme_of(weight_bits=2)).facts
    assert as_given != awq(llama, linears, stats, scheme).facts


def test_does_not_depend_on_the_number_of_threads(llama, stats) -> None:
    scheme = scheme_of(group_size=32)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(quantize_model(llama, stats, scheme))
    finally:
        torch.set_num_threads(before)
    for name, layer in found[0].layers.items():
        assert torch.equal(layer.weight.codes, found[1].layers[name].weight.codes)
        assert torch.equal(layer.weight.scale, found[1].layers[name].weight.scale)
    assert all(torch.equal(value, found[1].parameters[name]) for name, value in found[0].parameters.items())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"activations": {}, "weight_bits": 8}, "transform: smoothquant"),
        ({"weight_bits": 8}, "fewer than 8"),
    ],
)
def test_is_refused_where_it_has_nothing_to_do(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        scheme_of(**entry)


@pytest.mark.parametrize("clips", [False, True])
def test_lowers_the_error_of_every_site_of_the_bundled_model(
    make_stats, bundled, clips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not clips:
        monkeypatch.setattr(module, "clipped", lambda W, S, grid: W)
    model, tokens = bundled
    seen = make_stats(model, tokens)
    scheme = scheme_of(group_size=128)
    linears = quantizable_linears(model, scheme.ignore)
    found = awq(model, linears, seen, scheme)
    assert found.unfolded == {}
    # Rows of v and up are divided by the scales of the sites behind them.
    rows: dict[str, Tensor] = {}
    for name, fold in find_folds(model, sites_read_by(linears, seen))[0].items():
        if fold.producer in linears and name in found.scales:
            rows[fold.producer] = torch.ones(linears[fold.producer].out_features)
            rows[fold.producer][fold.rows] = found.scales[name]
    gains = []
    for name, site in seen.sites.items():
        before, after = 0.0, 0.0
        for member in site.members:
            W, s = linears[member].weight.detach(), found.scales.get(name, torch.ones(site.width))
            back = rows.get(member, torch.ones(len(W))).unsqueeze(1)
            before += output_error(dequantize(rtn(W, Grid(4, 128))), W, site.hessian)
            scaled = dequantize(rtn(found.weights[member], Grid(4, 128))).double()
            after += output_error(scaled * back / s, W, site.hessian)
        searched = found.facts["sites"][name]["error"]
        assert after / before < searched if clips else after / before == pytest.approx(searched, rel=0.02), name
        gains.append(after / before)
    assert np.mean(gains) < (0.8 if clips else 0.98)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [16, None])
def test_clips_each_group_to_its_least_output_error(symmetric: bool, group: int | None) -> None:
    x, (W, _) = problem(2)
    grid = Grid(3, group, symmetric)
    S = x.double().T @ x.double()
    found = clipped(W, S, grid)
    for start in range(0, 48, group or 48):
        part = slice(start, start + (group or 48))
        for row in range(len(W)):
            w, X = W[row : row + 1, part], x[:, part].double()
            low, high = w.min().clamp(max=0), w.max().clamp(min=0)
            if symmetric:
                high = torch.maximum(-low, high)
                low = -high
            tried = [w.clamp(low * (20 - i) / 20, high * (20 - i) / 20) for i in range(10)]
            lost = [
                float((X @ (dequantize(rtn(c, Grid(3, None, symmetric))) - w).double().T).square().sum()) for c in tried
            ]
            torch.testing.assert_close(found[row : row + 1, part], tried[int(np.argmin(lost))], rtol=1e-6, atol=0)
    assert not torch.equal(found, W)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [({"method": "gptq"}, "gptq rounds"), ({"range": "mse"}, "range mse"), ({"per_tensor": True}, "one scale")],
)
def test_does_not_clip_where_something_else_sets_the_range(entry: dict[str, Any], reason: str) -> None:
    assert reason in (why_no_clipping(scheme_of(**entry)) or "")
    assert why_no_clipping(scheme_of()) is None


def output_error(approximation: Tensor, W: Tensor, S: Tensor) -> float:
    D = approximation.double() - W.double()
    return float(((D @ S) * D).sum())
