"""What people do to a chain without tampering with it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import yaml

from benchmarks.tamperings import chain, forging
from benchmarks.tamperings.way import Harmless
from plumbline.tracking.client import Tracking
from plumbline.tracking.promotion import ENTRY
from plumbline.tracking.promotion_chain import COPY


def unchanged(root: Path) -> tuple[Path, str]:
    return root, chain.URI


def then(change: Callable[[Path], object], reference: str = chain.URI) -> Callable[[Path], tuple[Path, str]]:
    """Do something to the workspace, and audit the reference there."""

    def done(root: Path) -> tuple[Path, str]:
        change(root)
        return root, reference

    return done


def moved(root: Path) -> tuple[Path, str]:
    place = root.with_name(f"{root.name} verschoben – ü")
    root.rename(place)
    return place, chain.URI


def copied(root: Path) -> tuple[Path, str]:
    """A copy beside the original, to whose files the locations in its registry still lead."""
    return Path(shutil.copytree(root, root.with_name(f"{root.name}-copy"), symlinks=True)), chain.URI


def words_added(root: Path) -> None:
    """What people write and click in MLflow: words above a description, a tag, another alias, a stage."""
    forging.sql(root, "UPDATE model_versions SET description = 'Asked for by support.' || char(10) || description")
    forging.sql(root, "UPDATE model_versions SET current_stage = 'Production' WHERE version = 1")
    forging.sql(
        root,
        "INSERT INTO registered_model_aliases (name, alias, version, workspace) SELECT name, 'canary', 1, workspace "
        "FROM registered_models",
    )
    forging.sql(
        root,
        "INSERT INTO model_version_tags (name, version, key, value, workspace) SELECT name, 1, 'reviewed', 'yes', "
        "workspace FROM registered_models",
    )


def copied_version(root: Path) -> tuple[Path, str]:
    """MLflow copies the champion's version to another name, as teams do for production."""
    with Tracking(f"sqlite:///{root / 'mlflow.db'}").client() as client:
        version = client.get_model_version_by_alias("plumbline", "champion").version
        client.copy_model_version(f"models:/plumbline/{version}", "production")
    return root, "models:/production/1"


def deployed(root: Path) -> tuple[Path, str]:
    """The model's folder and its signatures are copied to where it is served."""
    place = root.with_name(f"{root.name}-served")
    place.mkdir()
    shutil.copytree(root / chain.MODEL, place / chain.CHAMPION)
    for suffix in ("sig", "intoto.json"):
        if (root / f"{chain.MODEL}.{suffix}").is_file():
            shutil.copy(root / f"{chain.MODEL}.{suffix}", place)
    return root, str(place / chain.CHAMPION)


def touched(root: Path) -> None:
    for path in (root / "data").rglob("*"):
        os.utime(path, (0, 0))
        path.chmod(0o700 if path.is_dir() else 0o640)


def grid_changed(root: Path) -> None:
    path = root / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["calibrations"] = {"random-16": {"strategy": "random", "n": 16, "seed": 1}}
    params["grid"]["calibrations"] = ["random-16"]
    path.write_text(yaml.safe_dump(params))


def pull_again(root: Path) -> None:
    """Everything is pushed, deleted here and pulled."""
    shared(root)
    shutil.rmtree(root / ".dvc/cache")
    for path in [path for path in root.glob("data/*/*") if path.is_dir()]:  # signatures stay: DVC does not know them
        shutil.rmtree(path)
    chain.command(root, "pull", "--quiet", "--force", module="dvc")


def shared(root: Path) -> None:
    """A remote with every output."""
    remote = root.with_name(f"{root.name}-remote")
    chain.command(root, "remote", "add", "--quiet", "-d", "shared", str(remote), module="dvc")
    chain.command(root, "push", "--quiet", module="dvc")


def cloned(root: Path) -> tuple[Path, str]:
    """A colleague's clone, after `dvc pull`: it has no registry."""
    shared(root)
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "-c", "user.name=Ada", "-c", "user.email=a@b.c", "commit", "--quiet", "-m", "a champion")
    place = root.with_name(f"{root.name}-clone")
    git(root, "clone", "--quiet", str(root), str(place))
    chain.command(place, "pull", "--quiet", module="dvc")
    for suffix in ("sig", "intoto.json"):
        if (root / f"{chain.MODEL}.{suffix}").is_file():
            shutil.copy(root / f"{chain.MODEL}.{suffix}", place / f"{chain.MODEL}.{suffix}")
    return place, chain.MODEL


def git(root: Path, *arguments: str) -> None:
    """Run git in the workspace."""
    subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True)


def resaved(record: bool) -> Callable[[Path], tuple[Path, str]]:
    """The model loaded and saved again by transformers, with or without its record beside it."""

    def save(root: Path) -> tuple[Path, str]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        place = root.with_name(f"{root.name}-resaved")
        AutoModelForCausalLM.from_pretrained(root / chain.MODEL).save_pretrained(place)
        AutoTokenizer.from_pretrained(root / chain.MODEL).save_pretrained(place)
        if record:
            shutil.copy(root / chain.MODEL / "calibration.json", place)
        return root, str(place)

    return save


def older_history(root: Path) -> None:
    """Promotions that an earlier version recorded: without digests, and without a copy in the workspace."""
    database = sqlite3.connect(root / "mlflow.db")
    rows = database.execute("SELECT key, value FROM registered_model_tags WHERE key LIKE ?", (f"{ENTRY}%",)).fetchall()
    with database:
        for key, value in rows:
            entry = {k: v for k, v in json.loads(value).items() if k not in ("previous", "model")}
            database.execute("UPDATE registered_model_tags SET value = ? WHERE key = ?", (json.dumps(entry), key))
    database.close()
    (root / COPY).unlink()


def behind(root: Path) -> None:
    """A copy of the history that git has not brought up to date."""
    path = root / COPY
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def set_gone(root: Path) -> None:
    """The workspace has lost what DVC's cache still has."""
    for path in (chain.SET, chain.STATS, chain.CORPUS, chain.SAMPLES, chain.CHOSEN, chain.EVALUATION, chain.DECISION):
        shutil.rmtree(root / path)


WAYS = [
    Harmless("nothing", unchanged),
    Harmless("workspace moved", moved),
    Harmless("workspace copied beside the original", copied),
    Harmless("MLflow's files left behind", then(lambda root: shutil.rmtree(root / "mlruns"))),
    Harmless("words, a tag, an alias and a stage in MLflow", then(words_added)),
    Harmless("version copied to another name in MLflow", copied_version),
    Harmless("model copied to where it is served", deployed),
    Harmless("times and modes changed", then(touched)),
    Harmless("grid and choices changed since", then(grid_changed)),
    Harmless("run cache deleted", then(forging.forget_runs)),
    Harmless("outputs deleted, in the cache", then(set_gone)),
    Harmless("pushed, deleted and pulled", then(pull_again)),
    Harmless("cloned and pulled, no registry", cloned),
    Harmless("history of an earlier version", then(older_history), before_signing=True),
    Harmless("copy of the history behind", then(behind)),
    Harmless("re-saved by save_pretrained, with its record", resaved(True), signed=False),
    Harmless("re-saved by save_pretrained, record left behind", resaved(False), signed=False),
]
