"""Texts that a model writes, drawn so that they depend on the seed and the model alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from plumbline.base_model.one_thread import one_thread

BATCH = 16
"""Texts that are written side by side. A constant: products of other shapes may differ in their last bits."""


@dataclass(frozen=True, eq=False)
class Text:
    """What the model wrote at one attempt."""

    ids: NDArray[np.int32]
    """Start and continuation, without the end token."""
    log_probability: float
    """Mean over the continuation, natural logarithm, at temperature 1."""
    ended: bool
    """The model drew its end token before the length was reached."""


@torch.no_grad()
def write(
    model: PreTrainedModel,
    starts: NDArray[np.int32],
    uniforms: NDArray[np.float64],
    temperatures: tuple[float, ...],
    never: frozenset[int] = frozenset(),
    end: frozenset[int] = frozenset(),
) -> list[Text]:
    """Continue every start until its end token, or as far as there are numbers.

    A token is where the cumulative distribution, in order of token id and in float64, passes a given number of [0, 1):
    nothing else is random. The model runs on one thread, because a last bit that differs would change a whole text.

    Args:
        starts: (B, k), k >= 1.
        uniforms: (B, steps), in [0, 1).
        temperatures: of the first tokens in turn; the last one holds from there on.
        never: tokens that are not drawn.
        end: tokens that end a text.
    """
    sequences = torch.from_numpy(starts.astype(np.int64)).to(model.device)
    rows, steps = uniforms.shape
    drawn = np.zeros((rows, steps), dtype=np.int32)
    log_p = np.zeros((rows, steps))
    count = np.full(rows, steps)
    open_ = np.ones(rows, dtype=bool)
    banned = sorted(never - end)
    cache = None
    with one_thread():
        for step in range(steps):
            read = sequences if cache is None else sequences[:, -1:]
            answer = model(input_ids=read, past_key_values=cache, use_cache=True)
            cache = getattr(answer, "past_key_values", None)  # without one, the whole text is read again
            logits = answer.logits[:, -1].double().cpu().numpy()
            logits[:, banned] = -np.inf
            tokens = _draw(logits, temperatures[min(step, len(temperatures) - 1)], uniforms[:, step])
            drawn[:, step], log_p[:, step] = tokens, _log_softmax(logits)[np.arange(rows), tokens]
            ending = open_ & np.isin(tokens, sorted(end))
            count[ending] = step
            open_ &= ~ending
            if not open_.any():
                break
            sequences = torch.cat([sequences, torch.from_numpy(tokens[:, None]).to(model.device)], dim=1)
    return [
        Text(
            np.concatenate([starts[row], drawn[row, : count[row]]]).astype(np.int32),
            float(log_p[row, : count[row]].mean()) if count[row] else 0.0,
            bool(not open_[row]),
        )
        for row in range(rows)
    ]


def _draw(logits: NDArray[np.float64], temperature: float, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    weights = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
    reached = np.cumsum(weights, axis=1)
    aim = uniforms * reached[:, -1]
    return np.array([np.searchsorted(line, at, side="right") for line, at in zip(reached, aim, strict=True)])


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def repeated_share(ids: NDArray[np.int32], n: int) -> float:
    """Share of the n-grams that occurred before in the same text; 0 where there is none."""
    grams = np.lib.stride_tricks.sliding_window_view(ids, n) if len(ids) >= n else np.zeros((0, n), np.int32)
    return 1 - len(np.unique(grams, axis=0)) / len(grams) if len(grams) else 0.0
