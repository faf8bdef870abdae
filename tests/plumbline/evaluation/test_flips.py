"""Choices and flips against each sequence run by itself, and counts by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from plumbline.artifact import read_json
from plumbline.evaluation.build import build_evaluation
from plumbline.evaluation.flips import Item, chosen, encoded, flip_figures, item_table, log_likelihoods, read_items
from plumbline.evaluation.params import EvaluationParams
from plumbline.evaluation.summary import summary as summary_of
from tests.helpers.checkpoint import checkpoint
from tests.helpers.evaluation import describe

WORDS = {"<s>": 0, "</s>": 1, "<unk>": 2, **{f"w{number}": number for number in range(3, 96)}}


def tokenizer(closing: bool = False) -> PreTrainedTokenizerFast:
    found = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    end = " </s>" if closing else ""
    found.post_processor = processors.TemplateProcessing(f"<s> $A{end}", special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def some_items(count: int) -> list[Item]:
    rng = np.random.default_rng(11)

    def words(most: int) -> str:
        return " ".join(f"w{number}" for number in rng.integers(3, 96, rng.integers(1, most)))

    return [Item(words(9), tuple(words(5) for _ in range(2 + row % 3)), row % 2) for row in range(count)]


def by_itself(model, item: Item, choice: str) -> float:
    """log p(choice | question), word by word."""
    ids = [0, *(WORDS[word] for word in f"{item.question} {choice}".split())]
    with torch.no_grad():
        log_p = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    first = len(ids) - len(choice.split())
    return sum(float(log_p[at - 1, ids[at]]) for at in range(first, len(ids)))


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
def test_likelihoods_equal_those_of_each_sequence_alone(root: Path, batch_tokens: int, closing: bool) -> None:
    model, items = AutoModelForCausalLM.from_pretrained(root / "base").eval(), some_items(12)
    sequences, counts = encoded(items, tokenizer(closing))
    found = log_likelihoods(model, sequences, counts, batch_tokens)
    expected = [by_itself(model, item, choice) for item in items for choice in item.choices]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_white_space_around_question_and_choice_says_nothing() -> None:
    plain, spaced = Item("w5 w6", ("w7", "w8 w9"), 0), Item("w5 w6  ", (" w7", "w8 w9 "), 0)
    for one, other in zip(encoded([plain], tokenizer()), encoded([spaced], tokenizer()), strict=True):
        assert [list(np.atleast_1d(row)) for row in one] == [list(np.atleast_1d(row)) for row in other]
    assert encoded([plain], tokenizer())[1].tolist() == [1, 2]


def test_the_most_likely_choice_and_the_first_of_equals() -> None:
    items = [Item("q", ("a", "b", "c"), 0), Item("q", ("a", "b"), 1)]
    assert chosen(items, np.array([-3.0, -1.0, -2.0, -5.0, -5.0])).tolist() == [1, 0]


def test_counts_by_hand() -> None:
    items = [Item(f"q{row}", ("a", "b", "c"), 0) for row in range(6)]
    base, quantized = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 0, 1, 2])
    found = flip_figures(item_table(items, base, quantized))
    counts = {"items": 6, "correct_to_incorrect": 2, "incorrect_to_correct": 1}
    assert found == {**counts, "accuracy_base": 0.5, "accuracy_quantized": 2 / 6, "flips": 0.5, "changed": 4 / 6}


def test_an_evaluation_counts_flips_and_keeps_every_item(root: Path, samples: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    for name in ("base", "perturbed"):
        shutil.copytree(root / name, project / name)
    tokenizer().save_pretrained(project / "base")
    describe(project / "perturbed", project / "base")
    words = np.random.default_rng(2).permuted(np.tile(np.arange(3, 96), (120, 1)), axis=1)[:, :6].tolist()
    items = [Item(f"w{a} w{b}", tuple(f"w{c}" for c in rest), 0) for a, b, *rest in words]
    lines = [json.dumps({"question": i.question, "choices": i.choices, "answer": i.answer}) for i in items]
    (project / "items.jsonl").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    out.mkdir()
    params = EvaluationParams(items="items.jsonl")
    build_evaluation(params, checkpoint("base", project), project / "perturbed", samples, out)
    summary = summary_of(out)

    table = pq.read_table(out / "items.parquet").to_pylist()
    assert [row["item_id"] for row in table] == sorted(item.item_id for item in items)
    of_id = {item.item_id: item for item in items}
    for name, column in (("base", "base"), ("perturbed", "quantized")):
        network = AutoModelForCausalLM.from_pretrained(root / name).eval()
        for row in table:
            item = of_id[row["item_id"]]
            with torch.no_grad():  # choices of one word: one forward pass says all
                ids = [0, *(WORDS[word] for word in item.question.split())]
                logits = network(torch.tensor([ids])).logits[0, -1]
            expected = int(np.argmax([float(logits[WORDS[choice]]) for choice in item.choices]))
            assert row[f"chosen_{column}"] == expected
            assert row[f"correct_{column}"] == (expected == item.answer)
    flips = read_json(out / "metrics.json")["flips"]
    assert 0 < flips["correct_to_incorrect"] + flips["incorrect_to_correct"] < 120  # the two models do differ
    assert summary["flips_flips"] == flips["flips"] and flips["items"] == 120


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"choices": ["a", "b"], "answer": 0}', "line 2: question: expected a text, found None"),
        ('{"question": "q", "choices": ["a"], "answer": 0}', "line 2: choices: expected two texts or more"),
        ('{"question": "q", "choices": ["a", "b"], "answer": 2}', "line 2: answer: expected a number from 0 to 1"),
        ('{"question": "q", "choices": ["a", "b"], "answer": true}', "line 2: answer: .* found True"),
        ('{"question": "x", "choices": ["a", "b"], "answer": 1}', "line 2: the same item as line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"question": "x", "choices": ["a", "b"], "answer": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_items(path)


def test_a_missing_file_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"evaluation\.items: .*items\.jsonl does not exist"):
        read_items(tmp_path / "items.jsonl")
    (tmp_path / "items.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="has no line"):
        read_items(tmp_path / "items.jsonl")


def test_the_file_must_be_listed_in_dvc_yaml() -> None:
    from types import SimpleNamespace
    from typing import cast

    from plumbline.graph.declared import require_declared
    from plumbline.graph.step import Step

    inputs = {"data/tokenized_samples": ""}
    step, items = cast(Step, SimpleNamespace(name="evaluation@a", root=Path(), inputs=inputs)), "items.jsonl"
    with pytest.raises(
        ValueError, match=r"items reads items\.jsonl, which dvc\.yaml .* under evaluation: `plumbline declare`"
    ):
        require_declared(step, {"evaluation.items": items})
    step.inputs[items] = ""
    require_declared(step, {"evaluation.items": items})
