"""benchmarks/formats: that a format is the preset it is compared with, and that every solver acts on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compressed_tensors.quantization import QuantizationArgs, preset_name_to_scheme

from benchmarks.formats.arms import ADAROUND, FORMATS, GPTQ, NONE, PRESETS, RTN, arms
from benchmarks.formats.models import beginnings
from benchmarks.formats.peer import recipe
from benchmarks.peers.subjects import held_out_of
from plumbline.quantized_model.quantization_config import activation_args, weight_args
from plumbline.quantized_model.scheme import grid_of_scheme


def stored(args: QuantizationArgs | None) -> dict[str, Any] | None:
    """What decides numbers and layout: all but the observer, which is how a tool finds ranges."""
    if args is None:
        return None
    return {key: value for key, value in args.model_dump(mode="json").items() if key not in ("observer", "actorder")}


@pytest.mark.parametrize("name", PRESETS)
def test_a_format_is_llm_compressors_preset(name: str) -> None:
    preset = preset_name_to_scheme(PRESETS[name], ["Linear"])
    scheme = arms(name)[RTN]
    own = None if scheme.activations is None else stored(activation_args(scheme.activations))
    assert stored(weight_args(grid_of_scheme(scheme, None, scheme.group_size))) == stored(preset.weights)
    assert own == stored(preset.input_activations)
    assert (
        recipe(name, RTN)["quantization_stage"]["quantization_modifiers"]["QuantizationModifier"]["scheme"]
        == (PRESETS[name])
    )


@pytest.mark.parametrize("name", FORMATS)
def test_solvers_share_the_format_and_no_calibration_reads_no_statistics(name: str) -> None:
    schemes = arms(name)
    assert not schemes[NONE].reads and schemes[GPTQ].method == "gptq"
    four_bits = schemes[RTN].weight_bits == 4
    assert (ADAROUND in schemes) == four_bits
    for scheme in schemes.values():
        assert (scheme.weight_type, scheme.weight_bits, scheme.group_size, scheme.block_structure) == (
            schemes[RTN].weight_type,
            schemes[RTN].weight_bits,
            schemes[RTN].group_size,
            schemes[RTN].block_structure,
        )


def test_the_first_tokens_of_a_few_documents_per_domain_are_judged() -> None:

    tokens = [np.arange(5, dtype=np.int64) + row for row in range(5)]
    held_out = held_out_of(["a", "a", "a", "b", "a"], ["x", "x", "y", "x", "z"], tokens)
    few = beginnings(held_out, 2, 3)
    assert list(zip(few.domains, few.doc_ids, strict=True)) == [("a", "x"), ("a", "y"), ("b", "x")]
    assert [ids.tolist() for ids in few.tokens] == [[0, 1, 2], [2, 3, 4], [3, 4, 5]]
