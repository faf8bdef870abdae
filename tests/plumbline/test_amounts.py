"""Seconds, bytes and counts in words."""

from __future__ import annotations

import pytest

from plumbline.amounts import duration, rounded, size


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (45.4, "45 s"), (99, "99 s"), (100, "2 min"), (5999, "1 h 40 min")]
)
def test_a_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes() -> None:
    assert [size(count) for count in (0, 999, 276480, 13.5e9, 2e12)] == ["0 B", "999 B", "276 kB", "13.5 GB", "2 TB"]


def test_counts() -> None:
    assert [rounded(n) for n in (7, 99, 1234, 2_345_678)] == ["7", "99", "1,200", "2,300,000"]
