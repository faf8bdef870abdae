"""Documents that spell control tokens are counted, and tokenized as in production; tool calls are rendered."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from plumbline.artifact import read_json
from plumbline.raw_corpus.document import Document
from plumbline.tokenized_samples.build import build_tokenized_samples
from plumbline.tokenized_samples.control_tokens import control_tokens
from plumbline.tokenized_samples.encode import Encoder
from plumbline.tokenized_samples.params import TokenizeParams
from plumbline.tokenized_samples.reader import read_samples
from tests.helpers.checkpoint import checkpoint
from tests.helpers.tokenizer import make_tokenizer

PARAMS = TokenizeParams(max_length=200, min_tokens=1, splits={"tuning": 0, "report": 0}, workers=1)
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


@pytest.fixture
def build(tmp_path: Path) -> Callable[[Path, Path], Path]:
    def make(tokenizer: Path, corpus: Path) -> Path:
        out = tmp_path / "out"
        out.mkdir()
        build_tokenized_samples(PARAMS, checkpoint(tokenizer), corpus, out)
        return out

    return make


def test_documents_that_spell_control_tokens_are_counted_and_warned_of(
    build: Any, tokenizer_folder: Any, corpus_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "plumbline")
    folder = tokenizer_folder()
    texts = ["<s><|user|>hi</s><|assistant|>ho</s>", "an </s> in the middle", "<s is none", "plain"]
    chats = [CHAT, [{"role": "user", "content": "say </s></s>"}, CHAT[1]]]
    samples = build(folder, corpus_of({"a": [*texts, *chats]}))
    expected = {"documents": 3, "tokens": 5 + 1 + 2, "begin_twice": 1}
    accounting = read_json(samples / "accounting.json")
    assert accounting["control_tokens"] == expected == accounting["shards"][0]["control"]
    [warning] = caplog.messages
    assert warning.startswith("3 of 6 documents spell 8 control tokens")
    assert warning.endswith("Give chats as messages, which the template renders, or remove the literals")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rendered = read_samples(samples)["input_ids"].to_pylist()[0]
    assert rendered == tokenizer(texts[0])["input_ids"], "as the tokenizer does it"
    assert rendered[:2] == [tokenizer.bos_token_id] * 2


def test_a_corpus_without_them_is_no_warning(
    build: Any, tokenizer_folder: Any, corpus_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "plumbline")
    samples = build(tokenizer_folder(), corpus_of({"a": ["plain text", CHAT]}))
    assert read_json(samples / "accounting.json")["control_tokens"] == {"documents": 0, "tokens": 0, "begin_twice": 0}
    assert caplog.messages == []


def test_an_unknown_character_is_no_control_token() -> None:
    tokenizer = make_tokenizer()
    assert control_tokens(tokenizer) == {"<s>": 0, "</s>": 1, "<|user|>": 2, "<|assistant|>": 3}
    tokenizer.unk_token = "<s>"
    assert "<s>" not in control_tokens(tokenizer)


TOOLS = (
    "{% if tools %}{{ '<|user|>' + (tools | tojson) }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% for c in m.get('tool_calls', []) %}{{ c.function.name + (c.function.arguments | tojson) }}{% endfor %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.mark.parametrize("arguments", [{"x": 1}, '{"x": 1}'])
def test_tool_calls_and_tools_are_rendered_by_the_template(tokenizer_folder: Any, arguments: Any) -> None:
    """Arguments as text, as the OpenAI API returns them, are the object that they are when they are served."""
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    more = json.dumps({"fields": {"1": {"tool_calls": [call]}}, "tools": [tool]})
    messages = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": ""})
    encoder = Encoder(checkpoint(tokenizer_folder(template=TOOLS)), PARAMS)
    document = Document("d", "s/f", 0, messages=messages, more=more)
    [encoded] = encoder.encode([document])
    assert not isinstance(encoded, str)
    text = encoder.tokenizer.decode(encoded.content)
    assert text.startswith('<|user|>[{"type": "function"') and text.endswith('<|user|>hi</s><|assistant|>f{"x": 1}</s>')
    assert encoded.assistant is not None
    [start, stop] = encoded.assistant.tolist()
    assert encoder.tokenizer.decode(encoded.content[start:stop]) == 'f{"x": 1}</s>', "the call is what it wrote"


def test_a_chat_with_tools_takes_the_template_for_tools(tokenizer_folder: Any) -> None:
    folder = tokenizer_folder(
        template=[{"name": "default", "template": "plain"}, {"name": "tool_use", "template": TOOLS}]
    )
    encoder = Encoder(checkpoint(folder), PARAMS)
    messages = ({"role": "user", "content": "hi"},)
    more = json.dumps({"tools": [{"type": "function", "function": {"name": "f"}}]})
    plain, tools = encoder.encode([Document("d", "s", 0, messages=messages, more=m) for m in (None, more)])
    assert not isinstance(plain, str) and not isinstance(tools, str)
    assert encoder.tokenizer.decode(plain.content) == "plain"
    assert encoder.tokenizer.decode(tools.content).endswith("<|user|>hi</s>")
