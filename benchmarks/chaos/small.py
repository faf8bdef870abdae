"""The workspace of the trials: one choice, one scheme, a model of 30 thousand weights."""

from __future__ import annotations

from pathlib import Path

import yaml

from benchmarks.chaos.processes import ran
from benchmarks.tamperings import chain
from plumbline.artifact import canonical_json
from plumbline.versioning.lock import read_lock
from tests.helpers.small_model import CHAT_TEMPLATE, write_base_model

CHOICE, SCHEME = "random-8", "w4a16-gptq"
PAIR = f"{CHOICE}-{SCHEME}"
CHAMPION = "models:/plumbline@champion"
PARAMS = {
    **chain.PARAMS,
    "calibrations": {CHOICE: {"strategy": "random", "n": 8, "seed": 0}},
    "grid": {"calibrations": [CHOICE], "schemes": [SCHEME]},
    "deployment": {"scheme": SCHEME},
}


def write(root: Path) -> Path:
    """Make the workspace, on which nothing has run; returns its folder."""
    chain.command(root, "init", str(root))
    path = root / "params.yaml"
    params = {**yaml.safe_load(path.read_text(encoding="utf-8")), **PARAMS}
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    graph = (root / "dvc.yaml").read_text(encoding="utf-8")
    (root / "dvc.yaml").write_text(graph.replace("deps: [intake.yaml]", "deps: [intake.yaml, texts]"), encoding="utf-8")
    chain.write_texts(root / "texts")
    write_base_model(root / "base", CHAT_TEMPLATE, bos_token_id=0, eos_token_id=1)
    return root


def recorded(root: Path) -> dict[str, str]:
    """What dvc.lock says of every stage: its command, what it read, its parameters and facts, what it made."""
    said = {}
    for name, entry in read_lock(root).items():
        parts = {"cmd": entry.cmd, "params": entry.params, "facts": entry.facts, "deps": entry.deps, "outs": entry.outs}
        said |= {f"{name}: {part}": canonical_json(value) for part, value in parts.items()}
    return said


def differences(root: Path, expected: dict[str, str]) -> list[str]:
    """What a finished workspace has other than an undisturbed one: records, both doors, audit, registry, leftovers."""
    said = recorded(root)
    wrong = [
        f"dvc.lock, {part}: {said.get(part)} for {value}" for part, value in expected.items() if said.get(part) != value
    ]
    wrong += [f"dvc.lock, {part} is not expected" for part in said if part not in expected]
    for command in (("status",), ("verify",), ("audit", CHAMPION)):
        done = ran(root, "plumbline", *command, status=None)
        if done.status:
            wrong.append(f"{command[0]} ended with {done.status}: {done.tail}")
    if "up to date" not in (done := ran(root, "dvc", "status")).output:
        wrong.append(f"dvc status: {done.tail}")
    from plumbline.tracking.registry import open_registry

    models = [(version.pair, version.model) for version in open_registry(root, read_only=True).versions()]
    if len(models) != len(set(models)):
        wrong.append(f"a model has several versions: {models}")
    if left := sorted(path.name for path in (root / "data" / ".tmp").glob("*")):
        wrong.append(f"left in data/.tmp: {left}")
    return wrong
