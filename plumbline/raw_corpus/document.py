"""The unit of the corpus: a document, identified by its content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

PRODUCTION = "production"
"""The source `corpus.production` of params.yaml: a sample of production data, in its own split."""
OUT_OF_DOMAIN = "out_of_domain"
"""The source `corpus.out_of_domain`: texts unlike the corpus, on which every model is evaluated, too."""
APART = (PRODUCTION, OUT_OF_DOMAIN)
"""Sources whose documents are in their own split, whatever their hash; they come first, in this order."""


@dataclass(frozen=True)
class Document:
    """One raw text or one chat, before tokenization.

    All documents of a `group` are in the same split. Documents that share text should share a group (a module's
    docstrings and its source, the turns of one user). It defaults to the document's id.
    """

    domain: str
    source: str
    """File within the source, as `source-name/relative/path`, never an absolute path."""
    row: int
    """0-based row of the document in its file."""
    text: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    """Of a chat: role and content of each message."""
    more: str | None = None
    """Of a chat: what else the template reads, as canonical JSON: `fields` of messages by position, and `tools`."""
    group: str = ""
    doc_id: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if (self.text is None) == (self.messages is None):
            raise ValueError(f"{self.source} row {self.row}: a document has either text or messages")
        object.__setattr__(self, "doc_id", document_id(self.text, self.messages, self.more))
        if not self.group:
            object.__setattr__(self, "group", self.doc_id)

    def chat(self) -> tuple[list[dict[str, Any]], list[Any]]:
        """The messages with all their fields, and the tools, as a chat template takes them."""
        more = json.loads(self.more) if self.more else {}
        fields = more.get("fields", {})
        messages = [{**message, **fields.get(str(i), {})} for i, message in enumerate(self.messages or ())]
        return messages, more.get("tools", [])


def document_id(text: str | None, messages: tuple[dict[str, str], ...] | None, more: str | None = None) -> str:
    """SHA-256 (hex) of the content: the same text has the same id in any file."""
    payload = text if text is not None else json.dumps(messages, ensure_ascii=False, sort_keys=True)
    kind = "text" if text is not None else "messages"
    return hashlib.sha256("\0".join([kind, payload, *([more] if more else [])]).encode()).hexdigest()
