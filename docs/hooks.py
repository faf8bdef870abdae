"""Hooks of mkdocs: the reference pages, generated from pydantic, click and pyarrow when the site is built.

A generated page is never out of date, and none lies in git.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """Path below docs/ -> Markdown."""
    if str(ROOT) not in sys.path:  # here, as mkdocs puts sys.path back once it has loaded this file
        sys.path.insert(0, str(ROOT))  # this checkout, whatever is installed
    from docs.reference_pages import artifacts, command_line, params

    return {
        "reference/command-line.md": command_line(),
        "reference/params.md": params(),
        "reference/artifacts.md": artifacts(),
        "contributing.md": at_docs("CONTRIBUTING.md"),
        "changelog.md": at_docs("CHANGELOG.md"),
    }


def at_docs(name: str) -> str:
    """A file of the repository's root as a page, with its links turned to pages."""
    text = re.sub(r"\]\(docs/", "](", (ROOT / name).read_text(encoding="utf-8"))
    return text.replace("](CHANGELOG.md)", "](changelog.md)").replace("](CONTRIBUTING.md)", "](contributing.md)")
