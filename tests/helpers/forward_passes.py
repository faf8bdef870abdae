"""Counts the forward passes of a Llama."""

from __future__ import annotations

from typing import Any

import pytest


def count_forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the number of tokens of each forward pass."""
    from transformers.models.llama.modeling_llama import LlamaModel

    tokens: list[int] = []
    original = LlamaModel.forward

    def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        tokens.append(kwargs["input_ids"].numel())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", count)
    return tokens
