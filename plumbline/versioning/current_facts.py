"""The current values of the facts, and the links that let DVC watch what they are computed from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plumbline.artifact import replace_text, sha256_file, sha256_json
from plumbline.base_model.chat_template import template_path
from plumbline.base_model.folder import local_folder, tokenizer_files, weight_files
from plumbline.base_model.params import ModelParams
from plumbline.raw_corpus.file_hashes import FileHashes
from plumbline.versioning.code import VERSIONS, code_versions, link, link_library
from plumbline.versioning.digest_memo import DigestMemo
from plumbline.versioning.facts import BASE_MODEL, FACTS, MODEL_LINK, NAMED_OUTPUTS
from plumbline.versioning.pipeline import assets_with_code, stage_names

GRID_ASSETS = {"calibration_set": False, "activation_stats": False, "quantized_model": True, "evaluation": True}
"""Assets of which `grid:` names partitions; whether a partition is a pair of choice and scheme."""


def facts_in_use(root: Path) -> list[str]:
    """The files of facts whose stages dvc.yaml has."""
    stages = set(stage_names(root))
    return [file for file, stage in FACTS.items() if stage in stages]


def current(root: Path, file: str) -> dict[str, Any]:
    """The current content of a file of facts.

    Raises:
        ValueError: params.yaml is invalid.
    """
    return _CONTENT[file](root)


def link_inputs(root: Path) -> None:
    """Link what facts are computed from into the workspace: the library and the base model.

    Raises:
        OSError: the workspace is not writable.
        ValueError: params.yaml is invalid.
    """
    link_library(root)
    if BASE_MODEL in facts_in_use(root):
        _link_base_model(root)


def _link_base_model(root: Path) -> None:
    from plumbline.params import load_params

    model, place = load_params(root).model, root / MODEL_LINK
    folder = local_folder(model, root)
    if folder is not None:
        link(place, folder.resolve())
        return
    text = f"{model.name}@{model.revision}\n"
    if place.is_symlink() or not place.is_file() or place.read_text(encoding="utf-8") != text:
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_text(place, text)


def _code(root: Path) -> dict[str, Any]:
    return dict(code_versions(root, assets_with_code(root)))


def _base_model(root: Path) -> dict[str, Any]:
    from plumbline.params import load_params

    return base_model_digests(root, load_params(root).model)


def base_model_digests(root: Path, model: ModelParams) -> dict[str, Any]:
    """Digests of a local model's files; of a model on the hub, its name and commit, which determine its content."""
    template = template_path(model, root)
    other = sha256_file(template) if template is not None and template.is_file() else ""
    folder = local_folder(model, root)
    if folder is None:
        name = f"{model.name}@{model.revision}"
        return {"weights": name, "tokenizer": f"{name} {other}".rstrip()}
    hashes = FileHashes(root / ".plumbline" / "base_model_hashes.json")
    digests = {
        key: sha256_json({name: hashes.sha256(folder / name) for name in names})
        for key, names in (("weights", weight_files(folder)), ("tokenizer", tokenizer_files(folder)))
    }
    if os.access(root / ".plumbline", os.W_OK):
        hashes.save()
    return {**digests, "tokenizer": sha256_json([digests["tokenizer"], other])} if other else digests


def _named_outputs(root: Path) -> dict[str, Any]:
    from plumbline.params import load_params

    params, digests = load_params(root), DigestMemo(root)
    pairs, choices = list(params.pairs()), list(params.grid.calibrations)
    paths = {
        asset: [f"data/{asset}/{key}" for key in (pairs if is_pair else choices)]
        for asset, is_pair in GRID_ASSETS.items()
    }
    named = {asset: {path: md5 for path in of if (md5 := digests.get(path))} for asset, of in paths.items()}
    digests.save()
    return named


_CONTENT: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    VERSIONS: _code,
    BASE_MODEL: _base_model,
    NAMED_OUTPUTS: _named_outputs,
}
