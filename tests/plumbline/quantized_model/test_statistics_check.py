"""Statistics that lack what a scheme reads are refused before anything is computed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from plumbline.activation_stats.sketch import ActivationStats, SiteStats
from plumbline.quantized_model import quantize
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantize import quantize_model

SITE, MEMBER = "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"


def changed(stats: ActivationStats, site: SiteStats | None, unreached: tuple[str, ...] = ()) -> ActivationStats:
    sites = {name: found for name, found in stats.sites.items() if name != SITE}
    return replace(stats, sites=sites if site is None else {**sites, SITE: site}, unreached=unreached)


@pytest.mark.parametrize(
    ("entry", "without", "said"),
    [
        ({"method": "gptq"}, "hessian", r"no hessian of .*q_proj.*statistics\.hessian: true"),
        ({"method": "adaround"}, "hessian", r"statistics\.hessian: true"),
        ({"method": "rtn", "transform": "awq"}, "hessian", r"statistics\.hessian: true"),
        ({"method": "rtn", "mixed": {"average_bits": 3}}, "hessian", r"statistics\.hessian: true"),
        ({"method": "rtn", "weight_bits": 8, "activations": {"range": "mse"}}, "histogram", r"range: minmax"),
    ],
)
def test_what_is_missing_is_named_with_the_line_to_change(llama, stats, monkeypatch, entry, without, said) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("something was computed")

    monkeypatch.setattr(quantize, "quantize_site", forbidden)
    monkeypatch.setattr(quantize, "transform_of", forbidden)
    with pytest.raises(ValueError, match=said):
        site = replace(stats.sites[SITE], **{without: None})
        quantize_model(llama, changed(stats, site), SchemeParams.model_validate(entry))


def test_a_site_left_out_or_never_reached(llama, stats) -> None:
    gptq, static = SchemeParams(method="gptq"), SchemeParams.model_validate(
        {"method": "rtn", "weight_bits": 8, "activations": {}}
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"q_proj has no statistics, which method gptq reads.*statistics\.ignore"):
        quantize_model(llama, changed(stats, None), gptq)
    members = stats.sites[SITE].members
    layers = quantize_model(llama, changed(stats, None, members), gptq).layers
    assert {name for name, layer in layers.items() if layer.fallback} == set(members)
    assert layers[MEMBER].fallback == "no tokens reached this layer" and layers[MEMBER].error is None
    with pytest.raises(ValueError, match=r"no token of the calibration set reached .*q_proj.*dynamic: true"):
        quantize_model(llama, changed(stats, None, members), static)
    dynamic = SchemeParams.model_validate({"method": "rtn", "weight_bits": 8, "activations": {"dynamic": True}})
    assert len(quantize_model(llama, changed(stats, None), dynamic).layers) == 14


def test_a_scheme_that_propagates_is_refused(llama, stats) -> None:
    with pytest.raises(ValueError, match="call propagate.propagated"):
        quantize_model(llama, stats, SchemeParams(method="gptq", propagate="quantized"))


def test_errors_equal_the_direct_formula_whatever_was_folded(llama, stats) -> None:
    """AWQ's folded, rounded weights, taken back to the original input and output by hand."""
    scheme = SchemeParams(method="rtn", weight_bits=4, group_size=32, transform="awq")
    quantized = quantize_model(llama, stats, scheme)
    plain = quantize_model(llama, stats, SchemeParams(method="rtn", weight_bits=4, group_size=32))
    for name, layer in quantized.layers.items():
        assert layer.error is not None and plain.layers[name].error is not None
    mean = [sum(layer.error for layer in found.layers.values()) for found in (quantized, plain)]
    assert mean[0] < mean[1]
    W = llama.get_submodule(SITE).weight.detach().double()
    S = stats.sites[SITE].hessian
    from plumbline.quantized_model.grid import dequantize

    dW = W - dequantize(plain.layers[SITE].weight).double()
    expected = float(torch.trace(dW @ S @ dW.T) / torch.trace(W @ S @ W.T))
    assert plain.layers[SITE].error == pytest.approx(expected, rel=1e-4)
