"""Whole or layer by layer: `auto` goes by memory, but only where the model's layers can be run one at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

from plumbline.activation_stats import memory
from plumbline.activation_stats.build import build_activation_stats
from plumbline.activation_stats.params import ExecutionParams, StatisticsParams
from tests.helpers.checkpoint import checkpoint
from tests.helpers.tiny_models import random_llama
from tests.helpers.written_set import write_set


@pytest.fixture
def models(tmp_path: Path) -> Path:
    random_llama(vocab_size=50, hidden_size=32, intermediate_size=48).save_pretrained(tmp_path / "llama")
    config = Gemma4TextConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, hidden_size_per_layer_input=8, vocab_size_per_layer_input=50,
        num_kv_shared_layers=2, layer_types=["sliding_attention", "full_attention"] * 2,
    )  # fmt: skip
    Gemma4ForCausalLM(config).save_pretrained(tmp_path / "gemma4")
    return tmp_path


@pytest.mark.parametrize(("free", "llama"), [(1 << 40, "whole"), (0, "layerwise")])
def test_auto_goes_by_memory_where_it_can(models: Path, monkeypatch: pytest.MonkeyPatch, free: int, llama: str) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    for name, expected in (("llama", llama), ("gemma4", "whole")):
        assert memory.mode_of(ExecutionParams(), checkpoint(name, models), StatisticsParams()) == expected


@pytest.mark.parametrize(("shards", "workers", "times"), [(1, 4, 1), (2, 4, 2), (8, 4, 4), (8, 1, 1)])
def test_memory_is_counted_once_for_each_process_that_collects(
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    shards: int,
    workers: int,
    times: int,
) -> None:
    caplog.set_level("INFO", "plumbline")
    base, settings = checkpoint("llama", models), StatisticsParams(shards=shards)
    outline = memory.outline_of(ExecutionParams(), base)
    assert outline is not None
    needed = times * memory.needed_bytes(outline.model, settings)
    said = times * (memory.needed_layerwise(outline, settings, 4 << 30) + memory.REST)
    for free, mode in ((needed + 8, "whole"), (needed - 8, "layerwise")):
        there = int(free / memory.SHARE)
        monkeypatch.setattr(memory, "free_bytes", lambda device, there=there: there)
        assert memory.mode_of(ExecutionParams(workers=workers), base, settings) == mode
    assert f"at most {memory.gib(said)} of memory" in caplog.messages[-1]


def test_layerwise_is_refused_with_the_reason_where_layers_share_keys(models: Path) -> None:
    write_set(models / "set", vocabulary=50)
    (models / "out").mkdir()
    execution = ExecutionParams(mode="layerwise")
    with pytest.raises(ValueError, match=r"Gemma4ForCausalLM cannot be run layer by layer: its last 2 of 4 layers"):
        build_activation_stats(
            StatisticsParams(), checkpoint("gemma4", models), models / "set", models / "out", execution
        )
