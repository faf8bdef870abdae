"""A small real chain, made by the stages themselves, for the tests of the audit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import yaml
from click.testing import CliRunner, Result

from plumbline.cli.main import main
from plumbline.provenance import AuditResult, dvc_digest
from plumbline.versioning.digest import Hasher
from tests.helpers.checkpoint import checkpoint
from tests.helpers.small_model import WORDS, write_base_model

CHOICE, SCHEME = "random-8", "w4a16-rtn"
MODEL = f"data/quantized_model/{CHOICE}-{SCHEME}"
SET, STATS, CORPUS = f"data/calibration_set/{CHOICE}", f"data/activation_stats/{CHOICE}", "data/raw_corpus"
OTHER_CHOICE = "first-6"
OTHER = f"data/quantized_model/{OTHER_CHOICE}-w4a16-gptq"
OTHER_SET, OTHER_STATS = f"data/calibration_set/{OTHER_CHOICE}", f"data/activation_stats/{OTHER_CHOICE}"
QUANTIZED = f"quantized_model@{CHOICE}-{SCHEME}"


def run(root: Path, *arguments: str) -> Result:
    """The command in a workspace. Whatever it meets, it ends with an exit status and a sentence."""
    result = CliRunner().invoke(main, list(arguments), env={"PLUMBLINE_ROOT": str(root)})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def chain(root: Path, strategy: str, kv_cache: dict[str, Any] | None = None) -> Path:
    """Sources, stages and records of a model whose set that strategy chose; `kv_cache` as in a scheme."""
    root.mkdir()
    write_sources(root)
    build(root, strategy, kv_cache)
    texts = {"texts": {"kind": "directory", "path": "texts"}}
    choice = {"strategy": strategy, "n": 8, "seed": 0}
    scheme: dict[str, Any] = {"method": "rtn", "weight_bits": 4, "group_size": 32}
    scheme |= {} if kv_cache is None else {"kv_cache": kv_cache}
    of_set, chosen = f"data/calibration_choice/{CHOICE}", {f"calibrations.{CHOICE}": choice}
    record(root, "raw_corpus", CORPUS, [], {"corpus": {"sources": texts}})
    record(root, "tokenized_samples", "data/tokenized_samples", [CORPUS], {"tokenize": {"max_length": 32}})
    record(root, f"calibration_choice@{CHOICE}", of_set, [], chosen)
    record(root, f"calibration_set@{CHOICE}", SET, ["data/tokenized_samples", of_set], {"model": {"name": "base"}})
    record(root, f"activation_stats@{CHOICE}", STATS, [SET], {"statistics": {"hessian": True}})
    record(root, f"quantized_model@{CHOICE}-{SCHEME}", MODEL, [SET, STATS], {f"schemes.{SCHEME}": scheme})
    return root


def write_sources(root: Path) -> None:
    """Documents, params.yaml and a base model with its tokenizer."""
    random = Random(0)
    for domain in ("prose", "code"):
        (root / "texts" / domain).mkdir(parents=True)
        for i in range(20):
            text = " ".join(random.choices(WORDS, k=60))
            (root / "texts" / domain / f"{i:02}.txt").write_text(text, encoding="utf-8")
    params = {"model": {"name": "base"}, "tokenize": {"max_length": 32}}
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    write_base_model(root / "base")


def build(root: Path, strategy: str, kv_cache: dict[str, Any] | None = None) -> None:
    """The stages, called as Dagster calls them."""
    from plumbline.raw_corpus.build import build_raw_corpus
    from plumbline.raw_corpus.params import CorpusParams
    from plumbline.tokenized_samples.build import build_tokenized_samples
    from plumbline.tokenized_samples.params import TokenizeParams

    samples = root / "data/tokenized_samples"
    for path in (root / CORPUS, samples):
        path.mkdir(parents=True)
    corpus = {"sources": {"texts": {"kind": "directory", "path": "texts"}}}
    build_raw_corpus(CorpusParams.model_validate(corpus), root, root / CORPUS)
    build_tokenized_samples(TokenizeParams(max_length=32, workers=1), checkpoint("base", root), root / CORPUS, samples)
    build_model(root, CHOICE, SCHEME, strategy=strategy, n=8, method="rtn", kv_cache=kv_cache)


def build_model(
    root: Path,
    choice: str,
    scheme: str,
    *,
    strategy: str,
    n: int,
    method: str,
    kv_cache: dict[str, Any] | None = None,
    **of_base: Any,
) -> None:
    """A choice's set and statistics, and a model from them; `of_base` are further fields of `model:`."""
    from plumbline.activation_stats.build import build_activation_stats
    from plumbline.activation_stats.params import StatisticsParams
    from plumbline.calibration_choice.build import build_calibration_choice
    from plumbline.calibration_set.build import build_calibration_set
    from plumbline.calibration_set.pool import Sources
    from plumbline.quantized_model.build import build_quantized_model
    from plumbline.quantized_model.params import SchemeParams

    of_choice, chosen = root / "data/calibration_choice" / choice, root / "data/calibration_set" / choice
    stats, out = root / "data/activation_stats" / choice, root / f"data/quantized_model/{choice}-{scheme}"
    for path in (of_choice, chosen, stats, out):
        path.mkdir(parents=True)
    build_calibration_choice(choice, {"strategy": strategy, "n": n, "seed": 0}, of_choice)
    build_calibration_set(of_choice, Sources(root / "data/tokenized_samples", None), chosen)
    base = checkpoint("base", root, **of_base)
    build_activation_stats(StatisticsParams(cache=kv_cache is not None), base, chosen, stats)
    entry = {"method": method, "weight_bits": 4, "group_size": 32, "kv_cache": kv_cache}
    params = SchemeParams.model_validate(entry)
    build_quantized_model(scheme, params, base, stats, chosen, out, "0123456789ab")


