"""The file with the base model's answers: exact, checked when it is read, and there only if it is whole."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plumbline.base_model.load import load_model
from plumbline.evaluation.held_out import HeldOut, batches, predicted_logits
from plumbline.judgement import reference
from plumbline.judgement.reference import Reference, ReferenceKey, layer_outputs, of_layers, write_reference
from plumbline.judgement.texts import read_texts, tokenized
from tests.helpers.checkpoint import checkpoint

KEY = ReferenceKey("b" * 64, "t" * 64, "x" * 64)
BATCH = 100


@pytest.fixture(scope="module")
def held_out(models: Path, texts: Path) -> HeldOut:
    return tokenized(read_texts([texts]), checkpoint(models / "base"), 40, None, None)[0]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def base(models: Path, request: pytest.FixtureRequest) -> Any:
    return load_model(models / "base", "cpu").to(getattr(torch, request.param))


def test_answers_come_back_bit_for_bit(base: Any, held_out: HeldOut, tmp_path: Path) -> None:
    path = tmp_path / "new" / "reference.safetensors"
    done: list[int] = []
    write_reference(path, KEY, held_out, BATCH, base, done.append)
    read = Reference(path, KEY, held_out, BATCH)
    assert len(read.work) > 3 and sum(done) == sum(len(ids) - 1 for ids in held_out.tokens)
    for index, batch in enumerate(read.work):
        logits = predicted_logits(base, batch)
        prediction = read.prediction(index, torch.device("cpu"))
        assert prediction.logits.dtype == logits.dtype and torch.equal(prediction.logits, logits)
        assert torch.equal(prediction.targets, batch.targets)
    assert read.layers == 2
    for index, batch in enumerate(read.layer_work):
        for stored, computed in zip(read.hidden(index), layer_outputs(base, batch), strict=True):
            assert torch.equal(stored, computed)
    # other batches: the rows are those of the samples, not of the batches
    other = Reference(path, KEY, held_out, 10 * BATCH)
    torch.testing.assert_close(
        torch.cat([other.prediction(index, torch.device("cpu")).logits for index in range(len(other.work))]),
        torch.cat([predicted_logits(base, batch) for batch in batches(held_out, 10 * BATCH)]),
        rtol=0.02 if base.dtype == torch.bfloat16 else 1e-4,
        atol=0.1 if base.dtype == torch.bfloat16 else 1e-4,
    )
    assert set(load_file(path)) >= {"logits.0", "hidden.0"}  # a plain safetensors file


@pytest.mark.parametrize(
    ("what", "key"),
    [
        ("base model", ReferenceKey("0" * 64, KEY.tokenizer, KEY.texts)),
        ("tokenizer", ReferenceKey(KEY.base_model, "0" * 64, KEY.texts)),
        ("texts", ReferenceKey(KEY.base_model, KEY.tokenizer, "0" * 64)),
    ],
)
def test_answers_of_others_are_refused(
    models: Path, held_out: HeldOut, tmp_path: Path, what: str, key: ReferenceKey
) -> None:
    path = tmp_path / "reference.safetensors"
    write_reference(path, KEY, held_out, BATCH, load_model(models / "base", "cpu"))
    with pytest.raises(ValueError, match=f"answers of another {what} .digest"):
        Reference(path, key, held_out, BATCH)


def test_other_files_are_refused(models: Path, held_out: HeldOut, tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not of reference logits"):
        Reference(path, KEY, held_out, BATCH)
    write_reference(path, KEY, held_out, BATCH, load_model(models / "base", "cpu"))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a file of reference logits"):
        Reference(path, KEY, held_out, BATCH)


def test_a_run_that_is_cut_off_leaves_no_file(models: Path, held_out: HeldOut, tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"

    def stop(tokens: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_reference(path, KEY, held_out, BATCH, load_model(models / "base", "cpu"), stop)
    assert not any(tmp_path.iterdir())


def test_too_small_a_disk_is_said_before_the_work(
    models: Path, held_out: HeldOut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    done: list[int] = []
    with pytest.raises(ValueError, match=r"logits need 0.0 GB .* 260 tokens in the vocabulary.*--reference-logits"):
        write_reference(tmp_path / "r", KEY, held_out, BATCH, load_model(models / "base", "cpu"), done.append)
    assert done == [] and not any(tmp_path.iterdir())


def test_layers_are_compared_on_the_samples_of_lowest_id(held_out: HeldOut, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "LAYER_TOKENS", 60)
    chosen = of_layers(held_out)
    assert set(chosen.sample_ids) == set(sorted(held_out.sample_ids)[: len(chosen.sample_ids)])
    assert 60 <= sum(map(len, chosen.tokens)) < 60 + 40
    for name, ids in zip(chosen.sample_ids, chosen.tokens, strict=True):
        assert ids is held_out.tokens[held_out.sample_ids.index(name)]
