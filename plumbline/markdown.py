"""Text for places that show Markdown: Dagster's descriptions and lists, MLflow's notes.

Names of files, sources and domains come from others. As Markdown, a name could load an image from another machine.
"""

from __future__ import annotations

import re

MARKS = r"\\`*<>\[\]!|~#"
"""What can begin a link, an image, HTML or a heading."""


def literal(text: str) -> str:
    """Text as Markdown that shows it as it is, in one line."""
    return re.sub(rf"[{MARKS}]", r"\\\g<0>", " ".join(text.split()))


def plain(markdown: str) -> str:
    """The text that `literal` was given."""
    return re.sub(rf"\\([{MARKS}])", r"\1", markdown)
