"""Copies that share tensors and no module."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from plumbline.base_model.own_modules import with_own_modules


def test_tensors_are_shared_and_modules_are_not() -> None:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    own = with_own_modules(model)
    names = [name for name, _ in model.named_modules()]
    assert [name for name, _ in own.named_modules()] == names
    assert not {id(module) for module in own.modules()} & {id(module) for module in model.modules()}
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = (list(getattr(of, kind)(remove_duplicate=False)) for of in (own, model))
        assert len(ours) == len(theirs) and all(
            a[0] == b[0] and a[1] is b[1] for a, b in zip(ours, theirs, strict=True)
        )
    ids = torch.tensor([[1, 2, 3]])
    expected = model(ids).logits
    assert torch.equal(own(ids).logits, expected)
    own.model.layers[0].forward = lambda *_, **__: None
    assert torch.equal(model(ids).logits, expected)
