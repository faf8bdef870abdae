"""The root digest of OpenSSF model signing (OMS): one digest for every file of a model's folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from plumbline.artifact import sha256_file

UNSIGNED = (".git", ".gitattributes", ".github", ".gitignore")
"""Names at the top of a folder that model signing leaves out."""


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 (hex) of every file below a folder by its relative path, in the order of model signing."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = sorted(PurePosixPath(path.relative_to(folder).as_posix()) for path in paths)
    return {str(name): sha256_file(folder / name) for name in names}


def root_digest(files: Mapping[str, str]) -> str:
    """SHA-256 (hex) over the files' SHA-256 digests (32 bytes each) in order of their paths.

    It is the digest of the one subject in a signature of model signing, so that other statements can name the model by
    it (OMS v1.0). Paths are ordered part by part, as the standard's library does.

    Args:
        files: relative path -> SHA-256 (hex) of every file of the folder.
    """
    root = hashlib.sha256()
    for name in sorted(map(PurePosixPath, files)):
        if name.parts[0] not in UNSIGNED:
            root.update(bytes.fromhex(files[str(name)]))
    return root.hexdigest()
