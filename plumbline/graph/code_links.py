"""Links from an asset's page to the function that defines it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import dagster as dg


def with_code_links(
    assets: Sequence[dg.AssetsDefinition | dg.AssetSpec],
) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The assets, each with the file and line of its function, which its page opens in an editor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # tests/orchestration holds what is used of it
        return [*dg.with_source_code_references(assets)]  # type: ignore[list-item]
