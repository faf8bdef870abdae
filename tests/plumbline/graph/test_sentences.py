"""Every artifact says in one sentence what it is; Dagster's page begins with it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from plumbline.artifact import read_json
from plumbline.graph.metadata import metadata_of
from tests.helpers.small_chain import CHOICE, SCHEME

FOLDERS = {
    "raw_corpus": "raw_corpus",
    "tokenized_samples": "tokenized_samples",
    "calibration_choice": f"calibration_choice/{CHOICE}",
    "calibration_set": f"calibration_set/{CHOICE}",
    "activation_stats": f"activation_stats/{CHOICE}",
    "quantized_model": f"quantized_model/{CHOICE}-{SCHEME}",
}


def summary_of(asset: str, folder: Path) -> dict:
    return importlib.import_module(f"plumbline.{asset}.summary").summary(folder)


@pytest.mark.parametrize("asset", FOLDERS)
def test_the_page_begins_with_a_sentence(artifacts: Path, asset: str) -> None:
    out = artifacts / FOLDERS[asset]
    first = next(iter(metadata_of(artifacts.parent, out, summary_of(asset, out), {}).values()))
    assert isinstance(first, str) and first.endswith(".") and first.count(" ") >= 4


def test_the_sentences_have_the_right_figures(artifacts: Path) -> None:
    accounting = read_json(artifacts / "tokenized_samples/accounting.json")
    header = read_json(artifacts / f"activation_stats/{CHOICE}/header.json")

    def sentence(asset: str) -> str:
        return str(summary_of(asset, artifacts / FOLDERS[asset])["sentence"])

    assert sentence("raw_corpus") == "40 documents from 40 files; no row set aside."
    assert sentence("calibration_choice") == "8 samples by random, seed 0."
    assert sentence("tokenized_samples").startswith(
        f"40 documents became {accounting['samples_out']} samples of {accounting['tokens_out']} tokens; "
    )
    assert sentence("activation_stats").startswith(f"8 samples of {header['tokens']} tokens went through ")
