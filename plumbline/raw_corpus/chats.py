"""Chats in the forms that public sets have, brought into one: role and content, and what else the template reads.

*Messages*: a list under `messages`, `conversations` or `conversation`, of objects with `role` and `content`, or `from`
and `value`.
*Pairs*: `instruction` (with `input` or `context`) and `output` or `response`, or `prompt` and `completion` or
`response`. Both may have a `system` and `tools` beside them. Other names are given by `chat:` of a source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plumbline.artifact import canonical_json
from plumbline.raw_corpus.params import ChatFields

LISTS = ("messages", "conversations", "conversation")
ROLE, CONTENT = ("role", "from"), ("content", "value")
SYSTEM, TOOLS = ("system", "system_prompt"), ("tools",)
PAIRS = (
    (("instruction",), ("input", "context"), ("output", "response")),
    (("prompt",), (), ("completion", "response")),
)
"""Names of what the user asks, of what it is about, and of what the assistant answers."""
ROLES = {"human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool"}
"""Other names of roles. A set with `from` may have no others than these and the usual ones."""
USUAL = ("system", "developer", "user", "assistant", "tool", "function", "ipython")


class UnreadableChat(ValueError):
    """A chat that is not read; `reason` is one of source_file.REASONS."""

    def __init__(self, detail: str, reason: str = "wrong_type") -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Doubled:
    """The value of a key that a JSON object has more than once, with different values."""

    values: Sequence[Any]


@dataclass
class Chat:
    """Messages of role and content, and what else the chat template reads."""

    messages: list[dict[str, str]] = field(default_factory=list)
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Position of a message -> its further fields, such as tool_calls."""
    tools: list[Any] = field(default_factory=list)
    """Definitions of the tools that the assistant may call."""

    def more(self) -> str | None:
        """What is not role and content, as canonical JSON; None: nothing.

        Raises:
            UnreadableChat: it is no JSON.
        """
        content = {**({"fields": self.fields} if self.fields else {}), **({"tools": self.tools} if self.tools else {})}
        try:
            return canonical_json(content) if content else None
        except (TypeError, ValueError, RecursionError) as error:
            raise UnreadableChat(f"a further field of a message, or the tools, cannot be JSON: {error}") from error


