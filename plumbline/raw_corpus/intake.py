"""The intake of the corpus: the files of the inbox by content, and the commits of followed hub datasets.

People add, upload and delete files in the inbox, and a run must not read incomplete ones. So a run reads the files that
`intake.yaml` lists. It is replaced atomically, and changes only with content: a copy under another name, a renamed file
and a second upload of the same file change nothing. A copy of each listed file is held until its entry is removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from plumbline.artifact import replace_text
from plumbline.raw_corpus.stores import InboxStore, Seen

INTAKE = "intake.yaml"
HEADER = (
    "# What the inbox and the hub have brought in; `plumbline run` and the sensors write it, raw_corpus reads it.\n"
)


@dataclass(frozen=True)
class Taken:
    """A file of the inbox: its content, or the reason why it is refused."""

    sha256: str | None
    bytes: int
    refused: str | None = None


@dataclass(frozen=True)
class Intake:
    """The content of intake.yaml."""

    files: Mapping[str, Taken] = field(default_factory=dict)
    """By name within the inbox, in order of name; one name per content."""
    revisions: Mapping[str, str] = field(default_factory=dict)
    """Commit of each hub source that follows a branch, by the source's name."""


@dataclass(frozen=True)
class IntakeChanges:
    """The names of the files that changed between two looks at the inbox."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    """Newly listed, but not readable: see `Taken.refused`."""
    waiting: tuple[str, ...] = ()
    """Still being written."""
    copies: tuple[str, ...] = ()
    """Content that is listed under another name."""

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed or self.refused)

    def as_dict(self) -> dict[str, list[str]]:
        """The fields that are not empty."""
        return {name: list(value) for name, value in vars(self).items() if value}


def take_in(
    before: Intake, store: InboxStore, looked: Mapping[str, Seen], settled: Mapping[str, str | None]
) -> tuple[Intake, IntakeChanges, dict[str, str]]:
    """Take in the complete files; each is copied into the store and hashed.

    Content keeps its first name as long as that name has no other content, so copies and renamed files change nothing.

    Args:
        looked: the files in the inbox.
        settled: the names of complete files, with the SHA-256 of those that are held already. A listed file that is
            being rewritten keeps its entry.

    Returns:
        The new intake, the changes, and the SHA-256 of every complete file.
    """
    present: dict[str, Taken] = {}
    waiting: list[str] = []
    contents: dict[str, str] = {}
    for name, seen in looked.items():
        if name in settled and seen.problem is not None:
            present[name] = Taken(None, seen.bytes, seen.problem)
        elif (content := (settled[name] or store.hold(name)) if name in settled else None) is not None:
            present[name] = Taken(content, seen.bytes)
            contents[name] = content
        else:  # being written, or it changed while it was copied
            waiting.append(name)
            present |= {name: before.files[name]} if name in before.files else {}
    owner_before = {taken.sha256: name for name, taken in before.files.items() if taken.sha256}
    names_of: dict[str, list[str]] = {}
    for name, taken in sorted(present.items()):
        if taken.sha256 is not None:
            names_of.setdefault(taken.sha256, []).append(name)
    files = {name: taken for name, taken in present.items() if taken.sha256 is None}
    copies: list[str] = []
    for content, names in names_of.items():
        first = owner_before.get(content)
        owner = first if first is not None and (first in names or first not in present) else names[0]
        files[owner] = present[names[0]]
        copies += [name for name in names if name != owner]
    after = Intake(dict(sorted(files.items())), before.revisions)
    return after, _changes(before.files, after.files, waiting, copies), contents


def _changes(
    before: Mapping[str, Taken], after: Mapping[str, Taken], waiting: list[str], copies: list[str]
) -> IntakeChanges:
    new = [name for name, taken in after.items() if taken != before.get(name)]
    return IntakeChanges(
        added=tuple(name for name in new if name not in before and not after[name].refused),
        changed=tuple(name for name in new if name in before and not after[name].refused),
        removed=tuple(name for name in before if name not in after),
        refused=tuple(name for name in new if after[name].refused),
        waiting=tuple(waiting),
        copies=tuple(sorted(copies)),
    )


def read_intake(path: Path) -> Intake:
    """Read intake.yaml; an empty intake if there is no such file.

    Raises:
        ValueError: it cannot be parsed.
    """
    if not path.is_file():
        return Intake()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader) or {}
        files = {
            str(name): Taken(entry.get("sha256"), int(entry["bytes"]), entry.get("refused"))
            for name, entry in _items(content, "files")
        }
        return Intake(dict(sorted(files.items())), {str(k): str(v) for k, v in _items(content, "revisions")})
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} could not be parsed ({type(error).__name__}: {error}); restore it with "
            f"`git checkout {path.name}`, or delete it: the inbox is then taken in anew"
        ) from error


def _items(content: Mapping[str, Any], section: str) -> Iterable[tuple[Any, Any]]:
    return (content.get(section) or {}).items()


def write_intake(path: Path, intake: Intake) -> None:
    """Replace intake.yaml atomically; the same content gives the same bytes."""
    files: dict[str, dict[str, Any]] = {}
    for name, taken in sorted(intake.files.items()):
        what = {"refused": taken.refused} if taken.sha256 is None else {"sha256": taken.sha256}
        files[name] = {**what, "bytes": taken.bytes}
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    content = {"files": files, "revisions": dict(sorted(intake.revisions.items()))}
    replace_text(path, HEADER + yaml.dump(content, Dumper=dumper, sort_keys=False, width=120))
