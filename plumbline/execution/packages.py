"""Versions of the packages that compute: workers on other machines must have those of the process that shares out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

PACKAGES = ("torch", "transformers")


@cache
def package_versions() -> dict[str, str]:
    """Package -> version here, without what marks a build (`+cpu`); without those that are not installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version_of(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return versions


def other_packages(machine: str, there: Mapping[str, str], here: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each package of which a machine has another version than the one that shares out.

    Args:
        machine: its name in the sentences.
        there: as `package_versions` gives them, on the machine.
        here: the same, on the one that shares out.
    """
    for name, version in here.items():
        if there.get(name) != version:
            other = f"{name} {there[name]}" if name in there else f"no {name}"
            yield f"{machine} has {other}, the machine that shares out has {version}: install {name}=={version} there"
