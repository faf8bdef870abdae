"""Champions in MLflow's registry: which version carries the alias, who put it there and why, and taking it back.

The history is an append-only list of tags on the registered model, `plumbline.promotion.<n>`, each the JSON of a
`Promotion`. It is written before the alias moves: a process that is killed in between is finished by the next one,
which finds its own entry at the end of the list.
"""

from __future__ import annotations

import getpass
import json
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plumbline.tracking.client import Tracking, TrackingError
from plumbline.tracking.model_version import Version

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIAS = "champion"
PROMOTED_BY, REASON, ENTRY = "plumbline.promoted_by", "plumbline.reason", "plumbline.promotion."
MACHINE = "plumbline"
"""Who promotes when no person does."""
LONGEST_REASON = 2000


@dataclass(frozen=True)
class Promotion:
    """One move of the alias."""

    when: str
    """UTC, ISO 8601."""
    version: str
    from_version: str | None
    who: str
    why: str
    kind: Literal["promoted", "rolled back"]


def who(root: Path) -> str:
    """The person at the keyboard: git's user of the workspace, else the account."""
    try:
        asked = subprocess.run(["git", "config", "user.name"], cwd=root, capture_output=True, text=True, check=False)
        name = asked.stdout.strip()
    except OSError:
        name = ""
    try:
        return name or getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


class Registry:
    """The versions of one registered model and the history of its champion.

    Raises (every method):
        TrackingError: MLflow does not answer, or a version is not there.
    """

    def __init__(self, tracking: Tracking, root: Path) -> None:
        self.tracking, self.root = tracking, root

    @property
    def name(self) -> str:
        return self.tracking.registered_model

    def versions(self) -> list[Version]:
        """Every registered version, oldest first."""
        with self.tracking.client() as client:
            found = _all_versions(client, self.name)
        return sorted(map(Version.of, found), key=lambda each: int(each.version))

    def version(self, number: str) -> Version:
        """The version of that number."""
        for each in self.versions():
            if each.version == str(number):
                return each
        raise TrackingError(f"models:/{self.name}/{number}: MLflow at {self.tracking.uri} has no such version")

    def of_model(self, md5: str) -> Version:
        """The newest version of the model whose folder has this DVC hash."""
        found = [each for each in self.versions() if each.model == md5]
        if not found:
            raise TrackingError(
                f"no version of {self.name!r} in MLflow at {self.tracking.uri} has the DVC hash {md5}; evaluate the "
                "model first (`plumbline run`), which registers it"
            )
        return found[-1]

    def champion(self) -> Version | None:
        """The version that carries the alias; None: no version does."""
        with self.tracking.client() as client:
            number = _aliases(client, self.name).get(ALIAS)
        return None if number is None else self.version(str(number))

    def history(self) -> list[Promotion]:
        """Every move of the alias, oldest first."""
        with self.tracking.client() as client:
            return _history(client, self.name)

    def promote(self, version: str, by: str, why: str) -> Promotion | None:
        """Let the alias name a version, and record who wanted it and why; None: it names that version already.

        Raises:
            ValueError: no reason was given, or one too long.
        """
        return self._move(str(version), by, why, "promoted")

    def rollback(self, by: str, why: str) -> Promotion:
        """Give the alias back to the version that had it before the champion was promoted.

        Raises:
            ValueError: there is no champion, or none before it.
        """
        champion = self.champion()
        if champion is None:
            raise ValueError(f"{self.name} has no champion, so there is nothing to roll back")
        before = [p for p in self.history() if p.version == champion.version and p.kind == "promoted"]
        target = before[-1].from_version if before else None
        if target is None:
            raise ValueError(f"version {champion.version} ({champion.pair}) is the first champion: none came before it")
        done = self._move(target, by, why, "rolled back")
        assert done is not None, "a version does not come before itself"
        return done

    def withdrawn(self) -> dict[str, str]:
        """DVC hash of every model that was taken back and not promoted since -> who took it back, and why."""
        model_of = {each.version: each.model for each in self.versions()}
        found: dict[str, str] = {}
        for entry in self.history():
            if entry.kind == "promoted":
                found.pop(model_of.get(entry.version, ""), None)
            elif entry.from_version is not None:
                found[model_of.get(entry.from_version, "")] = f"{entry.who}: {entry.why}"
        return found

    def _move(self, version: str, by: str, why: str, kind: Literal["promoted", "rolled back"]) -> Promotion | None:
        from filelock import FileLock

        why = " ".join(why.split())
        if not why or len(why) > LONGEST_REASON:
            raise ValueError(f"--why: expected 1 to {LONGEST_REASON} characters, found {len(why)}; say why")
        locks = self.root / ".plumbline" / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        self.version(version)  # it must be there before anything is written
        with FileLock(locks / "champion.lock"), self.tracking.client() as client:
            now = _aliases(client, self.name).get(ALIAS)
            if now == version:
                return None
            history = _history(client, self.name)
            last = history[-1] if history else None
            if last and (last.version, last.from_version, last.kind) == (version, now, kind):
                entry = last  # written by a process that was killed before it moved the alias
            else:
                when = datetime.now(UTC).isoformat(timespec="seconds")
                entry = Promotion(when, version, now, by, why, kind)
                text = json.dumps(asdict(entry), sort_keys=True, ensure_ascii=False)
                client.set_registered_model_tag(self.name, f"{ENTRY}{len(history) + 1}", text)
            client.set_model_version_tag(self.name, version, PROMOTED_BY, entry.who)
            client.set_model_version_tag(self.name, version, REASON, entry.why)
            client.set_registered_model_alias(self.name, ALIAS, version)
        return entry


def _all_versions(client: MlflowClient, name: str) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _aliases(client: MlflowClient, name: str) -> dict[str, str]:
    models = client.search_registered_models(f"name = '{name}'")
    return {alias: str(version) for alias, version in models[0].aliases.items()} if models else {}


def _history(client: MlflowClient, name: str) -> list[Promotion]:
    models = client.search_registered_models(f"name = '{name}'")
    tags = models[0].tags if models else {}
    numbered = {int(key.removeprefix(ENTRY)): value for key, value in tags.items() if key.startswith(ENTRY)}
    return [Promotion(**json.loads(numbered[n])) for n in sorted(numbered)]
