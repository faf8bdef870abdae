"""Models in FP8, FP4 and MX formats: what is written loads equal, inputs are rounded as the format says, and what a
format or transformers cannot take is refused before work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from plumbline.activation_stats.sketch import ActivationStats
from plumbline.artifact import read_json
from plumbline.base_model.load import load_model
from plumbline.quantized_model.activation_params import ActivationParams
from plumbline.quantized_model.activations import input_scales
from plumbline.quantized_model.export import export
from plumbline.quantized_model.grid import Grid, QuantizedWeight
from plumbline.quantized_model.layer import Layer
from plumbline.quantized_model.load_check import require_loads
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.plan import plan_of
from plumbline.quantized_model.quantization_config import activation_args
from plumbline.quantized_model.quantize import quantize_model
from plumbline.quantized_model.simulate import rounding, simulate
from plumbline.study.controls import without_calibration
from tests.helpers import formats
from tests.helpers.activations import statistics_of
from tests.helpers.formats import FORMATS, GROUPS, TOKEN
from tests.helpers.mixtures import SIZES, collected
from tests.helpers.tiny_models import random_llama

IDS = torch.randint(0, 96, (4, 48), generator=torch.Generator().manual_seed(1))
FP4 = ("nvfp4", "mxfp4", "mxfp4xfp8", "mxfp8", "mixed-formats")
"""Formats of weights that transformers decompresses to bfloat16, beside rounded activations."""
Base = tuple[Path, LlamaForCausalLM, ActivationStats]


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder, dtype = tmp_path_factory.mktemp("base"), getattr(torch, request.param)
    model = random_llama(vocab_size=96, hidden_size=128, intermediate_size=256, dtype=dtype).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    model.save_pretrained(folder)
    model = load_model(folder)
    return folder, model, statistics_of(model, IDS)


def scheme_of(name: str, method: str = "rtn", **more: Any) -> SchemeParams:
    return SchemeParams.model_validate({"method": method, **FORMATS[name], **more})


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_what_is_written_loads_equal(name: str, method: str, base: Base, tmp_path: Path) -> None:
    folder, model, stats = base
    scheme = scheme_of(name, method)
    if name in FP4 and model.dtype == torch.float32:
        with pytest.raises(ValueError, match="store the base model in bfloat16, or remove activations"):
            quantize_model(model, stats, scheme)
        return
    quantized = quantize_model(model, stats, scheme)
    files = export(model, quantized, scheme, folder, tmp_path)
    assert require_loads(tmp_path, model, quantized, scheme, IDS[0].tolist()) == {"tokens": 48}
    planned = plan_of(model, scheme, model.dtype).bytes
    tensors = {}
    for file in files:
        with safe_open(tmp_path / file, "pt") as opened:
            tensors |= {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    assert planned == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def test_propagated_statistics_work_on_a_floating_point_grid(base: Base, tmp_path: Path) -> None:
    from tests.helpers.quantizing import quantize

    folder, model, stats = base
    scheme = scheme_of("fp8-dynamic", "gptq", propagate="quantized")
    samples = [(str(number), ids) for number, ids in enumerate(IDS.tolist())]
    quantized = quantize(model, stats, scheme, samples)
    export(model, quantized, scheme, folder, tmp_path)
    require_loads(tmp_path, model, quantized, scheme, IDS[0].tolist())


def test_merged_layers_share_their_global_scales(base: Base, tmp_path: Path) -> None:
    folder, model, stats = base
    if model.dtype == torch.float32:
        pytest.skip("NVFP4 activations need a model in bfloat16")
    scheme = scheme_of("nvfp4", activations={"type": "nvfp4", "headroom": 2.0})
    quantized = quantize_model(model, stats, scheme)
    export(model, quantized, scheme, folder, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as tensors:
        for site in stats.sites.values():
            if "lm_head" in site.members:
                continue
            weights = [model.get_submodule(member).weight for member in site.members]
            absmax = max(float(W.detach().abs().max()) for W in weights)
            inputs = max(-float(site.min.min()), float(site.max.max()))
            for member in site.members:
                stored = tensors.get_tensor(f"{member}.weight_global_scale")
                assert stored.dtype == torch.float32 and stored.item() == pytest.approx(2688 / absmax, rel=1e-6)
                assert tensors.get_tensor(f"{member}.weight_scale").dtype == torch.float8_e4m3fn
                stored = tensors.get_tensor(f"{member}.input_global_scale")
                assert stored.item() == pytest.approx(2688 / (2 * inputs), rel=1e-6)


def test_every_kind_of_matrices_has_its_own_format(base: Base, tmp_path: Path) -> None:
    folder, model, stats = base
    if model.dtype == torch.float32:
        pytest.skip("NVFP4 activations need a model in bfloat16")
    scheme = scheme_of("mixed-formats", "gptq")
    quantized = quantize_model(model, stats, scheme)
    for name, layer in quantized.layers.items():
        attention = ".self_attn." in name
        assert layer.weight.grid == (Grid(8, type="float") if attention else formats.GRIDS["nvfp4"]), name
        assert (layer.input_global_scale is None) == attention
    export(model, quantized, scheme, folder, tmp_path)
    config = read_json(tmp_path / "config.json")["quantization_config"]
    assert config["format"] == "mixed-precision"
    by_format = {group["format"]: group["targets"] for group in config["config_groups"].values()}
    assert by_format == {
        "float-quantized": [rf"re:(.*\.)?{part}_proj$" for part in ("k", "o", "q", "v")],
        "nvfp4-pack-quantized": [rf"re:(.*\.)?{part}_proj$" for part in ("down", "gate", "up")],
    }
    assert scheme.own["attention"].range == "hessian" and scheme.reads == ("hessian", "ranges")
    assert SchemeParams.model_validate(scheme.model_dump(mode="json")) == scheme


NOTHING = Layer(QuantizedWeight(torch.zeros(1, 1, dtype=torch.int8), torch.ones(1, 1), Grid(8)), None, None)


def rounded_by_hand(x: np.ndarray, params: dict[str, Any], layer: Layer) -> np.ndarray:
    """Activations as the formats define it, in float64 with scales rounded to their formats."""
    numbers = formats.E2M1 if params["type"] in ("nvfp4", "mxfp4") else formats.E4M3
    top = numbers[-1]
    if layer.input_scale is not None:
        s = layer.input_scale.double().numpy()
        return formats.nearest(x / s, numbers) * s
    size = {"nvfp4": 16, "mxfp4": 32, "mxfp8": 32}.get(params["type"], params.get("group_size", x.shape[-1]))
    groups = x.reshape(*x.shape[:-1], -1, size)
    absmax = np.abs(groups).max(-1, keepdims=True)
    if params["type"] == "nvfp4":
        shared = layer.input_global_scale.double().numpy()
        s = formats.nearest((np.float32(shared) * np.float32(absmax / top)).astype(np.float64), formats.E4M3) / shared
    elif params["type"] in ("mxfp4", "mxfp8"):
        exponent = np.floor(np.log2(absmax))
        exponent += absmax / 2.0**exponent >= 1.75
        s = 2.0 ** (exponent - np.floor(np.log2(top)))
    else:
        s = (absmax / top).astype(np.float32).astype(np.float64)
    return (formats.nearest(groups / s, numbers) * s).reshape(x.shape)


@pytest.mark.parametrize(
    "params",
    [{"type": "fp8"}, TOKEN, GROUPS, {"type": "nvfp4"}, {"type": "mxfp4"}, {"type": "mxfp8"}],
    ids=["static", "token", "groups", "nvfp4", "mxfp4", "mxfp8"],
)
def test_inputs_are_rounded_as_the_format_says(params: dict[str, Any]) -> None:
    x = torch.randn(2, 5, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 256)
    activations = ActivationParams.model_validate(params)
    layer = NOTHING
    if params["type"] == "nvfp4":
        layer = replace(NOTHING, input_global_scale=2688 / x.abs().max().view(1))
    elif params == {"type": "fp8"}:
        layer = replace(NOTHING, input_scale=x.abs().max().view(1) / 448)
    (found,) = rounding(activation_args(activations), layer)(torch.nn.Linear(1, 1), (x,))
    expected = rounded_by_hand(x.double().numpy(), params, layer)
    # float32 quotients may fall on the other side of a tie
    assert np.mean(~np.isclose(found.double().numpy(), expected, rtol=1e-5, atol=1e-9)) < 0.002


def test_a_constant_global_scale_reads_no_statistics() -> None:
    params = ActivationParams.model_validate({"type": "nvfp4", "range": "constant"})
    assert input_scales(None, params, torch.bfloat16)["input_global_scale"] == 1.0
    assert scheme_of("nvfp4").reads == ("ranges",)
    control = without_calibration(scheme_of("mixed-formats", "gptq"))
    assert control is not None and control.reads == () and control.method == "rtn"
    assert control.activations == params
    assert control.own["attention"].weight_type == "fp8" and control.own["attention"].activations.dynamic


def test_widths_that_a_format_does_not_take_are_refused_by_name() -> None:
    model = random_llama(vocab_size=96, hidden_size=64, intermediate_size=172, dtype=torch.bfloat16).to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.down_proj.* width 172 is no multiple of 16, .* nvfp4"):
        plan_of(model, scheme_of("nvfp4"), torch.bfloat16)
    with pytest.raises(ValueError, match="width 64 is no multiple of 128, the group of fp8 activations"):
        plan_of(model, scheme_of("fp8-block"), torch.bfloat16)
    plan_of(model, scheme_of("nvfp4", ignore=["lm_head", "re:.*down_proj"]), torch.bfloat16)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("mixture")
    sizes = {**SIZES, "vocab_size": 96, "hidden_size": 64, "intermediate_size": 32}
    model = MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=4, num_experts_per_tok=2))
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.copy_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
    model.to(torch.bfloat16).save_pretrained(folder)
    model = load_model(folder)
    return folder, model, collected(model, [(str(n), ids) for n, ids in enumerate(IDS[:, :40].tolist())])


@pytest.mark.parametrize("name", ["fp8", "fp8-dynamic", "fp8a16", "mxfp4a16", "mxfp4", "w4a16"])
def test_experts_load_equal(name: str, mixture: Base, tmp_path: Path) -> None:
    folder, model, stats = mixture
    entry = FORMATS.get(name, {"weight_bits": 4, "group_size": 32})
    scheme = SchemeParams.model_validate({"method": "gptq", **entry})
    quantized = quantize_model(model, stats, scheme)
    export(model, quantized, scheme, folder, tmp_path)
    require_loads(tmp_path, model, quantized, scheme, IDS[0].tolist())


def test_nvfp4_experts_beside_fp8_attention_are_for_vllm(mixture: Base, tmp_path: Path) -> None:
    """NVFP4 experts and FP8 attention, as mixtures are deployed: our loader reads them, and the remark says so."""
    folder, model, stats = mixture
    scheme = SchemeParams.model_validate(
        {
            "method": "gptq",
            "weight_type": "fp8",
            "activations": TOKEN,
            "overrides": {"experts": {"weight_type": "nvfp4"}},
            "loads_in": "vllm",
        }
    )
    quantized = quantize_model(model, stats, scheme)
    assert any("48371" in remark for remark in quantized.notes["remarks"])
    export(model, quantized, scheme, folder, tmp_path)
    require_loads(tmp_path, model, quantized, scheme, IDS[0].tolist())
    simulated = simulate(model, quantized, scheme)
    ids = IDS[:1]
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(ids).logits, simulated(ids).logits)
    with safe_open(tmp_path / "model.safetensors", "pt") as tensors:
        scales = {key for key in tensors.keys() if key.endswith("experts.0.w1.weight_global_scale")}  # noqa: SIM118
        for key in scales:  # vLLM merges w1 and w3
            assert torch.equal(tensors.get_tensor(key), tensors.get_tensor(key.replace(".w1.", ".w3.")))
    assert len(scales) == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nvfp4", "drops the global scale of experts"),
        ("mxfp8", "scales per channel or tensor"),
        ("fp8-block", "block_structure: transformers reads"),
    ],
)
def test_experts_that_transformers_cannot_read_are_refused(name: str, reason: str, mixture: Base) -> None:
    _, model, stats = mixture
    more = {"activations": None} if name == "fp8-block" else {}
    with pytest.raises(ValueError, match=reason):
        quantize_model(model, stats, scheme_of(name, **more))


def test_transformers_still_drops_the_global_scale_of_experts(mixture: Base, tmp_path: Path, monkeypatch) -> None:
    """When this fails, its issue 48371 is mended: allow NVFP4 experts."""
    folder, model, stats = mixture
    monkeypatch.setattr("plumbline.quantized_model.suits.require_readable_experts", lambda *_: None)
    scheme = scheme_of("nvfp4a16")
    quantized = quantize_model(model, stats, scheme)
    export(model, quantized, scheme, folder, tmp_path)
    with pytest.raises(ValueError, match="does not compute what was quantized.*experts"):
        require_loads(tmp_path, model, quantized, scheme, IDS[0].tolist())


@pytest.mark.parametrize(
    ("entry", "fix"),
    [
        ({"weight_type": "fp8", "weight_bits": 4}, "it has 8; remove it"),
        ({"weight_type": "nvfp4", "group_size": 32}, "its groups have 16 weights"),
        ({"weight_type": "fp8", "group_size": 128}, r"block_structure: \[128, 128\]"),
        ({"weight_type": "nvfp4", "symmetric": False}, "no zero point"),
        ({"weight_type": "fp8", "signed_scale": True}, "reach as far to either side"),
        ({"weight_type": "nvfp4", "range": "percentile"}, "write range: mse"),
        ({"weight_type": "nvfp4", "activations": {"type": "nvfp4", "range": "percentile"}}, "costs 1 to 25 dB"),
        ({"weight_type": "nvfp4", "activations": {"type": "nvfp4", "dynamic": True}}, "remove dynamic"),
        ({"weight_type": "nvfp4", "activations": {"type": "fp8"}}, "with activations of type nvfp4"),
        ({"weight_type": "fp8", "activations": {"type": "int"}}, "with activations of type fp8"),
        ({"weight_type": "mxfp4", "activations": TOKEN}, "group_size: 128"),
        ({"weight_type": "fp8", "block_structure": [128, 128], "activations": {"type": "fp8"}}, "group_size: 128"),
        ({"weight_type": "fp8", "activations": GROUPS}, "kernels read it beside"),
        ({"block_structure": [128, 128]}, "acts on weight_type: fp8 only"),
        ({"weight_bits": 4, "activations": {"type": "fp8"}}, "W4AFP8 alone"),
        ({"weight_bits": 8, "activations": TOKEN}, "W4AFP8 alone"),
        ({"weight_bits": 3, "activations": {"dynamic": True}}, "weights of 4 bits"),
        ({"weight_type": "fp8", "activations": {"type": "fp8", "headroom": 2}}, "headroom acts on type: nvfp4"),
        ({"activations": {"range": "constant"}, "weight_bits": 8}, "constant acts on type: nvfp4"),
        ({"weight_type": "fp8", "mixed": {"average_bits": 4}}, "mixed chooses between widths of integers"),
        ({"weight_type": "fp8", "transform": "awq"}, "rounding to 8 bits leaves it nothing"),
        ({"overrides": {"attention": {"symmetric": False}}}, "one width and one group size"),
        ({"overrides": {"attention": {"weight_bits": 8}}, "transform": "awq"}, "overrides with transform: awq"),
        ({"overrides": {"heads": {"weight_bits": 8}}}, "attention"),
        ({"range": "imatrix", "method": "gptq"}, "write range: hessian"),
    ],
)
def test_contradictions_are_refused_with_the_fix(entry: dict[str, Any], fix: str) -> None:
    with pytest.raises(ValidationError, match=fix):
        SchemeParams.model_validate({"method": "rtn", **entry})
