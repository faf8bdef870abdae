"""The splits, by document hash: what a document is in never depends on what else was ingested."""

from __future__ import annotations

import hashlib

from plumbline.raw_corpus.document import APART

SPLITS = ("pool", "tuning", "report", *APART)
"""Every document is in one of them; `production` and `out_of_domain` are empty where params.yaml names no such source
under `corpus:`."""


def split_of_document(source: str, group: str, tuning: float = 0.1, report: float = 0.1) -> str:
    """The split of a document: for those of `production/file` or `out_of_domain/file` that one, else as `split_of`
    says."""
    name = source.partition("/")[0]
    return name if name in APART else split_of(group, tuning, report)


def split_of(group: str, tuning: float = 0.1, report: float = 0.1) -> str:
    """The split of every document of `group`, those of sources apart aside.

    The SHA-256 of the group is read as a number in [0, 1): below `tuning` it is tuning, above `1 - report` it is
    report, else pool. Adding documents moves none that is already there, and widening one share leaves the other.

    Raises:
        ValueError: the shares are negative or leave nothing to the pool.
    """
    if tuning < 0 or report < 0 or tuning + report >= 1:
        raise ValueError(f"splits: tuning {tuning} + report {report} must be non-negative and leave a pool (sum < 1)")
    position = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    if position < tuning:
        return "tuning"
    return "report" if position >= 1 - report else "pool"
