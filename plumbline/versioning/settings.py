"""DVC's configuration, read without DVC: what it holds must be found where DVC no longer installs.

The files are those that DVC reads, each overriding those before it: of the machine, of the user, `.dvc/config`,
`.dvc/config.local`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from platformdirs import site_config_dir, user_config_dir

DEFAULT_CACHE = "cache"
"""Folder in `.dvc`."""
URL = re.compile(r"\w+://")
PATHS = ("dir", "url")
"""Settings that may be paths, relative to the folder of their file."""
SECTION = re.compile(r"""\[\s*(?P<quote>['"]?)(?P<name>[^\[\]]+)(?P=quote)\s*\]\s*(?:\#.*)?""", re.VERBOSE)
OPTION = re.compile(
    r"""(?P<key>[^\s=][^=]*?) \s*=\s* (?: '(?P<single>[^']*)' | "(?P<double>[^"]*)" | (?P<bare>[^#]*?) )
        \s*(?:\#.*)?""",
    re.VERBOSE,
)

Settings = dict[str, dict[str, str]]
"""Section, such as `cache` or `remote "NAME"` -> key -> value; names in lower case, paths absolute."""


class UnreadableConfig(ValueError):
    """DVC's configuration cannot be read, so nobody knows where the cache and the remote are."""


def project_root(root: Path) -> Path | None:
    """The folder at or above `root` that has a `.dvc` folder, as DVC finds it; None: there is none."""
    return next((folder for folder in (root, *root.absolute().parents) if (folder / ".dvc").is_dir()), None)


def settings(root: Path) -> Settings:
    """The settings that hold in a workspace.

    Raises:
        UnreadableConfig: a file cannot be read.
    """
    merged: Settings = {}
    for path in config_files(root):
        for section, values in _read(path).items():
            merged.setdefault(section, {}).update(values)
    return merged


def config_files(root: Path) -> list[Path]:
    """The files of DVC's configuration that exist, each overriding those before it."""
    machine = os.environ.get("DVC_SYSTEM_CONFIG_DIR") or site_config_dir("dvc", "iterative")
    user = os.environ.get("DVC_GLOBAL_CONFIG_DIR") or user_config_dir("dvc", "iterative")
    files = [Path(machine) / "config", Path(user) / "config"]
    if (project := project_root(root)) is not None:
        files += [project / ".dvc/config", project / ".dvc/config.local"]
    return [path for path in files if path.is_file()]


def cache_directory(root: Path, known: Mapping[str, Mapping[str, str]]) -> Path:
    """DVC's cache: `cache.dir`, else `.dvc/cache`."""
    cache = known.get("cache", {})
    place = cache.get("dir")
    if name := cache.get("local"):
        place = known.get(f'remote "{name.lower()}"', {}).get("url")
    return Path(place) if place else (project_root(root) or root) / ".dvc" / DEFAULT_CACHE


def default_remote_section(known: Mapping[str, Mapping[str, str]]) -> tuple[str, Mapping[str, str]]:
    """Name and settings of the default remote (`core.remote`); an empty name: there is none."""
    name = known.get("core", {}).get("remote", "").lower()
    return name, known.get(f'remote "{name}"', {})


def _read(path: Path) -> Settings:
    sections: Settings = {}
    current: dict[str, str] | None = None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableConfig(_unreadable(path, str(error))) from error
    for number, line in _lines(lines):
        if section := SECTION.fullmatch(line):
            current = sections.setdefault(section["name"].lower(), {})
        elif current is not None and (option := OPTION.fullmatch(line)):
            key = option["key"].strip("'\"").lower()
            value = next(text for text in (option["single"], option["double"], option["bare"]) if text is not None)
            current[key] = absolute(path.parent, value) if key in PATHS else value
        else:
            raise UnreadableConfig(_unreadable(path, f"line {number}: {line!r:.80}"))
    return sections


def _lines(lines: list[str]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, 1):
        if (text := line.strip()) and not text.startswith("#"):
            yield number, text


def absolute(folder: Path, value: str) -> str:
    """A path of the configuration, relative to `folder`, as an absolute one; a URL as it is."""
    if not value or URL.match(value):
        return value
    return os.path.normpath(folder.absolute() / Path(value).expanduser())


def _unreadable(path: Path, why: str) -> str:
    shown = f"{path.parent.name}/{path.name}" if path.parent.name == ".dvc" else str(path)
    return (
        f"DVC's configuration cannot be read ({why} of {path}); expected [sections] with lines `key = value`: correct "
        f"{shown} (`dvc config --list --show-origin` lists the settings)"
    )
