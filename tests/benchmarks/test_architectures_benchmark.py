"""The benchmark of architectures: its table, and the configurations of published models."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from benchmarks.architectures.published import PUBLISHED, lines
from benchmarks.architectures.table import head, reasons, row, totals
from tests.architectures.cells import Cell

SCHEMES = ("w4", "w8")
BROKEN = Cell("fault", 1.0, "x")
TABLE = {
    "a": {"layerwise": Cell("equal"), "w4": Cell("equal", 1.0), "w8": Cell("equal", 0.5)},
    "b": {
        "layerwise": Cell("refused", reason="no\nlayers"),
        "w4": Cell("fault", 1.0, "x"),
        "w8": Cell("fault", 1.0, "x"),
    },
}


def test_a_row_has_the_least_share_and_a_word_per_scheme() -> None:
    assert head(SCHEMES)[0].count("|") == row("a", TABLE["a"], SCHEMES).count("|") == head(SCHEMES)[1].count("|")
    assert row("a", TABLE["a"], SCHEMES) == "| a | 0.500 | = | = | = |"
    assert row("b", TABLE["b"], SCHEMES) == "| b | 1.000 | refused | fault | fault |"


def test_reasons_and_totals_count_every_cell() -> None:
    assert reasons(TABLE) == ["b (layerwise) refused: no layers", "b (w4, w8) fault: x"]
    assert totals(TABLE) == (
        "2 architectures, 6 cells: 3 equal (1 of them with a share below 0.99), 1 refused, 2 faults"
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_configuration_has_the_weights_that_its_authors_count(name: str) -> None:
    config = PUBLISHED[name].configuration()
    auto = AutoModelForImageTextToText if type(config) in AutoModelForImageTextToText._model_mapping else None
    with torch.device("meta"):
        model = (auto or AutoModelForCausalLM).from_config(config)
    weights = sum(weight.numel() for weight in model.parameters())
    assert weights == pytest.approx(PUBLISHED[name].billions * 1e9, rel=0.002)


def test_a_configuration_is_planned() -> None:
    printed = "\n".join(lines(["Mixtral-8x7B"], ["w4a16-gptq"]))
    assert printed.startswith("Mixtral-8x7B: MixtralForCausalLM\nw4a16-gptq: ")
    assert "of 46.7 B weights quantized" in printed and "(base 93.41 GB)" in printed
