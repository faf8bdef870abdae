"""The number of threads of matrix products, which other libraries know nothing of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.multi_set import collect_together
from plumbline.activation_stats.params import StatisticsParams
from plumbline.base_model.decoder import Decoder
from plumbline.base_model.load import load_model
from plumbline.base_model.one_thread import one_thread
from plumbline.base_model.threads import product_threads, settle_threads

SIZES = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
ORIGIN = {"base_model_digest": "", "fingerprint": ""}
ENTRIES: dict[str, Callable[[PreTrainedModel, Path], object]] = {
    "loading": lambda model, folder: load_model(folder),
    "layer by layer": lambda model, folder: Decoder(model),
    "collecting": lambda model, folder: collect(model, [("a", [1])], StatisticsParams(), **ORIGIN),
    "collecting together": lambda model, folder: collect_together(model, {"a": [1]}, [["a"]], ()),
}


@pytest.fixture(autouse=True)
def one() -> Iterator[None]:
    """One thread, and afterwards as many as before."""
    before = product_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_by_another_library() -> Iterator[None]:
    """As numba leaves it: OpenMP's number changed behind PyTorch's back."""
    if not torch.backends.mkl.is_available():
        pytest.skip("matrix products follow OpenMP in a PyTorch without MKL")
    with threadpool_limits(limits=2, user_api="openmp"):
        assert torch.get_num_threads() == 2
        yield


def test_products_stay_at_the_number_that_torch_was_given(two_by_another_library: None) -> None:
    assert product_threads() == 1
    settle_threads()
    assert product_threads() == torch.get_num_threads() == 1


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_it_is_settled_wherever_a_model_is_run(
    entry: Callable[[PreTrainedModel, Path], object], tmp_path: Path, two_by_another_library: None
) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    model.save_pretrained(tmp_path)
    entry(model, tmp_path)
    assert torch.get_num_threads() == 1


def test_one_thread_puts_back_what_products_had(two_by_another_library: None) -> None:
    with one_thread():
        pass
    assert product_threads() == 1


def test_the_number_that_torch_is_given_counts() -> None:
    torch.set_num_threads(3)
    assert product_threads() == 3
    settle_threads()
    assert product_threads() == torch.get_num_threads() == 3
