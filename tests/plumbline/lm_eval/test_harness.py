"""A task file over local items, run by lm-evaluation-harness on a tiny model, against each choice run by itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from plumbline.lm_eval.harness import run_tasks
from plumbline.lm_eval.items import item_table

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

WORDS = {"<s>": 0, "<unk>": 1, **{f"w{number}": number for number in range(2, 64)}}
TASK = """task: local_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_a_local_task_gives_what_the_model_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    found = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=found, bos_token="<s>", eos_token="<s>", unk_token="<unk>", pad_token="<s>"
    )
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=64, max_position_embeddings=64, initializer_range=0.3, **shape)
    model = LlamaForCausalLM(config).eval()
    numbers = np.random.default_rng(0).permuted(np.tile(np.arange(2, 64), (24, 1)), axis=1)[:, :5].tolist()
    items = [{"question": f"w{a} w{b}", "choices": [f"w{c}" for c in rest], "answer": 1} for a, b, *rest in numbers]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local.yaml").write_text(TASK.format(path=tmp_path / "items.jsonl"))

    logged = run_tasks(model, tokenizer, ["local_words"], tmp_path / "tasks", None, 4)
    by_id = {item["doc_id"]: item["acc"] for item in logged["local_words"]}
    assert sorted(by_id) == list(range(24))
    for row, (a, b, *rest) in enumerate(numbers):
        with torch.no_grad():
            logits = model(torch.tensor([[a, b]])).logits[0, -1]
        assert by_id[row] == float(int(logits[rest].argmax()) == 1)
    table = item_table(logged)
    assert table.num_rows == 24 and 0 < sum(table["correct"].to_pylist()) < 24
    assert len(set(table["item"].to_pylist())) == 24

    with pytest.raises(ValueError, match="no task nothing_like_it"):
        run_tasks(model, tokenizer, ["nothing_like_it"], tmp_path / "tasks", None, 4)
