"""The benchmark at its smallest: an increment gives the same bytes as everything anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import incremental_pipeline


def test_an_increment_gives_the_bytes_of_everything_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incremental_pipeline, "FILE", 20)
    found = incremental_pipeline.measure(tmp_path, 60, 20, embed=False)
    assert list(found["increment"]) == list(found["anew"]) == ["raw_corpus", "tokenized_samples"]
    for name, costs in found.items():
        for stage, cost in costs.items():
            files = [path for path in (tmp_path / name / stage).rglob("*") if path.is_file()]
            assert cost.disk == sum(path.stat().st_size for path in files) and cost.memory > 0 < cost.seconds
    before = {path.name: path.stat().st_ino for path in (tmp_path / "first").rglob("*.parquet")}
    after = {path.name: path.stat().st_ino for path in (tmp_path / "increment").rglob("*.parquet")}
    shards = [name for name in before if name != "duplicates.parquet"]
    assert shards and all(after[name] == before[name] for name in shards)  # linked, not written again
