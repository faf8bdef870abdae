"""A multimodal model after quantization: its language model is quantized, everything else is as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.base_model.language import language_part
from plumbline.base_model.load import load_model
from plumbline.quantized_model.export import export
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantize import quantize_model
from plumbline.quantized_model.simulate import simulate
from tests.helpers.multimodal import multimodal_model

FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "chat_template.json",
         "chat_template.jinja", "generation_config.json")  # fmt: skip


@pytest.mark.parametrize("name", ["gemma3", "qwen2.5-vl", "qwen3-vl", "qwen3.5", "mistral3", "llava"])
def test_what_is_not_quantized_is_exported_bit_for_bit(name: str, tmp_path: Path) -> None:
    folder, out = tmp_path / "base", tmp_path / "out"
    multimodal_model(name).save_pretrained(folder)
    for file in FILES:
        (folder / file).write_text(f'{{"_from": "{file}"}}\n')
    out.mkdir()
    base = load_model(folder, "cpu")
    samples = [(f"s{i}", torch.randint(9, 50, (16,)).tolist()) for i in range(2)]
    outside = [
        module_name
        for module_name, module in base.named_modules()
        if isinstance(module, nn.Linear) and not module_name.startswith(f"{language_part(base)}.")
    ]
    ignore = tuple(outside)
    stats = collect(base, samples, StatisticsParams(ignore=ignore), base_model_digest="d", fingerprint="f")
    scheme = SchemeParams(method="rtn", weight_bits=4, group_size=16, ignore=ignore)
    quantized = quantize_model(base, stats, scheme)
    assert quantized.layers and all(layer.startswith(f"{language_part(base)}.") for layer in quantized.layers)
    export(base, quantized, scheme, folder, out)

    for file in FILES:
        assert (out / file).read_bytes() == (folder / file).read_bytes()
    loaded = load_model(out, "cpu")
    assert type(loaded) is type(base)
    expected, found = base.state_dict(), loaded.state_dict()
    kept = expected.keys() - {f"{layer}.weight" for layer in quantized.layers}
    assert len(kept) > len(outside) and all(torch.equal(found[key], expected[key]) for key in kept)
    tokens = torch.tensor([samples[0][1]])
    with torch.no_grad():
        simulated = simulate(base, quantized, scheme)(input_ids=tokens, use_cache=False).logits
        assert torch.equal(loaded(input_ids=tokens, use_cache=False).logits, simulated)
