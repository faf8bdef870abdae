"""The longest input of a model, from its configuration."""

from __future__ import annotations

from typing import Any

import pytest

from plumbline.base_model.context import context_length, context_of
from plumbline.tokenized_samples.params import TokenizeParams
from tests.helpers.paths import BUNDLED


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024, "n_ctx": 512}, 1024),
        ({"text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": None}, 4096),
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"factor": 8.0, "original_max_position_embeddings": 8192},
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        ({"max_position_embeddings": -1}, None),
        ({"max_position_embeddings": "many"}, None),
        ({}, None),
        ([], None),
    ],
)
def test_it_is_read_wherever_a_configuration_has_it(config: Any, length: int | None) -> None:
    assert context_of(config) == length


def test_max_length_is_the_context_unless_it_is_set() -> None:
    context = context_length(BUNDLED)
    assert context is not None and TokenizeParams().within(context).max_length == context
    assert TokenizeParams(max_length=20).within(context).max_length == 20
    assert TokenizeParams(max_length=20).within(None).max_length == 20
    with pytest.raises(ValueError, match=r"tokenize\.max_length: found none.*set max_length"):
        TokenizeParams().within(None)
    with pytest.raises(ValueError, match=r"tokenize\.max_length: found 65, but the base model reads at most 64"):
        TokenizeParams(max_length=65).within(64)
