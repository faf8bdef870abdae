"""The chain that is tampered with: a workspace made by `plumbline run` on a model of 30 thousand weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import yaml

from tests.helpers.small_model import CHAT_TEMPLATE, WORDS, write_base_model

OTHER_CHOICE, CHOICE = "random-8", "packed-16"
SCHEME = "w4a16-gptq"
CHAMPION, URI = f"{CHOICE}-{SCHEME}", "models:/plumbline@champion"
OTHER = f"{OTHER_CHOICE}-{SCHEME}"
MODEL, OTHER_MODEL = f"data/quantized_model/{CHAMPION}", f"data/quantized_model/{OTHER}"
SET, OTHER_SET = f"data/calibration_set/{CHOICE}", f"data/calibration_set/{OTHER_CHOICE}"
STATS, OTHER_STATS = f"data/activation_stats/{CHOICE}", f"data/activation_stats/{OTHER_CHOICE}"
EVALUATION, OTHER_EVALUATION = f"data/evaluation/{CHAMPION}", f"data/evaluation/{OTHER}"
CORPUS, SAMPLES, FEATURES = "data/raw_corpus", "data/tokenized_samples", "data/sample_features"
CHOSEN, DECISION = f"data/calibration_choice/{CHOICE}", "data/deployed_model"
PARAMS = {
    "model": {"name": "base"},
    "corpus": {"sources": {"texts": {"kind": "directory", "path": "texts"}}},
    "tokenize": {"max_length": 32, "splits": {"tuning": 0.15, "report": 0.3}},
    "calibrations": {
        OTHER_CHOICE: {"strategy": "random", "n": 8, "seed": 0},
        CHOICE: {"strategy": "packed_windows", "n": 16, "seed": 0},
    },
    "schemes": {SCHEME: {"method": "gptq", "weight_bits": 4, "group_size": 32}},
    "grid": {"calibrations": [OTHER_CHOICE, CHOICE], "schemes": [SCHEME]},
    "evaluation": {"tokens_per_domain": 1024},
    "report": {"resamples": 100},
    "deployment": {"scheme": SCHEME, "max_worse": 100.0},
    "studies": {},
}


def environment(root: Path) -> dict[str, str]:
    """The environment of a command in the workspace."""
    removed = ("MLFLOW_TRACKING_URI", "DAGSTER_HOME")
    inherited = {key: value for key, value in os.environ.items() if key not in removed}
    return {**inherited, "PLUMBLINE_ROOT": str(root), "DAGSTER_HOME": str(root / ".dagster")}


def command(root: Path, *arguments: str, module: str = "plumbline.cli.main") -> str:
    """Run a command of Plumbline (or of another module) in the workspace; returns its output.

    Raises:
        RuntimeError: it ended with another exit status than 0.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=root if root.is_dir() else None,
        env=environment(root),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr}")
    return done.stdout


def build(root: Path) -> None:
    """Make the workspace in `root`, run it, and promote by hand, so that the history has three entries."""
    command(root, "init", str(root))
    path = root / "params.yaml"
    params = {**yaml.safe_load(path.read_text(encoding="utf-8")), **PARAMS}
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    graph = (root / "dvc.yaml").read_text(encoding="utf-8")
    (root / "dvc.yaml").write_text(graph.replace("deps: [intake.yaml]", "deps: [intake.yaml, texts]"), encoding="utf-8")
    write_texts(root / "texts")
    write_base_model(root / "base", CHAT_TEMPLATE, bos_token_id=0, eos_token_id=1)
    command(root, "run")
    promote(root)
    shutil.rmtree(root / ".dagster")  # run logs, which no test reads


def promote(root: Path) -> None:
    """Make the champion one that a person promoted over another one."""
    from plumbline.tracking.promotion import promote as promote_version
    from plumbline.tracking.registry import open_registry

    registry = open_registry(root)
    versions = {version.pair: version.version for version in registry.versions()}
    for pair, why in ((CHAMPION, "a try"), (OTHER, "asked for by support"), (CHAMPION, "it was the prompt")):
        promote_version(registry, root, versions[pair], "Ada", why)


def write_texts(folder: Path) -> None:
    """Texts of two domains and chats, longer than a sample."""
    random = Random(0)
    for domain in ("prose", "code"):
        (folder / domain).mkdir(parents=True)
        for number in range(16):
            text = " ".join(random.choices(WORDS, k=60))
            (folder / domain / f"{number:02}.txt").write_text(text, encoding="utf-8")
    (folder / "chat").mkdir()
    lines = []
    for _ in range(16):
        messages = [{"role": role, "content": " ".join(random.choices(WORDS, k=30))} for role in ("user", "assistant")]
        lines.append(json.dumps({"messages": messages}))
    (folder / "chat" / "chats.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def keys(folder: Path) -> tuple[Path, Path]:
    """A private and a public key on the curve P-256, in PEM."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private, pem = ec.generate_private_key(ec.SECP256R1()), serialization.Encoding.PEM
    folder.mkdir(parents=True, exist_ok=True)
    secret = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(secret)
    public = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pub").write_bytes(public)
    return folder / "key.pem", folder / "key.pub"
