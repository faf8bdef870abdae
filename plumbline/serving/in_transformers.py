"""What transformers says of the sequences that the engine scored: one forward pass per sequence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from plumbline.serving.comparison import Scored


def scored(model: Any, sequences: Sequence[Sequence[int]], prompts: Sequence[int]) -> list[Scored]:
    """Score sequences with a model of transformers.

    A sequence is a pass of its own, so that nothing is padded, and the attention mask is given: transformers would
    else mask a begin token whose id is that of padding.

    Args:
        sequences: token ids, two or more each.
        prompts: number of tokens of each prompt.
    """
    return [_one(model, sequence, prompt) for sequence, prompt in zip(sequences, prompts, strict=True)]


@torch.inference_mode()
def _one(model: Any, sequence: Sequence[int], prompt: int) -> Scored:
    ids = torch.tensor([list(sequence)], device=model.device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, :-1].float()
    likely = torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None]).squeeze(-1)
    return Scored(
        likely.double().cpu().numpy().astype(np.float64), logits.argmax(-1).cpu().numpy().astype(np.int64), prompt
    )


@contextlib.contextmanager
def noise_in_last_bits(model: Any, seed: int = 0) -> Iterator[None]:
    """Multiply the inputs of quantized layers by 1 + noise of the size of the dtype's last bit.

    Sums in another order, layer after layer, make differences of that size.

    A model without such layers (decompressed while it was loaded) is left as it is.
    """
    generator = torch.Generator().manual_seed(seed)

    def disturb(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        x = arguments[0]
        noise = torch.randn(x.shape, generator=generator).to(x.device) * torch.finfo(x.dtype).eps
        return ((x.float() * (1 + noise)).to(x.dtype), *arguments[1:])

    linears = (module for module in model.modules() if isinstance(module, torch.nn.Linear))  # not attention's cache
    layers = [linear for linear in linears if getattr(linear, "quantization_scheme", None) is not None]
    handles = [layer.register_forward_pre_hook(disturb) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
