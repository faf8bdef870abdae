"""The name under which Plumbline is installed, its version, and how an extra is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path

NAME = "plumbline-ptq"
"""Of the distribution; `plumbline` on PyPI is another project. The package and the command are called plumbline."""
CHECKOUT = Path(__file__).resolve().parents[1]
"""The repository's root where the package runs from a checkout, else the folder of installed packages."""


def version() -> str:
    """The installed version; "unknown" where the package runs without having been installed."""
    try:
        return version_of(NAME)
    except PackageNotFoundError:
        return "unknown"


def in_checkout() -> bool:
    """Whether the package runs from a checkout of the repository."""
    return all((CHECKOUT / name).is_file() for name in ("constraints.txt", "pyproject.toml"))


def install_command(extra: str) -> str:
    """The command that installs an extra of Plumbline: in a checkout with its pinned versions, elsewhere by name."""
    if in_checkout():
        return f"pip install -c constraints.txt -e '.[{extra}]'"
    return f"pip install '{NAME}[{extra}]'"