def second(root: Path) -> None:
    """Another choice under another scheme, in the same workspace."""
    build_model(root, OTHER_CHOICE, "w4a16-gptq", strategy="first_n", n=6, method="gptq")
    of_choice = f"data/calibration_choice/{OTHER_CHOICE}"
    choice = {f"calibrations.{OTHER_CHOICE}": {"strategy": "first_n", "n": 6, "seed": 0}}
    scheme = {"schemes.w4a16-gptq": {"method": "gptq", "weight_bits": 4, "group_size": 32}}
    record(root, f"calibration_choice@{OTHER_CHOICE}", of_choice, [], choice)
    record(root, f"calibration_set@{OTHER_CHOICE}", OTHER_SET, ["data/tokenized_samples", of_choice])
    record(root, f"activation_stats@{OTHER_CHOICE}", OTHER_STATS, [OTHER_SET])
    record(root, f"quantized_model@{OTHER_CHOICE}-w4a16-gptq", OTHER, [OTHER_SET, OTHER_STATS], scheme)


def evaluate(root: Path, model: str, kl_mean: float) -> dict[str, Any]:
    """An evaluation of a model, recorded; its figures are made up. Returns metrics.json."""
    from plumbline.artifact import read_json, write_json

    pair, content = model.split("/")[-1], read_json(root / model / "calibration.json")
    metrics = {
        "kl_mean": kl_mean,
        "top1_agreement": 0.9,
        "weights_bytes": 1234,
        "by_domain": {"code": {"kl_mean": kl_mean / 2}},
        "by_length": [],
        "layer_errors": {},
        "weights": content["model"],
        "base_model": content["base_model"]["digest"],
        "fingerprint": content["fingerprint"],
        "calibration_set": content["calibration_set"]["digest"],
        "scheme": content["scheme"],
        "fallbacks": content["fallbacks"],
    }
    out = f"data/evaluation/{pair}"
    (root / out).mkdir(parents=True)
    write_json(root / out / "metrics.json", metrics)
    record(root, f"evaluation@{pair}", out, ["data/tokenized_samples", model])
    return metrics


