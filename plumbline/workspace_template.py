"""The template of a new workspace: the repository's own workspace, or its copy in the installed package.

setup.py runs this module by path, so it must not import Plumbline.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = "workspace_files"
"""Folder of the copy, beside this module. A checkout has none; its root is the workspace."""
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
    """Paths of the template's files, relative to the root.

    Raises:
        FileNotFoundError: a pattern matches no file.
    """
    files: list[str] = []
    for pattern in PATTERNS:
        matches = sorted(path.relative_to(root).as_posix() for path in root.glob(pattern) if path.is_file())
        if not matches:
            raise FileNotFoundError(f"{root} has no {pattern}, which a workspace needs; reinstall Plumbline")
        files += matches
    return files


def template_root() -> Path:
    """The root folder of the template."""
    package = Path(__file__).resolve().parent
    copy = package / FOLDER
    return copy if copy.is_dir() else package.parent
