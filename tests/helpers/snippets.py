"""The fenced blocks of README.md and docs/, with what marks them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.helpers.paths import PROJECT

PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?:<!-- (?P<mark>[^:\n]+): (?P<why>[^\n]+) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)
"""A block, and the comment above it: `run: NAME`, `run after: NAME` or `by hand: reason`."""


@dataclass(frozen=True)
class Snippet:
    """A block of code in a page."""

    page: str
    line: int
    language: str
    text: str
    mark: str
    """`run`, `run after`, `by hand`; empty: none."""
    why: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Lines of a shell block without comments and blank lines."""
        whole = self.text.replace("\\\n", " ")  # lines that go on
        lines = (re.sub(r"\s+# .*$", "", line).strip() for line in whole.splitlines())
        return [line for line in lines if line and not line.startswith("#")]


def snippets(language: str) -> list[Snippet]:
    """Every block in a language."""
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            if match["language"] == language:
                line = text.count("\n", 0, match.start("language")) + 1
                page = path.relative_to(PROJECT).as_posix()
                found.append(Snippet(page, line, language, match["text"], match["mark"] or "", match["why"] or ""))
    return found


def marked(mark: str, why: str) -> list[Snippet]:
    """The blocks with a mark, in the order of the pages."""
    return [block for kind in ("bash", "python") for block in snippets(kind) if (block.mark, block.why) == (mark, why)]
