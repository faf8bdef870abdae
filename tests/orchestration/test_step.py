"""What an artifact's summary looks like in Dagster."""

from __future__ import annotations

import dagster as dg

from orchestration.step import as_metadata


def test_a_summary_becomes_what_people_can_read() -> None:
    metadata = as_metadata(
        {
            "samples": 64,
            "exact": True,
            "kl_mean": 0.011454767796978588,
            "shares": {"prose": 0.25},
            "sentences": ["Domains are off by 8 %.", "Lengths are off by 2 %."],
            "names": ["prose", "code"],
            "layers": [{"layer": "q_proj", "bits": 4, "shape": [2, 3], "error": 0.0023351290728896856}],
            "nothing": None,
            "nobody": [],
            "none": {},
        }
    )
    assert metadata["samples"] == 64 and metadata["exact"] is True
    assert metadata["kl_mean"] == 0.0114548
    assert metadata["shares"] == dg.MetadataValue.json({"prose": 0.25})
    assert metadata["sentences"] == dg.MetadataValue.md("- Domains are off by 8 %.\n- Lengths are off by 2 %.")
    assert metadata["names"] == dg.MetadataValue.json(["prose", "code"])
    assert metadata["layers"].records == [
        dg.TableRecord({"layer": "q_proj", "bits": 4, "shape": "[2, 3]", "error": 0.00233513})
    ]
    assert set(metadata) == {"samples", "exact", "kl_mean", "shares", "sentences", "names", "layers"}
