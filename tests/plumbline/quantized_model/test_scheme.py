"""Which Linears a scheme takes, and with which group size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.scheme import group_size_for, layer_group_sizes, quantizable_linears


@pytest.mark.parametrize(
    ("width", "asked", "used"), [(256, 128, 128), (768, 128, 128), (64, 128, 64), (172, 128, 86), (172, 32, 4)]
)
def test_group_size_of_known_widths(width: int, asked: int, used: int) -> None:
    assert group_size_for(width, asked, 4) == used


def test_no_group_size_means_per_channel() -> None:
    assert group_size_for(131, None, 4) is None


@given(st.integers(1, 4096), st.integers(1, 256))
def test_group_size_is_the_largest_divisor_or_refused(width: int, asked: int) -> None:
    largest = max(d for d in range(1, min(asked, width) + 1) if width % d == 0)
    if 4 + 16 / largest >= 16:
        with pytest.raises(ValueError, match="more room"):
            group_size_for(width, asked, 4)
    else:
        assert group_size_for(width, asked, 4) == largest


def test_prime_width_is_refused_by_layer_name() -> None:
    with pytest.raises(ValueError, match=r"mlp\.down: width 131"):
        layer_group_sizes({"mlp.down": nn.Linear(131, 8)}, SchemeParams(method="rtn", group_size=128))


def test_takes_all_linears_but_the_ignored(llama) -> None:
    names = set(quantizable_linears(llama, ("lm_head", "re:.*down_proj$")))
    assert len(names) == 2 * 6
    assert not any("down_proj" in name or name == "lm_head" for name in names)


def test_ignore_that_matches_nothing_is_an_error(llama) -> None:
    with pytest.raises(ValueError, match=r"'down_proj' matches no Linear"):
        quantizable_linears(llama, ("lm_head", "down_proj"))


def test_a_head_tied_to_the_embedding_is_refused(llama) -> None:
    with pytest.raises(ValueError, match="lm_head shares its weight"):
        quantizable_linears(llama, ())


def test_a_model_without_linears_is_refused(llama) -> None:
    with pytest.raises(ValueError, match="no Linear to quantize"):
        quantizable_linears(llama, ("Linear",))


def test_zero_points_that_would_not_load_are_refused_by_layer_name() -> None:
    linears = {"up": nn.Linear(64, 32), "router": nn.Linear(64, 8)}
    scheme = SchemeParams(method="rtn", group_size=32, symmetric=False)
    with pytest.raises(ValueError, match="router: 8 output channels.*ignore"):
        layer_group_sizes(linears, scheme)
    assert layer_group_sizes({"up": linears["up"]}, scheme) == {"up": 32}


def test_zero_points_take_one_group_size_that_divides_all_widths() -> None:
    scheme = SchemeParams(method="rtn", group_size=128, symmetric=False)
    assert set(layer_group_sizes({"a": nn.Linear(64, 32), "b": nn.Linear(172, 32)}, scheme).values()) == {4}
    with pytest.raises(ValueError, match=r"one group size must divide all input widths \[64, 131\]"):
        layer_group_sizes({"a": nn.Linear(64, 32), "b": nn.Linear(131, 32)}, scheme)
