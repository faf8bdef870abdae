"""sample_page: reads a calibration set, its statistics and the corpus; writes the page that shows every sample."""

from __future__ import annotations

from pathlib import Path

from plumbline.artifact import write_json
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.sample_page.page import render
from plumbline.sample_page.params import PageParams
from plumbline.sample_page.shown import read_shown_set

PAGE = "samples.html"


def build_sample_page(
    params: PageParams, base: BaseCheckpoint, corpus: Path, calibration_set: Path, statistics: Path, out: Path
) -> None:
    """Write samples.html (one file, nothing from the network) and page.json, what it shows in numbers.

    Args:
        base: for the tokenizer; it is loaded only if texts are shown.
        corpus: the folder raw_corpus.

    Raises:
        ValueError: the set's samples and manifest disagree.
    """
    shown = read_shown_set(calibration_set, corpus, base.tokenizer() if params.texts else None, statistics)
    (out / PAGE).write_text(render(shown), encoding="utf-8")
    rows = sum(document.row is not None for sample in shown.samples for document in sample.documents)
    write_json(
        out / "page.json",
        {
            "choice": shown.name,
            "digest": shown.manifest["digest"],
            "samples": len(shown.samples),
            "texts": params.texts,
            "rows": rows,
            "samples_that_set_an_extreme": sum(bool(sample.sites) for sample in shown.samples),
            "notes": list(shown.notes),
        },
    )
