"""Every architecture with an FP8 cache: equal to the simulation bit for bit, or refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.architectures.catalogue import CATALOGUE
from tests.architectures.cells import cells

SCHEME: dict[str, Any] = {
    "method": "rtn",
    "weight_bits": 8,
    "experts": "full_precision",
    "kv_cache": {"strategy": "attn_head", "range": "percentile", "percentile": 99.5},
}
QUICK = ("qwen3", "gemma3-text", "gemma3n-text", "qwen3-next", "jamba")
"""Norms of keys; a sliding window; shared keys and values; two hybrids."""
SHARED_KV = ("gemma3n-text", "gemma4-text", "gemma4")
"""Not read layer by layer."""


def outcomes(architecture: str, work: Path) -> dict[str, str]:
    return {
        name: cell.outcome if cell.outcome != "fault" else str(cell)
        for name, cell in cells(CATALOGUE[architecture], {"kv": SCHEME}, work)
    }


@pytest.mark.parametrize("architecture", QUICK)
def test_a_few_architectures_load_equal(architecture: str, tmp_path: Path) -> None:
    layerwise = "refused" if architecture in SHARED_KV else "equal"
    assert outcomes(architecture, tmp_path) == {"layerwise": layerwise, "kv": "equal"}


@pytest.mark.architectures
@pytest.mark.parametrize("architecture", CATALOGUE)
def test_every_architecture_loads_equal_or_is_refused(architecture: str, tmp_path: Path) -> None:
    assert not [outcome for outcome in outcomes(architecture, tmp_path).values() if outcome not in ("equal", "refused")]
