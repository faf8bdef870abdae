from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.tokenized_samples.splits import split_of, split_of_document

SHARES = st.floats(0, 0.49)


@given(st.text(), SHARES, SHARES)
def test_the_split_is_where_the_hash_falls(group: str, tuning: float, report: float) -> None:
    position = int(hashlib.sha256(group.encode()).hexdigest()[:16], 16) / 16**16
    expected = "tuning" if position < tuning else "report" if position >= 1 - report else "pool"
    assert split_of(group, tuning, report) == expected


@given(st.text(), SHARES, SHARES, SHARES)
def test_widening_one_share_leaves_the_other(group: str, tuning: float, report: float, wider: float) -> None:
    before, after = split_of(group, tuning, report), split_of(group, max(tuning, wider), report)
    assert (before == "report") == (after == "report")
    assert not (before == "tuning" and after == "pool")


def test_shares_are_met() -> None:
    found = [split_of(str(i), 0.1, 0.2) for i in range(20_000)]
    assert abs(found.count("tuning") / 20_000 - 0.1) < 0.01 and abs(found.count("report") / 20_000 - 0.2) < 0.01


def test_known_groups() -> None:
    """Artifacts out there depend on it: a change here moves documents between splits."""
    assert [split_of(name) for name in ("asyncio.tasks", "json", "xml.dom.minidom")] == ["pool", "tuning", "report"]


@pytest.mark.parametrize(("tuning", "report"), [(0.5, 0.5), (-0.1, 0.2), (0.2, -0.1)])
def test_bad_shares(tuning: float, report: float) -> None:
    with pytest.raises(ValueError, match="must be non-negative and leave a pool"):
        split_of("x", tuning, report)


@pytest.mark.parametrize("name", ["production", "out_of_domain"])
@given(st.text(), SHARES, SHARES)
def test_a_document_of_a_source_apart_is_in_no_other_split(name: str, group: str, tuning: float, report: float) -> None:
    assert split_of_document(f"{name}/a/b.txt", group, tuning, report) == name
    for source in (f"{name}s/a.txt", f"docs/{name}/a.txt", f"inbox/{name}.txt"):
        assert split_of_document(source, group, tuning, report) == split_of(group, tuning, report)
