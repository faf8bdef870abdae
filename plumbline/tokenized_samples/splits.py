"""Splits by document hash: the split of a document does not depend on other documents."""

from __future__ import annotations

import hashlib

from plumbline.raw_corpus.document import APART

SPLITS = ("pool", "tuning", "report", *APART)
"""Every document is in one of them; `production` and `out_of_domain` are empty without such a source under `corpus:` in
params.yaml."""


def split_of_document(source: str, group: str, tuning: float = 0.1, report: float = 0.1) -> str:
    """The split of a document: that of its source for `production/file` and `out_of_domain/file`, else `split_of`."""
    name = source.partition("/")[0]
    return name if name in APART else split_of(group, tuning, report)


def split_of(group: str, tuning: float = 0.1, report: float = 0.1) -> str:
    """The split of the documents of a group, except for those of `APART`.

    The SHA-256 of the group is read as a number in [0, 1): below `tuning` the split is tuning, from `1 - report` on it
    is report, else pool. Adding documents moves no other one, and a change of one share does not affect the other.

    Raises:
        ValueError: the shares are negative or leave nothing to the pool.
    """
    if tuning < 0 or report < 0 or tuning + report >= 1:
        raise ValueError(f"splits: tuning {tuning} + report {report} must be non-negative and leave a pool (sum < 1)")
    position = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    if position < tuning:
        return "tuning"
    return "report" if position >= 1 - report else "pool"
