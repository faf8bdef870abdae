"""A tampering, and where the audit has to find it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tamperings import chain


@dataclass(frozen=True)
class Way:
    """A tampering with a copy of the chain."""

    name: str
    change: Callable[[Path], Any]
    """What is done to the workspace."""
    link: str
    """The link of the audit that must not verify; empty: out of reach without a signature."""
    signed: str = ""
    """The link that must not verify with the public key, where it is another one."""
    reference: str = chain.URI
    """What is audited."""


@dataclass(frozen=True)
class Harmless:
    """A change that the audit must not object to."""

    name: str
    change: Callable[[Path], tuple[Path, str]]
    """What is done to the workspace; returns the workspace and the reference to audit."""
    signed: bool = True
    """Whether the signature still holds; else its link is missing, which is said, and nothing is called tampered."""
    before_signing: bool = False
    """Whether it rewrites what a signature covers, so that it is no harmless change once signed."""
