"""The files behind a registered version, so that MLflow loads it by its URI.

A version is registered by reference. When it becomes the champion, its model is put where MLflow looks for it: hard
links to DVC's objects where the store is local, so that there is no second copy of the weights, and an upload where it
is remote.
"""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version as installed
from math import isclose
from pathlib import Path
from typing import Any

from plumbline.artifact import link_or_copy, read_json
from plumbline.calibration_report.wording import join
from plumbline.tracking.location import local_folder
from plumbline.tracking.model_version import ModelVersion
from plumbline.tracking.registry import Registry
from plumbline.tracking.run import STAGE
from plumbline.tracking.samples import SAMPLES
from plumbline.tracking.text import figures_text
from plumbline.tracking.view import TRAINING
from plumbline.versioning.cache import cached, cached_listing
from plumbline.versioning.digest import dvc_digest

log = logging.getLogger(__name__)

EXTERNAL = "mlflow.model.isExternal"
"""Tag of a logged model whose files MLflow does not have."""
RECORD = "calibration.json"
WEIGHTS = ".safetensors"
PROMPT = "The first thing to know is"
"""The input example."""


def attach_model(registry: Registry, root: Path, target: ModelVersion) -> str:
    """Put the model of a version where MLflow loads it from, and describe the version; once per version.

    Returns:
        Empty, or a sentence why the version cannot be loaded by its URI. A promotion does not depend on it.
    """
    try:
        files = model_files(root, target)
        if files is None:
            return f"{target.shown} cannot be loaded by its URI: neither {target.path} nor DVC's cache has its files"
        with registry.tracking.client() as client:
            model_id = _logged_model(client, target)
            logged = client.get_logged_model(model_id)
            location = str(logged.artifact_location)
            local = local_folder(location)
            attached = EXTERNAL not in logged.tags
            if attached and (local is None or (local / "MLmodel").is_file()):
                return ""
            record = json.loads(files[RECORD].read_text(encoding="utf-8"))
            around = root / ".plumbline" if local is None else local.parent
            around.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=around) as scratch:
                folder = Path(scratch) / "model"
                write_mlflow_model(files, record, target, model_id, folder)
                if local is None:
                    client.log_model_artifacts(model_id, str(folder))
                else:
                    shutil.rmtree(local, ignore_errors=True)  # what a killed upload left
                    folder.rename(local)
            if not attached:
                client.delete_logged_model_tag(model_id, EXTERNAL)
            client.update_model_version(target.name, target.version, description(record, target, registry, root))
    except Exception as error:  # of MLflow, its store, or another version of transformers
        return f"{target.shown} cannot be loaded by its URI: {type(error).__name__}: {str(error)[:300]}"
    return ""


def model_files(root: Path, target: ModelVersion) -> dict[str, Path] | None:
    """The files of a version's model by name: DVC's objects, or those of the workspace if they are its bytes."""
    listing = cached_listing(root, target.model) if target.model else None
    if listing is not None:
        objects = {name: cached(root, md5) for name, md5 in listing.items()}
        if all(objects.values()) and RECORD in objects:
            return {name: path for name, path in objects.items() if path is not None}
    folder = root / target.path
    if not target.path or not (folder / RECORD).is_file() or dvc_digest(folder) != target.model:
        return None
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def write_mlflow_model(
    files: Mapping[str, Path], record: Mapping[str, Any], target: ModelVersion, model_id: str, out: Path
) -> None:
    """Write an MLflow model with the flavors transformers and, for texts, pyfunc.

    Its files are hard links where that is possible. (`mlflow.transformers.save_model` would copy the weights, and that
    of MLflow 3.17 fails on a checkpoint's folder with transformers 5.)

    Raises:
        ValueError: the model has code of its own, which MLflow would run unasked.
    """
    import transformers
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    architecture = str(read_json(files["config.json"])["architectures"][0])
    if not hasattr(transformers, architecture):
        raise ValueError(f"{architecture} has code of its own, which MLflow would run unasked; load its folder instead")
    for name, path in files.items():
        link_or_copy(path.resolve(), out / "model" / name)
        if not name.endswith(WEIGHTS):
            link_or_copy(path.resolve(), out / "components/tokenizer" / name)
    text = Schema([ColSpec(DataType.string)])
    size = sum(path.stat().st_size for path in files.values())
    example = {"artifact_path": "input_example.json", "serving_input_path": "serving_input_example.json"}
    model = Model(
        run_id=target.run_id,
        model_id=model_id,
        signature=ModelSignature(text, text),
        saved_input_example_info={**example, "type": "json_object"},
        metadata=about(record),
        model_size_bytes=size,
    )
    writes = architecture.endswith("ForCausalLM")
    model.add_flavor(
        "transformers",
        transformers_version=transformers.__version__,
        code=None,
        task="text-generation" if writes else "image-text-to-text",
        instance_type="TextGenerationPipeline" if writes else "ImageTextToTextPipeline",
        pipeline_model_type=architecture,
        source_model_name=target.pair,
        model_binary="model",
        tokenizer_type="AutoTokenizer",
        components=["tokenizer"],
    )
    if writes:
        pyfunc.add_to_model(model, loader_module="mlflow.transformers", python_env="python_env.yaml")
    model.save(str(out / "MLmodel"))
    requirements = [f"{name}=={installed(name)}" for name in ("mlflow", "transformers", "torch", "compressed-tensors")]
    texts = {
        "input_example.json": json.dumps(PROMPT),
        "serving_input_example.json": json.dumps({"inputs": [PROMPT]}),
        "requirements.txt": "\n".join(requirements),
        "python_env.yaml": f'python: "{platform.python_version()}"\ndependencies: ["-r requirements.txt"]',
    }
    for name, content in texts.items():
        (out / name).write_text(content + "\n", encoding="utf-8")


