"""Every architecture under every scheme: equal to the simulation bit for bit, or refused before any work."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from tests.architectures.catalogue import CATALOGUE
from tests.architectures.cells import SCHEMES, cells
from tests.architectures.expected import LAYERWISE, REFUSED, SHARES, deviation

QUICK = ("llama-bias", "llama-sharded", "qwen3-moe", "deepseek-v3", "gpt-oss", "qwen3.5-text", "zamba2", "gemma3")
QUICK_SCHEMES = ("w4-gptq", "w8a8-static")


def deviations(architecture: str, schemes: Collection[str], work: Path) -> list[str]:
    """A line per cell that is not as expected."""
    entries = {name: SCHEMES[name] for name in schemes}
    return [
        f"{scheme}: {cell}; {problem}"
        for scheme, cell in cells(CATALOGUE[architecture], entries, work)
        if (problem := deviation(architecture, scheme, cell))
    ]


@pytest.mark.parametrize("architecture", QUICK)
def test_a_few_architectures_become_what_is_expected(architecture: str, tmp_path: Path) -> None:
    assert not deviations(architecture, QUICK_SCHEMES, tmp_path)


@pytest.mark.architectures
@pytest.mark.parametrize("architecture", CATALOGUE)
def test_every_architecture_becomes_what_is_expected(architecture: str, tmp_path: Path) -> None:
    assert not deviations(architecture, SCHEMES, tmp_path)


def test_the_tables_name_nothing_else() -> None:
    for table in (REFUSED, SHARES):
        assert set(table) <= set(CATALOGUE)
        named = [scheme for entries in table.values() for schemes in entries for scheme in schemes]
        assert set(named) <= {LAYERWISE, *SCHEMES}
