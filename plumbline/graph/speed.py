"""How fast this machine is now: rates measured in a few seconds, on the base model and the corpus of the workspace."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plumbline.activation_stats.memory import free_bytes, weight_bytes
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.params import Params

SHARE = 0.25
"""A model with more weights than this share of the free memory is not loaded for a measurement."""
SECONDS = 0.7
"""A measurement repeats its work until this time has passed."""
EMBEDDED = 32


@dataclass(frozen=True)
class Speed:
    """Rates per second."""

    tokens: float
    """Through the base model."""
    embedded: float
    """Samples through the embedder."""
    text_bytes: float
    """Of text through the tokenizer."""
    flops: float
    """Multiplications and additions of a product in float64, as GPTQ uses it."""
    step_seconds: float
    """That a step of Dagster takes before and after its work."""


def measure(params: Params, base: BaseCheckpoint, root: Path, tokenizer: Any, texts: Sequence[str]) -> Speed:
    """Measure the rates.

    Args:
        tokenizer: of the base model.
        texts: of the corpus.

    Raises:
        ValueError, OSError: model or embedder cannot be loaded.
    """
    some = "\n".join(texts)[:200_000] or "a text " * 1000
    ids = tokenizer(some[:20_000], add_special_tokens=False, verbose=False)["input_ids"][:512] or [0] * 512
    return Speed(
        tokens=_forward(base, ids),
        embedded=_embedder(params, root, [some[start : start + 600] for start in range(0, len(some), 600)]),
        text_bytes=_rate(lambda: len(tokenizer(some, verbose=False)["input_ids"]) and len(some.encode())),
        flops=_product(torch.float64),
        step_seconds=_step(),
    )


def _rate(work: Callable[[], float]) -> float:
    """Amount of work per second; the first call warms up."""
    work()
    amount, started = 0.0, time.perf_counter()
    while (passed := time.perf_counter() - started) < SECONDS or not amount:
        amount += work()
    return amount / passed


def _forward(base: BaseCheckpoint, ids: Sequence[int]) -> float:
    model = base.skeleton()
    count = sum(x.numel() for x in model.parameters())
    if weight_bytes(model) > SHARE * free_bytes("cpu"):
        return _product(torch.float32) / (2 * count)
    loaded = base.loaded()
    batch = torch.tensor([ids], device=next(loaded.parameters()).device)

    def forward() -> float:
        with torch.inference_mode():
            loaded(batch)
        return batch.numel()

    return _rate(forward)


def _product(dtype: torch.dtype, width: int = 768) -> float:
    a = torch.ones(width, width, dtype=dtype)

    def multiply() -> float:
        a @ a
        return 2.0 * width**3

    return _rate(multiply)


def _embedder(params: Params, root: Path, texts: list[str]) -> float:
    from plumbline.sample_features.embedder import embed, embedder_folder, load

    features, some = params.features, texts[:EMBEDDED]
    model = load(embedder_folder(features, root), features.max_tokens, features.matmul_precision)
    return _rate(lambda: sum(len(at) for at, _ in embed(model, some, features.batch_size)))


def _step() -> float:
    """Seconds of a step of Dagster that does nothing, history in memory."""
    import dagster as dg

    from plumbline.graph.instance import QUIET

    @dg.asset
    def nothing() -> None:
        return None

    def step() -> float:
        dg.materialize([nothing], run_config=QUIET)
        return 1.0

    return 1 / _rate(step)
