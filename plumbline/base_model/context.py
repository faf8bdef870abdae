"""The longest input of a base model, from its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plumbline.artifact import read_json

KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
"""Names of the context's length in configurations, most usual first."""


def context_length(folder: Path) -> int | None:
    """Most tokens that the model in a folder reads at once; None: its configuration does not say.

    Raises:
        OSError: there is no config.json.
        ValueError: it is no JSON.
    """
    return context_of(read_json(folder / "config.json"))


def context_of(config: Any) -> int | None:
    """Most tokens that a model with this configuration reads at once; None: the configuration does not say."""
    if not isinstance(config, Mapping):
        return None
    text = config.get("text_config")  # of a multimodal model
    own = [config[key] for key in KEYS if isinstance(config.get(key), int) and config[key] > 0]
    if not own:
        return context_of(text)
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    return max(own[0], _scaled(scaling)) if isinstance(scaling, Mapping) else int(own[0])


def _scaled(scaling: Mapping[str, Any]) -> int:
    """The context that a scaling of rotary positions reaches; 0 if it does not name its original one."""
    factor, original = scaling.get("factor"), scaling.get("original_max_position_embeddings")
    return int(factor * original) if isinstance(factor, int | float) and isinstance(original, int) else 0
