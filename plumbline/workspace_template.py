"""The files of a new workspace: those of the repository's own workspace, or of its copy in the installed package.

setup.py runs this module by its path, so it imports nothing of Plumbline.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = "workspace_files"
"""Beside this module in an installed package; a checkout has its own workspace instead, at its root."""
PATTERNS = (
    "assets/*.py",
    "orchestration/*.py",
    "dvc.yaml",
    "params.yaml",
    ".dvc/config",
    ".dvc/.gitignore",
    ".dvcignore",
    ".gitignore",
    ".dagster/dagster.yaml",
    "inbox/README.md",
)


def files_of(root: Path) -> list[str]:
    """The template's files below a workspace, relative to it.

    Raises:
        FileNotFoundError: one is not there.
    """
    files: list[str] = []
    for pattern in PATTERNS:
        matches = sorted(path.relative_to(root).as_posix() for path in root.glob(pattern) if path.is_file())
        if not matches:
            raise FileNotFoundError(f"{root} has no {pattern}, which a workspace is made of; install Plumbline again")
        files += matches
    return files


def template_root() -> Path:
    """The folder that holds the template."""
    package = Path(__file__).resolve().parent
    copy = package / FOLDER
    return copy if copy.is_dir() else package.parent