def about(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the model says of itself: base model, scheme, share, calibration set."""
    chosen = record["calibration_set"]
    return {
        "base_model": record["base_model"]["name"],
        "base_model_revision": record["base_model"].get("revision"),
        "base_model_digest": record["base_model"]["digest"],
        "scheme": record["scheme"]["name"],
        "share_quantized": record["coverage"]["share"],
        "calibration_choice": chosen["choice"]["name"],
        "calibration_set_digest": chosen["digest"],
    }


def description(record: Mapping[str, Any], target: ModelVersion, registry: Registry, root: Path) -> str:
    """The version in words, with links to its run, its samples and the report, for its page in MLflow."""
    facts = about(record)
    revision = f" at {facts['base_model_revision']}" if facts["base_model_revision"] else ""
    uri = f"models:/{target.name}/{target.version}"
    metrics = registry.run(target.run_id).metrics if target.run_id else {}
    lines = [
        f"**{facts['base_model']}**{revision} (digest {facts['base_model_digest'][:12]}), quantized under "
        f"`{facts['scheme']}`: {100 * facts['share_quantized']:.0f} % of the weights in matrices.",
        f"Calibrated by the choice `{facts['calibration_choice']}` (set {facts['calibration_set_digest'][:12]}).",
        figures_text(metrics, _interval(root, target.pair, metrics)),
        _links(registry, target.run_id),
        f"`mlflow.transformers.load_model('{uri}')` loads it, `plumbline audit {uri}` traces it to its texts.",
    ]
    return "\n\n".join(line for line in lines if line)


def _links(registry: Registry, run_id: str) -> str:
    """Links to the pages of a run, its samples and the latest report, as far as MLflow has them."""
    if not run_id:
        return ""
    with registry.tracking.client() as client:
        experiment = str(client.get_run(run_id).info.experiment_id)
        links = {"its evaluation": f"runs/{run_id}"}
        if any(file.path == SAMPLES for file in client.list_artifacts(run_id)):
            links["the samples it was calibrated with"] = f"runs/{run_id}/artifacts/{SAMPLES}"
        query = f"tags.`{STAGE}` = 'calibration_report'"
        if reports := client.search_runs([experiment], query, max_results=1):
            links["the calibration report"] = f"runs/{reports[0].info.run_id}/artifacts/report.html"
    shown = [f"[{label}](#/experiments/{experiment}/{page}?{TRAINING})" for label, page in links.items()]
    return f"See {join(shown)}."


def _interval(root: Path, pair: str, metrics: Mapping[str, float]) -> str:
    """The interval of a model's KL, from the report of the workspace if that is about the same evaluation."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        verdict = read_json(root / "data/calibration_report/verdict.json")
        estimate = verdict["estimates"][pair]
        if isclose(estimate["kl_mean"], metrics["kl_mean"], rel_tol=1e-9) and estimate["low"] is not None:
            ends = f"{max(estimate['low'], 0):.3g} to {estimate['high']:.3g}"
            return f" ({100 * verdict['confidence']:g} % interval {ends})"
    return ""


def _logged_model(client: Any, target: ModelVersion) -> str:
    """The id of the logged model that a version was registered from."""
    version = client.get_model_version(target.name, target.version)
    match = re.fullmatch(r"models:/(m-\w+)", str(version.source))
    if match is None:
        raise ValueError(f"its source is {version.source!r}, not a logged model")
    return match[1]
