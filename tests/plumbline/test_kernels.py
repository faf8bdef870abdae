"""PyTorch does the work of a compiled library that is absent, unloadable or of another version; it is logged once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from plumbline import kernels
from plumbline.activation_stats import kernel
from plumbline.histogram import n_buckets
from plumbline.quantized_model import descent, range_search, solver
from plumbline.quantized_model.gptq import gptq
from plumbline.quantized_model.grid import Grid
from plumbline.quantized_model.ranges import weight_range
from plumbline.quantized_model.rtn import rtn

SOURCES: dict[ModuleType, str] = {
    kernel: "activation_stats/kernel.c",
    solver: "quantized_model/solver.c",
    descent: "quantized_model/descent.c",
    range_search: "quantized_model/range_search.c",
}
MANTISSA_BITS = 4


def forget() -> None:
    for cached in (
        kernels._load,
        kernel.library,
        solver.library,
        solver.wide_library,
        descent.library,
        range_search.library,
    ):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No library is loaded before the test, and what it loaded is forgotten after it."""
    forget()
    yield
    monkeypatch.undo()
    forget()


def absent(module: ModuleType, folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kernels, "PACKAGE", folder)


def unloadable(module: ModuleType, folder: Path, patch: pytest.MonkeyPatch) -> None:
    source = folder / SOURCES[module]
    source.parent.mkdir()
    source.with_name(f"_{source.stem}{EXTENSION_SUFFIXES[0]}").write_text("compiled for another machine")
    patch.setattr(kernels, "PACKAGE", folder)


def of_another_version(module: ModuleType, folder: Path, patch: pytest.MonkeyPatch) -> None:
    if kernels.load(SOURCES[module], module.VERSION) is None:
        pytest.skip(f"{SOURCES[module]} is not compiled")
    patch.setattr(module, "VERSION", module.VERSION + 1)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def statistics() -> list[Tensor]:
    x = randn(300, 43).bfloat16()
    counts = torch.zeros(43, n_buckets(MANTISSA_BITS), dtype=torch.int32)
    columns = kernel.columns(x, counts, MANTISSA_BITS)
    total = kernel.HessianSums(43, x.dtype, x.device)
    total.add(x)
    return [columns.low, columns.high, columns.sums, counts, total.result()]


def solution() -> list[Tensor]:
    x = randn(500, 64).double()
    solved = gptq(randn(70, 64), x.T @ x, 500, Grid(3, 32))
    assert solved.lost is not None
    return [solved.weight.codes, solved.weight.scale, solved.lost]


def descended() -> list[Tensor]:
    x, W = randn(500, 64).double(), randn(70, 64)
    return list(descent.descend(W, x.T @ x, rtn(W, Grid(3, 32))))


def searched() -> list[Tensor]:
    return list(weight_range(randn(70, 64), Grid(3), torch.float32, "hessian", signed=True))


WORK: dict[ModuleType, Callable[[], list[Tensor]]] = {
    kernel: statistics,
    solver: solution,
    descent: descended,
    range_search: searched,
}
TOLERANCE = {kernel: 5e-6, solver: 1e-12, descent: 0.0, range_search: 0.0}
"""Of sums, relative to the largest; integers, extremes and scales are equal to the bit."""


@pytest.mark.parametrize("module", SOURCES, ids=lambda module: module.__name__.rpartition(".")[2])
@pytest.mark.parametrize(
    ("state", "said"),
    [(absent, "was not compiled"), (unloadable, "cannot be loaded"), (of_another_version, "expected")],
    ids=["absent", "unloadable", "of another version"],
)
def test_pytorch_does_the_work_of_a_library_that_cannot_be_used(
    module: ModuleType,
    state: Callable[[ModuleType, Path, pytest.MonkeyPatch], None],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = WORK[module]()
    forget()
    state(module, tmp_path, monkeypatch)
    with caplog.at_level(logging.INFO, kernels.__name__):
        results = [WORK[module]() for _ in range(2)]
    assert module.library() is None
    name = SOURCES[module].replace("/", "/_").removesuffix(".c")
    messages = [record.getMessage() for record in caplog.records if record.name == kernels.__name__]
    assert [name in message and said in message for message in messages if name in message] == [True]
    for result in results:
        for tensor, reference in zip(result, expected, strict=True):
            if tensor.dtype == torch.float64:
                assert float((tensor - reference).abs().max()) <= TOLERANCE[module] * float(reference.abs().max())
            else:
                assert torch.equal(tensor, reference)


@pytest.mark.parametrize("module", SOURCES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_the_library_is_used_where_it_was_compiled(module: ModuleType) -> None:
    source = kernels.PACKAGE / SOURCES[module]
    if not any(source.with_name(f"_{source.stem}{suffix}").is_file() for suffix in EXTENSION_SUFFIXES):
        pytest.skip(f"{source.name} is not compiled")
    assert kernels.load(SOURCES[module], module.VERSION) is not None
    assert kernels.implementation(SOURCES[module], module.VERSION + 1) == "fallback"
