"""Results outside the artifact: found again exactly, and only where they apply."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from plumbline.evaluation.held_out import HeldOut
from plumbline.quantized_model.params import SchemeParams
from plumbline.study.measuring import _factors, _parts, documents_of
from plumbline.study.result_cache import Measured, ResultCache
from tests.helpers.study import Small

RESULT = Measured(np.array([0.1, 1 / 3, 1e-17]), 5, 16, 900, "d" * 64, 1)


def test_a_result_comes_back_bit_by_bit(tmp_path: Path) -> None:
    kept = ResultCache(tmp_path / "new", {"code": "1"})
    assert kept.load(scheme="w4") is None
    kept.store(RESULT, scheme="w4")
    found = kept.load(scheme="w4")
    assert found is not None and found.kl.tobytes() == RESULT.kl.tobytes()
    assert replace(found, kl=RESULT.kl) == RESULT
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".json"]  # no draft is left


def test_a_result_applies_under_its_own_conditions_only(tmp_path: Path) -> None:
    ResultCache(tmp_path, {"code": "1"}).store(RESULT, scheme="w4", share=0.8)
    assert ResultCache(tmp_path, {"code": "1"}).load(share=0.8, scheme="w4") is not None
    assert ResultCache(tmp_path, {"code": "2"}).load(share=0.8, scheme="w4") is None
    assert ResultCache(tmp_path, {"code": "1"}).load(share=0.7, scheme="w4") is None


def test_a_document_of_one_token_is_none() -> None:
    ids = [np.arange(length) for length in (3, 1, 2, 1)]
    held_out = HeldOut(["a", "b", "c", "d"], ["x", "x", "y", "z"], ["prose", "prose", "code", "code"], ids, {})
    documents, of_sample = documents_of(held_out)
    assert (documents.names, documents.domains) == (["y", "x"], ["code", "prose"])
    assert documents.tokens.tolist() == [1, 2] and of_sample.tolist() == [1, 1, 0, -1]


def test_cells_are_measured_in_as_few_parts_as_fit(small: Small) -> None:
    from plumbline.study.draws import cells

    todo = cells(small.params())
    parts = list(_parts(todo, 7))
    assert [len(part) for part in parts] == [6, 7, 7, 6, 7, 7] and [cell for part in parts for cell in part] == todo
    assert list(_parts(todo, 100)) == [todo]


def test_factors_are_cached_only_if_they_are_read_twice() -> None:
    """Those of a 135 M model take 770 MB, and two cells are worked on at a time."""
    w4, w3 = (SchemeParams(method="gptq", weight_bits=bits, group_size=64) for bits in (4, 3))
    plain = w4.model_copy(update={"act_order": False})
    mixed = SchemeParams.model_validate({"method": "gptq", "group_size": 64, "mixed": {"average_bits": 3.5}})
    for schemes, cached in (([w4, w3], True), ([w4, plain], False), ([w4, w3, plain], True), ([mixed], True)):
        assert (_factors(schemes).max_bytes > 0) is cached


def test_a_result_that_is_cut_short_is_measured_again(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path, {"code": "1"})
    cache.store(RESULT, scheme="w4")
    [file] = tmp_path.iterdir()
    file.write_text(file.read_text()[:-9])
    assert cache.load(scheme="w4") is None
