"""Figures of a checkpoint, against their definitions in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from plumbline.base_model.load import load_model
from plumbline.evaluation.held_out import HeldOut
from plumbline.judgement.measured import MeasuredCheckpoint, documents, layer_figures, measure_checkpoint, summary
from plumbline.judgement.reference import Reference, ReferenceKey, write_reference
from plumbline.judgement.texts import read_texts, tokenized
from tests.helpers.checkpoint import checkpoint
from tests.helpers.tiny_models import random_llama

KEY = ReferenceKey("b", "t", "x")


@pytest.fixture(scope="module")
def held_out(models: Path, texts: Path) -> HeldOut:
    """The texts, and what each of two models writes: there, it has every next token right."""
    read = tokenized(read_texts([texts]), checkpoint(models / "base"), 40, None, None)[0]
    ids, tokens = [], []
    for name in ("base", "far"):
        model, written = load_model(models / name, "cpu"), [70]
        while len(written) < 24:
            written.append(int(model(torch.tensor([written])).logits[0, -1].argmax()))
        ids.append(f"written by {name}")
        tokens.append(np.array(written))
    more = (ids, ids, ["written"] * 2, tokens)
    own = (read.sample_ids, read.doc_ids, read.domains, read.tokens)
    return HeldOut(*(mine + theirs for mine, theirs in zip(own, more, strict=True)), read.choice)


@pytest.fixture(scope="module")
def answers(models: Path, held_out: HeldOut, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    path = tmp_path_factory.mktemp("reference") / "r.safetensors"
    write_reference(path, KEY, held_out, 150, load_model(models / "base", "cpu"))
    return Reference(path, KEY, held_out, 150)


@pytest.fixture(scope="module")
def measured(models: Path, answers: Reference) -> MeasuredCheckpoint:
    return measure_checkpoint(answers, load_model(models / "far", "cpu"))


def test_every_figure_is_that_of_its_definition(models: Path, held_out: HeldOut, measured: MeasuredCheckpoint) -> None:
    base, own = (load_model(models / name, "cpu").double() for name in ("base", "far"))
    kl, reverse, lost, won, nll = [], [], [], [], []
    errors: list[list[torch.Tensor]] = [[], []]
    for ids in held_out.tokens:
        tokens = torch.from_numpy(ids)[None]
        with torch.inference_mode():
            answers = [model(tokens, output_hidden_states=True) for model in (base, own)]
        p, q = (torch.log_softmax(answer.logits[0, :-1], -1) for answer in answers)
        true = tokens[0, 1:]
        kl.append((p.exp() * (p - q)).sum(-1))
        reverse.append((q.exp() * (q - p)).sum(-1))
        nll.append(-q.gather(-1, true[:, None])[:, 0])
        right, still = (part.argmax(-1) == true for part in (p, q))
        lost.append(right & ~still)
        won.append(~right & still)
        for layer in range(2):
            b, o = (answer.hidden_states[layer + 1][0] for answer in answers)
            errors[layer].append((o - b).square().sum(-1) / b.square().sum(-1))
    np.testing.assert_allclose(measured.tokens.kl, torch.cat(kl).numpy(), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(measured.reverse_kl, torch.cat(reverse).numpy(), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(measured.tokens.nll_quantized, torch.cat(nll).numpy(), rtol=1e-4)
    assert measured.lost.tolist() == torch.cat(lost).tolist() and measured.lost.sum() > 3
    assert measured.won.tolist() == torch.cat(won).tolist() and measured.won.sum() > 3
    expected = [float(torch.cat(layer).mean()) for layer in errors]
    assert measured.layers == pytest.approx(expected, rel=1e-3)


def test_documents_add_up_to_the_whole(held_out: HeldOut, measured: MeasuredCheckpoint) -> None:
    table, whole = documents(measured, held_out), summary(measured, held_out, (16, 32))
    tokens = table["n_tokens"].to_numpy()
    assert tokens.sum() == whole["tokens"] and table.num_rows == 20
    assert table["kl"].to_numpy().sum() / tokens.sum() == pytest.approx(whole["kl_mean"])
    assert table["reverse_kl"].to_numpy().sum() / tokens.sum() == pytest.approx(whole["reverse_kl_mean"])
    assert table["lost"].to_numpy().sum() / tokens.sum() == pytest.approx(whole["correct_to_incorrect"])
    assert whole["flips"] == pytest.approx(whole["correct_to_incorrect"] + whole["incorrect_to_correct"])
    assert set(whole["by_domain"]) == {"code", "prose", "mine", "written"}
    assert [(part["shortest"], part["longest"]) for part in whole["by_length"]] == [(1, 16), (17, 32), (33, None)]
    assert sum(part["tokens"] for part in whole["by_length"]) == whole["tokens"]
    one = measured.sample_of_token == 0
    row = table["doc_id"].to_pylist().index(held_out.doc_ids[0])
    if held_out.doc_ids.count(held_out.doc_ids[0]) == 1:
        assert table["kl"][row].as_py() == pytest.approx(measured.tokens.kl[one].sum())


def test_the_base_model_itself_differs_nowhere(models: Path, answers: Reference) -> None:
    same = measure_checkpoint(answers, load_model(models / "base", "cpu"))
    assert not same.tokens.kl.any() and not same.reverse_kl.any() and same.tokens.agree.all()
    assert same.layers == [0.0, 0.0] and not same.lost.any() and not same.won.any()
    assert layer_figures(0.0) == {"relative_error": 0.0, "sqnr": None}
    assert layer_figures(1e-4) == {"relative_error": pytest.approx(0.01), "sqnr": pytest.approx(40.0)}


def test_other_layers_are_not_compared_and_another_vocabulary_is_refused(answers: Reference) -> None:
    deeper = random_llama(vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=3)
    assert measure_checkpoint(answers, deeper).layers is None
    with pytest.raises(ValueError, match="must share tokenizer and vocabulary"):
        measure_checkpoint(answers, random_llama(vocab_size=99 + 200, hidden_size=32, intermediate_size=48))
