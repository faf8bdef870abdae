"""Statistics of mixtures whose experts are loaded some at a time: the same bits, and less memory than a layer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GptOssConfig,
    MixtralConfig,
    Qwen3_5MoeTextConfig,
    Qwen3MoeConfig,
)

from plumbline.activation_stats import expert_calls, memory
from plumbline.activation_stats.memory import needed_layerwise, site_bytes
from plumbline.activation_stats.params import StatisticsParams
from plumbline.base_model import large_mixture
from plumbline.base_model.grouped_products import GroupedProducts
from plumbline.base_model.streamed import StreamedModel
from tests.helpers.paths import PROJECT
from tests.plumbline.activation_stats.test_layerwise import assert_identical, layerwise, ordinary

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
CONFIGS: dict[str, Any] = {
    "qwen3": Qwen3MoeConfig(**SIZES, **EXPERTS, num_experts=8, head_dim=16),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=8),
    "deepseek-v3": DeepseekV3Config(  # a dense layer, and a shared expert
        **SIZES | {"num_hidden_layers": 3},
        **EXPERTS,
        first_k_dense_replace=1,
        n_routed_experts=8,
        n_shared_experts=1,
        kv_lora_rank=32,
        q_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        n_group=2,
        topk_group=1,
    ),
    "gpt-oss": GptOssConfig(  # transposed in one tensor, with biases and a gate of its own
        **SIZES, head_dim=16, num_local_experts=8, num_experts_per_tok=2, sliding_window=8
    ),
    "qwen3.5": Qwen3_5MoeTextConfig(  # in one tensor
        **SIZES,
        **EXPERTS,
        num_experts=8,
        head_dim=16,
        shared_expert_intermediate_size=32,
        layer_types=["full_attention", "full_attention"],
    ),
}


def write(folder: Path, config: Any, dtype: torch.dtype) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for weight in model.parameters():  # GPT-OSS leaves some as they are
            weight.copy_(torch.randn(weight.shape) * 0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[range]:
    """The groups of experts that are multiplied."""
    multiply, seen = GroupedProducts.multiply, list[range]()

    def noted(products: GroupedProducts, experts: range, weights: Tensor) -> None:
        assert len(weights) == len(experts)
        seen.append(experts)
        multiply(products, experts, weights)

    monkeypatch.setattr(GroupedProducts, "multiply", noted)
    return seen


def enlarge(monkeypatch: pytest.MonkeyPatch, folder: Path, experts: int) -> None:
    """Say that mixtures are large, and load so many experts at a time."""
    monkeypatch.setattr(large_mixture, "LARGE", 0)
    mixture = large_mixture.large_mixture(StreamedModel(folder), "model.layers.1")
    assert mixture is not None
    monkeypatch.setattr(large_mixture, "AT_A_TIME", mixture.bytes // mixture.experts * experts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("name", CONFIGS)
def test_same_bits_as_the_model_in_memory(
    name: str, dtype: torch.dtype, samples: Any, tmp_path: Path, groups: list[range], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "model", CONFIGS[name], dtype)
    settings = StatisticsParams(experts={"at_least": 3}, shards=2)
    expected = ordinary(folder, samples, settings)
    enlarge(monkeypatch, folder, 3)
    assert_identical(layerwise(folder, samples, settings, tmp_path), expected)
    assert groups == 2 * 2 * [range(3), range(3, 6), range(6, 8)]  # two products of two layers
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_experts_that_are_not_watched_and_few_totals_at_a_time(
    samples: Any, tmp_path: Path, groups: list[range], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "model", CONFIGS["qwen3"], torch.bfloat16)
    enlarge(monkeypatch, folder, 4)
    ignoring = StatisticsParams(ignore=("re:.*layers.0.mlp.experts.*", "lm_head"))
    monkeypatch.setattr(expert_calls, "EXPERTS", 2 * site_bytes(64, ignoring))  # one expert at a time
    assert_identical(layerwise(folder, samples, ignoring, tmp_path), ordinary(folder, samples, ignoring))
    halves = [range(4), range(4, 8)]
    assert groups == [*halves, *halves, *(range(number, number + 1) for number in range(8)), *halves]


def test_what_is_multiplied_in_another_way_stays_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = StreamedModel(write(tmp_path / "model", CONFIGS["qwen3"], torch.bfloat16))
    layer = "model.layers.0"
    assert large_mixture.large_mixture(streamed, layer) is None  # small
    monkeypatch.setattr(large_mixture, "LARGE", 0)
    assert large_mixture.large_mixture(streamed, layer) is not None
    streamed.model.set_experts_implementation("eager")
    assert large_mixture.large_mixture(streamed, layer) is None
    odd = Qwen3MoeConfig(**SIZES | EXPERTS | {"moe_intermediate_size": 40}, num_experts=8, head_dim=16)
    assert large_mixture.large_mixture(StreamedModel(write(tmp_path / "odd", odd, torch.bfloat16)), layer) is None


LIMITED = """
import sys
from pathlib import Path
import torch
from plumbline.activation_stats import expert_calls
from plumbline.activation_stats.layerwise import CollectionInputs, layer_by_layer
from plumbline.activation_stats.params import StatisticsParams
from plumbline.base_model import large_mixture
from plumbline.base_model.streamed import StreamedModel
from tests.helpers.limited_steps import ROOM, attempt

folder, scratch, large = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
samples = [(str(number), [number, 1, 2, 3] * 8) for number in range(3)]
inputs = CollectionInputs(samples, StatisticsParams.model_validate_json(sys.argv[4]), "", "")

def collect(name):
    for part in layer_by_layer(StreamedModel(folder / name, "cpu"), inputs, scratch, in_memory=0):
        pass

expert_calls.EXPERTS = large_mixture.AT_A_TIME = 6 << 20
large_mixture.LARGE = 0
collect("small")
large_mixture.LARGE = large
print(attempt(lambda: collect("large"), int(sys.argv[5]) + ROOM))
"""


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA limits memory on Linux")
def test_a_layer_that_does_not_fit_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that may take what is said before, half of the layer."""
    sizes = SIZES | EXPERTS | {"hidden_size": 256, "moe_intermediate_size": 512, "num_hidden_layers": 1}
    for name, experts in (("small", 8), ("large", 128)):
        write(tmp_path / name, Qwen3MoeConfig(**sizes, num_experts=experts, head_dim=16), torch.bfloat16)
    settings = StatisticsParams(hessian=False, mantissa_bits=0)
    streamed = StreamedModel(tmp_path / "large", "cpu")
    monkeypatch.setattr(large_mixture, "LARGE", 0)
    for module, name in ((large_mixture, "AT_A_TIME"), (memory, "EXPERTS")):
        monkeypatch.setattr(module, name, 6 << 20)
    said = needed_layerwise(streamed, settings, 0)
    layer = sum(weight.nbytes for weight in streamed.model.model.layers.parameters())
    assert said + (16 << 20) < layer / 2

    def ends(large: int) -> str:
        arguments = [str(tmp_path), str(tmp_path), str(large), settings.model_dump_json(), str(said)]
        command = [sys.executable, "-c", LIMITED, *arguments]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.strip()

    assert ends(0) == "done"
    assert ends(1 << 30) == "out of memory"
