"""A model read from disk piece by piece against the one that is loaded whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plumbline.base_model.decoder import Decoder
from plumbline.base_model.load import load_model
from plumbline.base_model.streamed import StreamedModel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_buffers_are_those_of_the_ordinary_way(
    config: Any, built: Any, ids: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    built(config, dtype).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    whole, streamed = load_model(tmp_path), StreamedModel(tmp_path)
    assert not streamed.model.training and all(weight.is_meta for weight in streamed.model.parameters())
    buffers = dict(whole.named_non_persistent_buffers())
    for name, buffer in streamed.model.named_non_persistent_buffers():
        assert buffer.dtype == buffers[name].dtype and torch.equal(buffer, buffers.pop(name))
    assert not buffers
    with streamed.present(lambda name: True):
        expected = whole.state_dict()
        for name, weight in streamed.model.state_dict().items():
            assert weight.dtype == expected[name].dtype and torch.equal(weight, expected[name])
    assert all(weight.is_meta for weight in streamed.model.parameters())

    decoder, tokens = Decoder(streamed.model), ids(20)
    with streamed.present(lambda name: not name.startswith(f"{decoder.name}.")):
        start = decoder.start(tokens)
    hidden = start.hidden
    for number, call in enumerate(start.calls):
        with streamed.present(lambda name, layer=decoder.names[number]: name.startswith(f"{layer}.")):
            there = {name for name, weight in streamed.model.named_parameters() if not weight.is_meta}
            assert there and all(name.startswith(f"{decoder.names[number]}.") for name in there)
            hidden = decoder.run(number, hidden, call)
    with streamed.present(lambda name: not name.startswith(f"{decoder.name}.")):
        logits = decoder.logits(tokens, hidden)
    with torch.no_grad():
        assert torch.equal(logits, whole(input_ids=torch.tensor([tokens]), use_cache=False).logits)


def test_weights_go_when_reading_them_failed(configs: Any, built: Any, tmp_path: Path) -> None:
    built(configs["llama"]).save_pretrained(tmp_path)
    streamed = StreamedModel(tmp_path)
    with pytest.raises(RuntimeError, match="stop"), streamed.present(lambda name: "layers.1" in name):
        raise RuntimeError("stop")
    assert all(weight.is_meta for weight in streamed.model.parameters())


def test_a_missing_weight_is_refused_before_anything_runs(configs: Any, built: Any, tmp_path: Path) -> None:
    built(configs["llama"]).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = tensors.pop("model.layers.2.mlp.up_proj.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 weights .* 'model.layers.2.mlp.up_proj.weight'"):
        StreamedModel(tmp_path)
    save_file(tensors | {"model.layers.2.mlp.up_proj.weight": lost[1:].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"up_proj.weight is \(47, 32\) in the safetensors, config.json .* \(48, 32\)"):
        StreamedModel(tmp_path)


def test_a_missing_file_and_a_quantized_checkpoint_are_refused(configs: Any, built: Any, tmp_path: Path) -> None:
    built(configs["llama"]).save_pretrained(tmp_path, max_shard_size="20KB")
    last = max(tmp_path.glob("*.safetensors"))
    last.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"model.safetensors.index.json names {last.name}, which is not there"):
        StreamedModel(tmp_path)
    (tmp_path / "elsewhere").rename(last)
    text = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**text, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ValueError, match=r"its weights are quantized \(quantization_config in config.json: gptq"):
        StreamedModel(tmp_path)
