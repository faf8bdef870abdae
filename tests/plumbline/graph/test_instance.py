"""The history of runs: one connection to it per process at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from plumbline.graph.instance import instance


def test_within_a_context_it_is_the_same_one_and_is_closed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    with instance() as history:
        with instance() as again:
            assert again is history
        assert history.get_runs() == []  # still open
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "other"))
        with instance() as other:
            assert other is not history
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    with pytest.raises(ValueError, match="of the block"), instance() as later:
        assert later is not history
        raise ValueError("of the block")
    with instance() as last:
        assert last is not later
