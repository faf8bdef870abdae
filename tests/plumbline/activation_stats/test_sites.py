"""Sites besides the inputs of Linears: Conv1D, Conv2d as patches, outputs; and what is no site is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedModel

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats, extremes, merge, quantile, retract
from plumbline.activation_stats.store import load, save
from plumbline.base_model.inputs import UNKNOWN, LinearInputs, left_out, output_layers, watched_layers

Sample = tuple[str, list[int]]


def collected(model: PreTrainedModel, samples: list[Sample], **settings: Any) -> ActivationStats:
    return collect(model, samples, StatisticsParams(**settings), base_model_digest="0" * 64, fingerprint="f")


CONVOLUTIONS = {
    "plain": nn.Conv2d(3, 5, 3),
    "strides": nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    "same": nn.Conv2d(3, 5, (4, 3), padding="same", bias=False),
    "valid": nn.Conv2d(3, 5, 2, padding="valid"),
    "reflected": nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"),
    "circular": nn.Conv2d(3, 5, (5, 3), padding="same", padding_mode="circular"),
}


@pytest.mark.parametrize("layer", CONVOLUTIONS.values(), ids=list(CONVOLUTIONS))
def test_a_convolution_is_its_weight_times_the_rows_of_its_site(layer: nn.Conv2d) -> None:
    seen: dict[str, tuple[Tensor, Tensor | None]] = {}
    inputs = LinearInputs({"conv": layer}, lambda site, x, positions: seen.update({site: (x, positions)}))
    image = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    with inputs.hooked(), torch.no_grad():
        inputs.begin("a")
        output = layer(image)
    rows, positions = seen["conv"]
    assert rows.shape == (2 * output.shape[2] * output.shape[3], layer.weight[0].numel())
    made = rows @ layer.weight.detach().flatten(1).T + (0 if layer.bias is None else layer.bias.detach())
    torch.testing.assert_close(made.view(2, -1, 5).transpose(1, 2).reshape(output.shape), output)
    assert positions is not None and set(positions.tolist()) == {UNKNOWN}  # a patch is no token


class Seeing(PreTrainedModel):
    """Token ids as an image; two convolutions alike, one of another shape, one of three groups, and a Linear."""

    def __init__(self) -> None:
        super().__init__(LlamaConfig(vocab_size=64, max_position_embeddings=64))
        self.embed = nn.Embedding(64, 3)
        self.first, self.second = nn.Conv2d(3, 4, 2), nn.Conv2d(3, 4, 2)
        self.wide, self.depthwise = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 3, 2, groups=3)
        self.head = nn.Linear(4, 2)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Tensor:
        image = self.embed(input_ids).transpose(1, 2).reshape(1, 3, 4, -1)
        self.depthwise(image)
        return self.head((self.first(image) + self.second(image)).flatten(2).transpose(1, 2)) + self.wide(image).sum()


def test_convolutions_of_one_shape_share_a_site_and_those_in_groups_are_named() -> None:
    torch.manual_seed(0)
    model = Seeing().eval()
    ids = list(range(20))
    stats = collected(model, [("a", ids)], outputs=("wide",))
    assert {name: site.members for name, site in stats.sites.items()} == {
        "first": ("first", "second"),
        "wide": ("wide",),
        "head": ("head",),
        "wide:output": ("wide:output",),
    }
    assert list(left_out(model, ())) == ["depthwise"] and "3 groups" in left_out(model, ())["depthwise"]
    with torch.no_grad():
        image = model.embed(torch.tensor(ids)).T.reshape(3, 4, 5).double().numpy()
        made = model.wide(torch.from_numpy(image)[None].float())[0].flatten(1).T.double().numpy()
    patches = np.array([image[:, i : i + 2, j : j + 2].ravel() for i in range(3) for j in range(4)])
    np.testing.assert_allclose(stats.sites["first"].hessian, patches.T @ patches, rtol=1e-5)
    np.testing.assert_allclose(stats.sites["wide:output"].max, made.max(0), rtol=1e-5)  # channel by channel
    assert stats.sites["wide:output"].tokens == 20


def test_conv1d_of_transformers(gpt2: PreTrainedModel, samples: list[Sample], capture: Any) -> None:
    stats = collected(gpt2, samples)
    seen = capture(gpt2, samples)
    assert len(stats.sites) == 8 and left_out(gpt2, ("lm_head",)) == {}
    for name, site in stats.sites.items():
        x = np.concatenate(list(seen[name].values()))
        np.testing.assert_allclose(site.hessian, x.T @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_are_described_without_a_hessian(
    dtype: torch.dtype, llama: Any, samples: list[Sample], tmp_path: Path
) -> None:
    """The KV cache's ranges: what k_proj and v_proj give."""
    model = llama(dtype)
    seen: dict[str, list[Tensor]] = {}
    handles = [
        layer.register_forward_hook(lambda _, __, y, name=name: seen.setdefault(name, []).append(y[0].clone()))
        for name, layer in model.named_modules()
        if name.endswith(("k_proj", "v_proj"))
    ]
    stats = collected(model, samples, outputs=("k_proj", "re:.*v_proj$"))
    for handle in handles:
        handle.remove()
    outputs = {name: site for name, site in stats.sites.items() if name.endswith(":output")}
    assert set(outputs) == {f"{name}:output" for name in seen} and len(outputs) == 4
    assert stats.unreached == ()
    for name, given in seen.items():
        site, y = outputs[f"{name}:output"], torch.cat(given).double()
        assert site.hessian is None and site.members == (f"{name}:output",)
        assert site.sample_tokens.tolist() == [len(ids) for _, ids in samples]
        assert torch.equal(site.max.double(), y.amax(0)) and torch.equal(site.min.double(), y.amin(0))
        torch.testing.assert_close(site.sum, y.sum(0), rtol=1e-5, atol=1e-4)
        largest = extremes(stats, f"{name}:output")[0]
        assert abs(largest.value) == float(y.abs().max())
        assert float(quantile(site, 0.5, absolute=True)) == pytest.approx(float(y.abs().median()), rel=0.1)
    # inputs are what they were without outputs
    plain = collected(model, samples)
    assert set(plain.sites) == set(stats.sites) - set(outputs)
    for name, site in plain.sites.items():
        assert torch.equal(site.hessian, stats.sites[name].hessian)
    # they are stored, and merge and retract, like any site
    save(stats, tmp_path, {})
    again = load(tmp_path)
    assert again.sites.keys() == stats.sites.keys()
    last = "model.layers.1.self_attn.v_proj:output"
    assert again.sites[last].hessian is None and torch.equal(again.sites[last].sum_sq, outputs[last].sum_sq)
    parts = [collected(model, part, outputs=("k_proj", "re:.*v_proj$")) for part in (samples[:2], samples[2:])]
    whole = merge(*parts)
    assert torch.equal(whole.sites[last].max, outputs[last].max)
    assert torch.equal(retract(whole, parts[1]).sites[last].max, parts[0].sites[last].max)


def test_no_member_of_an_output_is_a_layer(llama: Any, samples: list[Sample]) -> None:
    """Quantizers look sites up by layer: an output must never be found in place of an input."""
    model = llama(torch.float32)
    stats = collected(model, samples[:1], outputs=("q_proj", "mlp"))
    site_of = {member: name for name, site in stats.sites.items() for member in site.members}
    for layer in watched_layers(model, ("lm_head",)):
        assert not site_of[layer].endswith(":output")
    assert stats.sites["model.layers.0.mlp:output"].width == 32


def test_outputs_that_fit_no_module_are_refused(llama: Any) -> None:
    with pytest.raises(
        ValueError, match="statistics.outputs in params.yaml: no module of LlamaForCausalLM is 'k_prok'"
    ):
        output_layers(llama(torch.float32), ("v_proj", "k_prok"))


def test_outputs_keep_the_model_as_it_was(llama: Any, samples: list[Sample]) -> None:
    model = llama(torch.bfloat16)
    ids = torch.tensor([samples[1][1]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        collected(model, samples, outputs=("k_proj", "mlp", "lm_head"), ignore=())
        assert torch.equal(model(input_ids=ids).logits, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
