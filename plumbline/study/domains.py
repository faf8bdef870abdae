"""Differences of rules from the baseline per domain, without a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from plumbline.study.result_cache import Documents

KL = Callable[[str, int, str], np.ndarray]
"""(scheme, n, rule) -> float64 (draws, documents): KL summed over a document's tokens."""


def by_domain(
    documents: Documents, kl: KL, grid: Sequence[tuple[str, int]], baseline: str, rules: Sequence[str]
) -> list[dict[str, Any]]:
    """Mean KL per token of every rule in every domain, and its change from the baseline's in the same domain.

    Args:
        grid: (scheme, n).
        rules: the baseline among them.

    Returns:
        Per scheme, n and rule: `domains`, by name `kl_mean` over draws and tokens, and `difference`, relative; None
        if the baseline's is zero.
    """
    names = np.array(documents.domains)
    inside = {str(name): names == name for name in np.unique(names)}
    rows = []
    for scheme, n in grid:
        means = {
            rule: {
                name: float(kl(scheme, n, rule)[:, mask].mean(axis=0).sum() / documents.tokens[mask].sum())
                for name, mask in inside.items()
            }
            for rule in rules
        }
        for rule in rules:
            domains = {
                name: {
                    "kl_mean": mean,
                    "difference": mean / means[baseline][name] - 1 if means[baseline][name] > 0 else None,
                }
                for name, mean in means[rule].items()
            }
            rows.append({"scheme": scheme, "n": n, "rule": rule, "domains": domains})
    return rows
