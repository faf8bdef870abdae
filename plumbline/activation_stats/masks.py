"""The tokens of a calibration set that count: all, or in chats those of the assistant (`statistics.tokens`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.totals import Masks
from plumbline.calibration_set.reader import read_calibration_set


def masks_of(calibration_set: Path, settings: StatisticsParams) -> Masks | None:
    """The masks for `collect`; None where every token counts.

    Raises:
        ValueError: the set has no assistant spans, or none of its tokens counts.
    """
    if settings.tokens == "all":
        return None
    names = pq.read_schema(calibration_set / "samples.parquet").names
    if "assistant_spans" not in names:
        raise ValueError(
            f"statistics.tokens: assistant in params.yaml, but calibration set {calibration_set.name} does not say "
            "what the assistant wrote; tokenize and choose the set anew"
        )
    table = read_calibration_set(calibration_set, ["sample_id", "n_tokens", "assistant_spans"])
    columns = (table[name].to_pylist() for name in table.column_names)
    masks = {
        name: torch.from_numpy(mask_of(spans, tokens))
        for name, tokens, spans in zip(*columns, strict=True)
        if spans is not None
    }
    if len(masks) == table.num_rows and not any(bool(mask.any()) for mask in masks.values()):
        raise ValueError(
            f"statistics.tokens: assistant in params.yaml, but no token of calibration set {calibration_set.name} was "
            "written by an assistant; set statistics.tokens: all, or choose chats that have its turns"
        )
    return masks


def mask_of(spans: Sequence[int], tokens: int) -> NDArray[np.bool_]:
    """Mask (tokens,): True within the spans.

    Raises:
        ValueError: the spans are not ascending or exceed the tokens.
    """
    edges = np.asarray(spans, np.int64)
    if len(edges) % 2 or (len(edges) and not (edges[0] >= 0 and edges[-1] <= tokens and (np.diff(edges) > 0).all())):
        raise ValueError(f"assistant_spans {list(spans)} do not fit {tokens} tokens; tokenize and choose the set anew")
    mask = np.zeros(tokens, bool)
    for start, stop in edges.reshape(-1, 2):
        mask[start:stop] = True
    return mask


def counted(masks: Masks | None, samples: int, tokens: int) -> dict[str, int]:
    """Number of tokens that count, and of samples that count as a whole because they have no mask; for the summary.

    Args:
        tokens: number of tokens of all samples.
    """
    if masks is None:
        return {}
    left_out = sum(int((~mask).sum()) for mask in masks.values())
    return {"counted_tokens": tokens - left_out, "samples_without_mask": samples - len(masks)}
