"""Name, version and extras of the installed distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path

NAME = "plumbline-ptq"
"""Name of the distribution; `plumbline` on PyPI is another project. Package and command are named plumbline."""
CHECKOUT = Path(__file__).resolve().parents[1]
"""The repository's root if the package runs from a checkout, else the folder of installed packages."""


def version() -> str:
    """The installed version; "unknown" if the package is not installed."""
    try:
        return version_of(NAME)
    except PackageNotFoundError:
        return "unknown"


def in_checkout() -> bool:
    """Whether the package runs from a checkout of the repository."""
    return all((CHECKOUT / name).is_file() for name in ("constraints.txt", "pyproject.toml"))


def install_command(extra: str) -> str:
    """The command that installs an extra; in a checkout with pinned versions."""
    if in_checkout():
        return f"pip install -c constraints.txt -e '.[{extra}]'"
    return f"pip install '{NAME}[{extra}]'"
