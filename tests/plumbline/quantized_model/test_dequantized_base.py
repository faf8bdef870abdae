"""From a base model in FP8 to a quantized model: what was dequantized is recorded, and nothing of FP8 is left."""

from __future__ import annotations

from pathlib import Path

import torch

from plumbline.activation_stats.build import build_activation_stats
from plumbline.activation_stats.params import ExecutionParams, StatisticsParams
from plumbline.artifact import read_json
from plumbline.base_model.load import load_model
from plumbline.quantized_model.build import build_quantized_model
from plumbline.quantized_model.params import SchemeParams
from tests.helpers.checkpoint import checkpoint
from tests.helpers.quantized_checkpoints import to_fp8
from tests.helpers.tiny_models import make_base_model
from tests.helpers.written_set import write_set


def test_the_chain_from_fp8_to_int4(tmp_path: Path) -> None:
    to_fp8(make_base_model(tmp_path / "base", "bfloat16"), 32)
    write_set(tmp_path / "set")
    base = checkpoint("base", tmp_path, dequantize=True)
    for mode in ("whole", "layerwise"):
        (tmp_path / mode).mkdir()
        execution = ExecutionParams.model_validate({"mode": mode})
        build_activation_stats(StatisticsParams(), base, tmp_path / "set", tmp_path / mode, execution)
    files = [path.name for path in (tmp_path / "whole").iterdir()]
    assert all(
        (tmp_path / "whole" / name).read_bytes() == (tmp_path / "layerwise" / name).read_bytes() for name in files
    )

    scheme, out = SchemeParams(method="rtn", weight_bits=4, group_size=8), tmp_path / "out"
    out.mkdir()
    build_quantized_model("w4", scheme, base, tmp_path / "whole", tmp_path / "set", out)
    origin = {"name": "base", "revision": None, "digest": base.digest(), "dequantized_from": "fp8"}
    assert read_json(tmp_path / "whole" / "header.json")["base_model"] == origin
    record, config = read_json(out / "calibration.json"), read_json(out / "config.json")
    assert record["base_model"] == config["calibration"]["base_model"] == origin
    assert record["unloaded_tensors"] == {}
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert "fp8" not in str(config["quantization_config"]["config_groups"]) and "weight_block_size" not in str(config)
    state, quantized = base.load().state_dict(), load_model(out, "cpu").state_dict()
    assert not any("scale_inv" in name for name in quantized)
    kept = [name for name in quantized if name in state]
    assert kept and all(torch.equal(quantized[name], state[name]) for name in kept)
