"""Experts that are loaded a few at a time, against all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from plumbline.base_model import expert_groups
from plumbline.base_model.load import load_model
from plumbline.base_model.streamed import StreamedModel

EXPERTS = 12
"""More than ten: the names of the last ones come before that of the third in the alphabet."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    config = Qwen3MoeConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, moe_intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, num_experts=EXPERTS, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("groups", "largest"), [(1, 12), (5, 3), (8, 2), (12, 1)])
def test_every_expert_gets_its_weights(
    folder: Path, groups: int, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, load = list[int](), StreamedModel._load

    def noted(streamed: Any, weights: Any, *args: Any, **more: Any) -> Any:
        numbers = {found[1] for key in weights if (found := expert_groups.NUMBER.search(key))}
        if numbers:
            sizes.append(len(numbers))
        return load(streamed, weights, *args, **more)

    expected, streamed = load_model(folder, "cpu").state_dict(), StreamedModel(folder, "cpu")
    monkeypatch.setattr(expert_groups, "GROUPS", groups)
    monkeypatch.setattr(StreamedModel, "_load", noted)
    with streamed.present(lambda name: name.startswith("model.layers.1.")):
        found = {name: weight for name, weight in streamed.model.state_dict().items() if not weight.is_meta}
        assert found and all(torch.equal(weight, expected[name]) for name, weight in found.items())
        assert found.keys() == {name for name in expected if name.startswith("model.layers.1.")}
    assert max(sizes) == largest and sum(sizes) == EXPERTS
    assert all(weight.is_meta for weight in streamed.model.state_dict().values())


def test_some_weights_of_the_experts_leave_the_others_absent(folder: Path) -> None:
    expected, streamed = load_model(folder, "cpu").state_dict(), StreamedModel(folder, "cpu")
    name = "model.layers.0.mlp.experts.down_proj"
    with streamed.present(lambda other: other == name):
        found = {key: weight for key, weight in streamed.model.state_dict().items() if not weight.is_meta}
        assert found.keys() == {name} and torch.equal(found[name], expected[name])
        assert streamed.model.state_dict()["model.layers.0.mlp.experts.gate_up_proj"].shape == (EXPERTS, 16, 16)


def test_some_experts_alone(folder: Path) -> None:
    expected, streamed = load_model(folder, "cpu").state_dict(), StreamedModel(folder, "cpu")
    name = "model.layers.1.mlp.experts"
    module: Any = streamed.model.get_submodule(name)
    assert set(streamed.stored_experts) == {"model.layers.0.mlp.experts", name}
    with streamed.experts(name, ["gate_up_proj"], range(9, 11)):
        assert torch.equal(module.gate_up_proj, expected[f"{name}.gate_up_proj"][9:11]) and module.down_proj.is_meta
    assert module.gate_up_proj.is_meta and module.gate_up_proj.shape == (EXPERTS, 16, 16)