class ChatReader:
    """Reads the chat of a row."""

    def __init__(self, names: ChatFields) -> None:
        self.names = names
        self.lists = (names.messages,) if names.messages else LISTS
        self.role = (names.role,) if names.role else ROLE
        self.content = (names.content,) if names.content else CONTENT
        self.system = (names.system,) if names.system else SYSTEM
        self.tools = (names.tools,) if names.tools else TOOLS
        named = (
            (names.user,),
            (names.context,) if names.context else (),
            (names.assistant,) if names.assistant else (),
        )
        self.pairs: Sequence[Any] = (named,) if names.user else PAIRS
        self.roles = {**ROLES, **names.roles}

    def columns(self) -> list[str]:
        """Every field of a row that may be read."""
        pairs = [name for pair in self.pairs for names in pair for name in names]
        return list(dict.fromkeys([*self.lists, *pairs, *self.system, *self.tools]))

    def found(self, row: Mapping[str, Any]) -> str | None:
        """The field with the messages of a row; None: it has none.

        Raises:
            UnreadableChat: it has two.
        """
        if any(isinstance(row.get(name), Doubled) for name in self.lists):
            raise UnreadableChat("the messages are there twice, and differ", "ambiguous")
        there = [name for name in self.lists if row.get(name) is not None]
        filled = [name for name in there if row[name] != []]
        if len(filled) > 1:
            raise UnreadableChat(f"{' and '.join(filled)} are both there; name one as chat.messages", "ambiguous")
        return next(iter(filled or there), None)

    def listed(self, row: Mapping[str, Any], name: str) -> Chat:
        """The chat whose messages are in a field of the row.

        Raises:
            UnreadableChat: it has another form.
        """
        value = row[name]
        if isinstance(value, dict) and all(isinstance(column, list) for column in value.values()):
            value = _transposed(value, name)  # how `datasets` gives a sequence of objects
        if not isinstance(value, list):
            raise UnreadableChat(f"{name}: expected a list, found {_kind(value)}")
        chat = Chat(tools=self._tools(row))
        for i, message in enumerate(value):
            if not isinstance(message, dict):
                raise UnreadableChat(f"{name}[{i}]: expected an object, found {_kind(message)}")
            self._add(chat, message, f"{name}[{i}]")
        self._add_system(chat, row)
        return chat

    def pair(self, row: Mapping[str, Any]) -> Chat | None:
        """The chat of a question and an answer in fields of their own; None: the row has none.

        Raises:
            UnreadableChat: a field has another type.
        """
        for ask, about, answer in self.pairs:
            if not all(any(name in row for name in names) for names in (ask, answer) if names):
                continue
            question = [text for names in (ask, about) if (text := _text(row, names)).strip()]
            turns = (("user", "\n\n".join(question)), ("assistant", _text(row, answer)))
            messages = [{"role": role, "content": text} for role, text in turns if text.strip()]
            chat = Chat(messages if question else [], tools=self._tools(row))
            self._add_system(chat, row)
            return chat
        return None

    def _add(self, chat: Chat, message: Mapping[str, Any], where: str) -> None:
        key, role = _one(message, self.role, where)
        if not isinstance(role, str):
            raise UnreadableChat(f"{where}.{key}: expected a string, found {_kind(role, key in message)}")
        named = self.roles.get(role, role)
        if key == "from" and named not in (*USUAL, *self.roles.values()):
            raise UnreadableChat(f"{where}.from: {role!r} is no known role; name it under chat.roles in params.yaml")
        rest = {
            str(name): value
            for name, value in message.items()
            if name not in (*self.role, *self.content, "role", "content") and value is not None and value != []
        }
        if doubled := [name for name, value in rest.items() if _has_doubled(value)]:
            raise UnreadableChat(f"{where}.{doubled[0]}: a key is there twice, with different values", "ambiguous")
        calls = rest.get("tool_calls", [])
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise UnreadableChat(f"{where}.tool_calls: expected a list of objects, found {_kind(calls)}")
        key, content = _one(message, self.content, where)
        if content is None and calls:
            content = ""
        if isinstance(content, list):
            content = "\n".join(_part(part, f"{where}.{key}[{i}]") for i, part in enumerate(content))
        if not isinstance(content, str):
            raise UnreadableChat(f"{where}.{key}: expected a string, found {_kind(content, key in message)}")
        if rest:
            chat.fields[str(len(chat.messages))] = rest
        chat.messages.append({"role": named, "content": content})

    def _add_system(self, chat: Chat, row: Mapping[str, Any]) -> None:
        """Put a system prompt of its own field before the messages."""
        text = _text(row, self.system)
        if not text.strip() or not chat.messages:
            return
        if chat.messages[0]["role"] != "system":
            chat.messages.insert(0, {"role": "system", "content": text})
            chat.fields = {str(int(position) + 1): fields for position, fields in chat.fields.items()}
        elif chat.messages[0]["content"] != text:
            raise UnreadableChat("a system prompt beside the messages, and another one among them", "ambiguous")

    def _tools(self, row: Mapping[str, Any]) -> list[Any]:
        key, value = _one(row, self.tools, "the row")
        if isinstance(value, str | bytes):
            try:
                value = json.loads(value) if value.strip() else None
            except (ValueError, RecursionError) as error:
                raise UnreadableChat(f"{key}: neither a list nor JSON of one: {error}") from error
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
            raise UnreadableChat(f"{key}: expected a list of objects, found {_kind(value)}")
        if _has_doubled(value):
            raise UnreadableChat(f"{key}: a key is there twice, with different values", "ambiguous")
        return value


def _transposed(columns: Mapping[str, list[Any]], name: str) -> list[dict[str, Any]]:
    if len({len(column) for column in columns.values()}) > 1:
        raise UnreadableChat(f"{name}: its fields {', '.join(map(str, columns))} have different lengths")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def without_nulls(value: Any) -> Any:
    """The value without fields that are null, at any depth: Arrow fills in those that other rows have."""
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _one(fields: Mapping[str, Any], names: Sequence[str], where: str) -> tuple[str, Any]:
    """Name and value of the one of these fields that is there; the first name, None if none is.

    Raises:
        UnreadableChat: two are there with different values.
    """
    there = [(name, fields[name]) for name in names if fields.get(name) is not None]
    if any(isinstance(value, Doubled) for _, value in there):
        raise UnreadableChat(f"{where}: {there[0][0]!r} is there twice, with different values", "ambiguous")
    if any(value != there[0][1] for _, value in there):
        raise UnreadableChat(f"{where}: {' and '.join(name for name, _ in there)} differ", "ambiguous")
    return there[0] if there else (names[0], None)


def _text(row: Mapping[str, Any], names: Sequence[str]) -> str:
    key, value = _one(row, names, "the row") if names else ("", None)
    if isinstance(value, bytes):
        value = value.decode("utf-8-sig")
    if value is not None and not isinstance(value, str):
        raise UnreadableChat(f"{key}: expected a string, found {_kind(value)}")
    return value or ""


def _part(part: Any, where: str) -> str:
    """The text of a part of a message; parts are joined by newlines, as vLLM does for templates that take a string."""
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else _kind(part)
    if kind != "text" or not isinstance(part.get("text"), str):
        raise UnreadableChat(f"{where}: expected a part of type text, found {kind!r}: only texts are read")
    return str(part["text"])


def _has_doubled(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_doubled(inner) for inner in value.values())
    return isinstance(value, Doubled) or (isinstance(value, list) and any(_has_doubled(inner) for inner in value))


def _kind(value: Any, there: bool = True) -> str:
    return type(value).__name__ if there else "no such field"
