"""From documents to token ids as in production: special tokens, chat template, no truncation."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.raw_corpus.document import Document
from plumbline.tokenized_samples.assistant import Spans, assistant_spans, cut
from plumbline.tokenized_samples.control_tokens import control_tokens
from plumbline.tokenized_samples.fingerprint import tokenizer_fingerprint
from plumbline.tokenized_samples.params import TokenizeParams

NO_TOKENS = np.empty(0, np.int32)
DAY = {"%d": "26", "%-d": "26", "%e": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24"} | {
    "%A": "Friday",
    "%a": "Fri",
    "%F": "2024-07-26",
    "%H": "00",
    "%M": "00",
    "%S": "00",
}
STOPPED_CLOCK = (
    "{%- macro strftime_now(form) -%}{{ form"
    + "".join(f" | replace('{directive}', '{value}')" for directive, value in DAY.items())
    + " }}{%- endmacro %}\n"
)
"""Jinja code that replaces `strftime_now` by a fixed date, so that templates with today's date give the same samples
tomorrow. Its last block removes the newline, so that the template after it starts on a new line."""


@dataclass(frozen=True)
class Encoded:
    """A document's tokens, int32: `content`, and the special tokens around it if it is one sample."""

    prefix: np.ndarray
    content: np.ndarray
    suffix: np.ndarray
    chat: bool = False
    assistant: Spans | None = None
    """Of a chat: the spans of `content` that its assistant wrote (see assistant.py); None if unknown."""
    control: int = 0
    """Control tokens that the document's own text spells, such as `<s>`."""
    begins_twice: bool = False
    """The text itself begins with the tokens that the tokenizer adds in front of it."""


class Encoder:
    """The tokenizer of a base model's folder, with its fingerprint, chat template and special tokens."""

    def __init__(self, base: BaseCheckpoint, params: TokenizeParams) -> None:
        self.tokenizer: Any = base.tokenizer()
        self.name = base.name
        self.fingerprint, self.parts = tokenizer_fingerprint(self.tokenizer, params)
        control = control_tokens(self.tokenizer)
        self.control = np.array(sorted(control.values()), np.int32)
        longest_first = sorted(control, key=len, reverse=True)
        self.literals = re.compile("|".join(map(re.escape, longest_first))) if control else None
        self.prefix = self.suffix = NO_TOKENS
        if params.add_special_tokens:
            self.prefix, self.suffix = special_tokens_around(self.tokenizer)

    def encode(self, documents: Sequence[Document]) -> list[Encoded | str]:
        """Each document's tokens, or the reason why the chat template refused it.

        Raises:
            ValueError: a document is a chat and the tokenizer has no chat template.
        """
        rendered: list[str | Exception] = []
        for document in documents:
            rendered.append(document.text if document.text is not None else self._render(document))
        texts = [text for text in rendered if isinstance(text, str)]
        ids = iter(self._token_ids(texts))
        results: list[Encoded | str] = []
        for document, text in zip(documents, rendered, strict=True):
            if isinstance(text, Exception):
                results.append(f"{type(text).__name__}: {text}"[:300])
            elif document.text is not None:
                results.append(self._text(next(ids)))
            else:
                results.append(self._chat(document, text, next(ids)))
        return results

    def _token_ids(self, texts: list[str]) -> list[np.ndarray]:
        if not texts:
            return []
        # a tokenizer.json may enable truncation and padding
        ids = self.tokenizer(
            texts,
            add_special_tokens=False,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        return [np.asarray(row, np.int32) for row in ids]

    def _template(self, tools: Sequence[Any]) -> str:
        """The chat template; of several, the one for chats with or without tools."""
        template: str = self.tokenizer.get_chat_template(tools=list(tools) or None)
        return STOPPED_CLOCK + template if "strftime_now" in template else template

    def _render(self, document: Document) -> str | Exception:
        if self.tokenizer.chat_template is None:
            # an error and no rejection: without all chats the corpus would be another one
            raise ValueError(
                f"{document.source} row {document.row} is a chat, and the tokenizer of {self.name} has no chat "
                f"template; take a base model that has one (its instruction-tuned variant), name the template that "
                f"is served (model: {{chat_template: FILE}} in params.yaml), or remove the source there"
            )
        try:
            messages, tools = as_served(document)
            text: str = self.tokenizer.apply_chat_template(
                messages, tools=tools or None, chat_template=self._template(tools), tokenize=False
            )
        except Exception as error:  # a template may raise anything on an unexpected chat
            return error
        return text

    def _text(self, ids: np.ndarray) -> Encoded:
        """Encode a text as the tokenizer does: a literal such as `<s>` becomes the control token that it spells."""
        n = len(self.prefix)
        return Encoded(
            self.prefix,
            ids,
            self.suffix,
            control=int(np.isin(ids, self.control).sum()),
            begins_twice=bool(n and np.array_equal(ids[:n], self.prefix)),
        )

    def _chat(self, document: Document, text: str, ids: np.ndarray) -> Encoded:
        """Encode a rendered chat, whose special tokens the template writes.

        Leading tokens that the tokenizer would add to a text are the prefix of further windows, too.
        """
        messages, tools = as_served(document)
        spans = assistant_spans(self.tokenizer, self._template(tools), messages, text, ids, tools)
        n = len(self.prefix)
        prefix = self.prefix if n and np.array_equal(ids[:n], self.prefix) else NO_TOKENS
        n = len(prefix)
        spans = None if spans is None else cut(spans, n, len(ids))
        written = [message["content"] for message in messages] if self.literals else []
        control = sum(len(self.literals.findall(content)) for content in written) if self.literals else 0
        return Encoded(prefix, ids[n:], NO_TOKENS, True, spans, control)


def as_served(document: Document) -> tuple[list[dict[str, Any]], list[Any]]:
    """The messages and tools of a chat as a server hands them to the template.

    The arguments of a tool call are an object, also if the chat has them as text, as the OpenAI API returns them.
    """
    messages, tools = document.chat()
    for message in messages:
        for call in message.get("tool_calls", ()):
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and isinstance(function.get("arguments"), str):
                with contextlib.suppress(ValueError, RecursionError):
                    arguments = json.loads(function["arguments"])
                    function["arguments"] = arguments if isinstance(arguments, dict) else function["arguments"]
    return messages, tools


def special_tokens_around(tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The special tokens, int32, that the tokenizer adds before and after a text.

    Raises:
        ValueError: it changes the text's tokens.
    """
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return np.asarray(whole[:start], np.int32), np.asarray(whole[start + len(bare) :], np.int32)
    raise ValueError(
        f"the tokenizer turns 'a' into {whole} with special tokens and into {bare} without: the text's own tokens "
        f"change; set tokenize.add_special_tokens: false in params.yaml"
    )
