"""`python -m benchmarks.tamperings`: the table of tamperings, expected and found, without and with the public key."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from benchmarks.tamperings import chain, data_ways, harmless_ways, mlflow_ways, model_ways, record_ways
from benchmarks.tamperings.way import Harmless, Way
from plumbline.cli.main import main as plumbline

WAYS: list[Way] = [*model_ways.WAYS, *data_ways.WAYS, *record_ways.WAYS, *mlflow_ways.WAYS]
HARMLESS: list[Harmless] = harmless_ways.WAYS


@dataclass(frozen=True)
class Line:
    """A row of the table: a change, what was expected, what the audit said."""

    name: str
    signing: bool
    expected: str
    found: str
    status: int
    right: bool


@dataclass(frozen=True)
class Audit:
    """What the command said: its exit status, the verdict and the links that do not verify."""

    status: int
    verdict: str
    broken: dict[str, str]

    @property
    def shown(self) -> str:
        links = ", ".join(self.broken)
        return f"{self.verdict}: {links}" if links else self.verdict


def audit(root: Path, reference: str, public_key: Path | None) -> Audit:
    """Run `plumbline audit` in a workspace.

    Raises:
        Exception: the command ended with a traceback.
    """
    options = ["--public-key", str(public_key)] if public_key else []
    name = str(root / reference) if reference.startswith("data/") else reference
    result = CliRunner().invoke(
        plumbline, ["audit", name, "--json", *options], env={**chain.environment(root), "MLFLOW_TRACKING_URI": None}
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code == 2:
        return Audit(2, f"usage: {' '.join(result.output.split())[-80:]}", {})
    told: dict[str, Any] = json.loads(result.stdout)
    broken = {link["name"]: link["status"] for link in told["links"] if link["status"] != "verified"}
    return Audit(result.exit_code, told["verdict"], broken)


def sign(root: Path, key: Path) -> None:
    """Sign both models of the workspace."""
    for model in (chain.MODEL, chain.OTHER_MODEL):
        chain.command(root, "sign", model, "--key", str(key))


def tampered(way: Way, root: Path, public_key: Path | None) -> Line:
    """Do a tampering and audit the result."""
    way.change(root)
    found = audit(root, way.reference, public_key)
    link = (way.signed or way.link) if public_key else way.link
    if not link:
        return Line(way.name, False, "out of reach", found.shown, found.status, True)
    right = found.status == 1 and link in found.broken
    return Line(way.name, public_key is not None, f"not verified: {link}", found.shown, found.status, right)


def harmless(way: Harmless, root: Path, public_key: Path | None) -> Line:
    """Do something harmless and audit the result."""
    place, reference = way.change(root)
    found = audit(place, reference, public_key)
    unsigned = public_key is not None and not way.signed
    expected = "missing: signature, statement" if unsigned else "verified"
    return Line(way.name, public_key is not None, expected, found.shown, found.status, found.shown == expected)


def lines(root: Path, scratch: Path, keys: Sequence[Path | None], only: str = "") -> Iterator[Line]:
    """Every tampering and harmless change, each on a copy of the workspace, once per public key (None: without)."""
    number = 0
    for way in [*WAYS, *HARMLESS]:
        for key in keys if only in way.name else ():
            if key is not None and isinstance(way, Harmless) and way.before_signing:
                continue
            number += 1
            copy = scratch / f"{number:03}" / "workspace"
            shutil.copytree(root, copy)
            for path in copy.rglob("*"):
                path.chmod(path.stat().st_mode | 0o600)
            yield tampered(way, copy, key) if isinstance(way, Way) else harmless(way, copy, key)
            shutil.rmtree(copy.parent)


def table(rows: list[Line]) -> str:
    """The table, and its summary."""
    text = [f"{'what is done':<50} {'signing':<8} {'expected':<34} {'exit':<5} found"]
    for row in rows:
        mark = "" if row.right else "  <- WRONG"
        text.append(
            f"{row.name:<50} {'on' if row.signing else 'off':<8} {row.expected:<34} {row.status:<5} {row.found}{mark}"
        )
    harmless_names = {way.name for way in HARMLESS}
    wrong = [row for row in rows if not row.right]
    false_alarms = sum(row.name in harmless_names for row in wrong)
    beyond = sum(row.expected == "out of reach" for row in rows)
    text.append(
        f"{len({row.name for row in rows} - harmless_names)} tamperings, {len(wrong) - false_alarms} undetected "
        f"({beyond} more are out of reach without a signature); "
        f"{len({row.name for row in rows} & harmless_names)} harmless changes, {false_alarms} false alarms"
    )
    return "\n".join(text)


@click.command()
@click.option("--chain", "made", type=click.Path(path_type=Path), help="Folder of the chain; made there once.")
@click.option("--only", default="", help="Only the changes whose name contains this.")
@click.option("--signing", type=click.Choice(["off", "on", "both"]), default="both", help="Without or with a key.")
def main(made: Path | None, only: str, signing: str) -> None:
    """Print what the audit says of every tampering. Exit status 1 if one is undetected or a harmless change is not."""
    with tempfile.TemporaryDirectory(prefix="tamperings-") as folder:
        home = (made or Path(folder) / "chain").resolve()
        if not home.is_dir():
            chain.build(home / "workspace")
            private, _ = chain.keys(home)
            sign(home / "workspace", private)
        rows = []
        keys = {"off": [None], "on": [home / "key.pub"], "both": [None, home / "key.pub"]}[signing]
        for row in lines(home / "workspace", Path(folder), keys, only):
            rows.append(row)
            click.echo(f"{len(rows):>4} {row.name}: {row.found}{'' if row.right else '  <- WRONG'}", err=True)
    click.echo(table(rows))
    sys.exit(0 if all(row.right for row in rows) else 1)


if __name__ == "__main__":
    main()