def register(root: Path, uri: str = "", pages: Sequence[Path] = (), name: str = "plumbline") -> None:
    """Both models evaluated and in MLflow, version 1 the champion.

    Args:
        uri: of MLflow; empty: a SQLite file in the workspace.
        pages: files that go with every evaluation's run.
        name: of the experiment and of the registered model.
    """
    from plumbline.artifact import read_json
    from plumbline.tracking.client import Tracking
    from plumbline.tracking.evaluation import EvaluationRecord
    from plumbline.tracking.figures import evaluation_metrics, representativeness_metrics
    from plumbline.tracking.promotion import promote
    from plumbline.tracking.registry import Registry
    from plumbline.tracking.run_logging import log_run
    from plumbline.versioning.lock import read_lock, upstream

    tracking = Tracking(uri or f"sqlite:///{root / 'mlflow.db'}", name, name)
    for path in (MODEL, OTHER):
        content, pair = read_json(root / path / "calibration.json"), path.split("/")[-1]
        name = content["calibration_set"]["choice"]["name"]
        metrics = evaluation_metrics(evaluate(root, path, 0.02 + len(name) / 1000))
        chosen = root / f"data/calibration_set/{name}"
        metrics |= representativeness_metrics(read_json(chosen / "representativeness.json"))
        manifest, lock = read_json(chosen / "manifest.json"), read_lock(root)
        evaluation = EvaluationRecord(
            pair=pair,
            calibration=name,
            scheme=content["scheme"]["name"],
            dvc_md5=lock[f"evaluation@{pair}"].md5,
            model_md5=dvc_digest(root / path),
            calibration_md5=dvc_digest(chosen),
            choice=content["calibration_set"]["choice"],
            scheme_params=lock[f"quantized_model@{pair}"].params[f"schemes.{content['scheme']['name']}"],
            metrics=metrics,
            hashes={
                "calibration_set": content["calibration_set"]["digest"],
                "statistics": content["statistics"]["digest"],
                "base_model": content["base_model"]["digest"],
                "tokenizer_fingerprint": content["fingerprint"],
            },
            dagster_run_id="run-1",
            code_version="0123456789ab",
            pages=pages,
            counts={key: manifest[key] for key in ("samples", "tokens")},
            rests_on=upstream(root, lock[f"evaluation@{pair}"].outs, lock[f"evaluation@{pair}"].deps),
        )
        log_run(tracking, evaluation.as_run())
    promote(Registry(tracking), root, "1", "Ada", "the first")


def remember(root: Path, stage: str, **changes: Any) -> None:
    """Let dvc.lock move on from a stage, which DVC's run cache then alone remembers."""
    lock = root / "dvc.lock"
    content = yaml.safe_load(lock.read_text())
    entry = content["stages"].pop(stage) | changes
    lock.write_text(yaml.safe_dump(content), encoding="utf-8")
    path = root / ".dvc/cache/runs" / stage[:2] / stage / "run"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(entry), encoding="utf-8")


def record(root: Path, stage: str, out: str, deps: list[str], params: dict[str, Any] | None = None) -> str:
    """Enter an output into dvc.lock and DVC's cache, as a commit would."""
    lock = root / "dvc.lock"
    content = yaml.safe_load(lock.read_text()) if lock.is_file() else {"schema": "2.0", "stages": {}}
    recorded = {o["path"]: o["md5"] for entry in content["stages"].values() for o in entry["outs"]}
    md5 = dvc_digest(root / out)
    content["stages"][stage] = {
        "cmd": "",
        "deps": [{"path": path, "md5": recorded[path]} for path in deps],
        "params": {"params.yaml": params or {}},
        "outs": [{"path": out, "md5": md5}],
    }
    lock.write_text(yaml.safe_dump(content), encoding="utf-8")
    files = Hasher().files(root / out)
    for name, digest in files.items():
        put(root, digest, (root / out / name).read_bytes())
    listing = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    put(root, md5, json.dumps(listing, sort_keys=True).encode())
    return md5


def put(root: Path, md5: str, data: bytes) -> None:
    path = root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def states(result: AuditResult) -> dict[str, str]:
    return {link.name: link.status for link in result.links if link.status != "verified"}


def link(result: AuditResult, name: str) -> Any:
    return next(link for link in result.links if link.name == name)


def make_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A pair of keys on the curve P-256, in PEM."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private, pem = ec.generate_private_key(ec.SECP256R1()), serialization.Encoding.PEM
    paths = folder / f"{name}.pem", folder / f"{name}.pub"
    secret = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    paths[0].write_bytes(secret)
    paths[1].write_bytes(private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return paths
