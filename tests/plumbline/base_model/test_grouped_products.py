"""Grouped products that are computed some experts at a time, against all at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from plumbline.base_model.grouped_products import GroupedProducts, UnknownProduct
from plumbline.base_model.row_file import RowFile

EXPERTS, WIDTH, INNER = 6, 32, 64


def tokens(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs in order of their experts, and offsets; the last rows belong to no expert."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(0, number, (EXPERTS,), generator=generator).sort()[0].to(torch.int32)
    return torch.randn(number, WIDTH, generator=generator, dtype=torch.bfloat16), ends


def test_two_products_with_code_between(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(EXPERTS, WIDTH, INNER, generator=generator, dtype=torch.bfloat16)
    second = torch.randn(EXPERTS, INNER, WIDTH, generator=generator, dtype=torch.bfloat16)
    samples = {row: tokens(20 + row, row) for row in range(3)}

    def run(row: int, weights: tuple[Tensor, Tensor]) -> Tensor:
        x, ends = samples[row]
        inner = functional.grouped_mm(x, weights[0], offs=ends)
        return functional.grouped_mm(functional.silu(inner), weights[1], offs=ends)[: ends[-1]] + 1

    absent = first.to("meta"), second.to("meta")
    with GroupedProducts(tmp_path) as products:
        for weights in (first, second):
            for row in samples:
                products.until(row, lambda row=row: run(row, absent))  # type: ignore[misc]
            for group in (range(1), range(1, 4), range(4, 6)):
                products.multiply(group, weights[group.start : group.stop].clone())
            products.complete()
        for row in samples:
            expected = run(row, (first, second))
            with products.known(row):
                assert torch.equal(run(row, absent), expected)
        with products.known(0), pytest.raises(UnknownProduct, match="mode: whole"):
            for _ in range(2):
                run(0, absent)


def test_a_pass_without_such_products_runs_to_its_end(tmp_path: Path) -> None:
    ended = list[int]()
    with GroupedProducts(tmp_path) as products:
        products.until(0, lambda: ended.append(0))
        products.multiply(range(2), torch.ones(2, 4, 4))
        products.complete()
        with products.known(0):
            pass
    assert ended == [0]


def test_rows_of_a_file(tmp_path: Path) -> None:
    file = RowFile(tmp_path)
    for key, rows in ((7, 3), (8, 2)):
        file.add(key, (rows, 4), torch.float32)
    file.write(7, 1, torch.ones(1, 4))
    assert 8 in file and 9 not in file
    assert file.read(7).sum(dim=1).tolist() == [0, 4, 0] and file.read(7, 1, 2).tolist() == [[1, 1, 1, 1]]
    assert file.read(8).tolist() == torch.zeros(2, 4).tolist()
    file.close()
    assert not list(tmp_path.iterdir())
