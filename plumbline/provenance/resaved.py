"""A copy of a recorded model that `save_pretrained` rewrote: other bytes, and every number the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import Any

from plumbline.artifact import sha256_file
from plumbline.provenance.model_files import CONFIG, RECORD, TOKENIZER, irregular, parse_object, plain_file, read_object
from plumbline.versioning.cache import cached, cached_bytes, cached_folders
from plumbline.versioning.digest import Hasher, folder_digest
from plumbline.versioning.lock import Entry

GENERATION, INDEX = "generation_config.json", "model.safetensors.index.json"
BESIDE = ("README.md", INDEX, *TOKENIZER)
"""Files that a copy may have beside the original's: the tokenizer's are compared by what it does, the rest is prose."""
UNDECISIVE = ("transformers_version", "_name_or_path", "_from_model_config", "calibration", "_commit_hash")
"""Keys of config.json and generation_config.json that decide no number."""
UNDECISIVE_OF_QUANTIZATION = ("calibration", "version", "run_compressed")


@dataclass(frozen=True)
class Resaved:
    """The recorded folder of which a model is a copy, and the differences."""

    path: str
    """Where the original is: its path in the workspace, or DVC's cache."""
    md5: str
    """DVC hash of the original's folder."""
    files: Mapping[str, Path]
    """The original's files by name."""
    rewritten: tuple[str, ...] = ()
    """Files with other bytes, without the tokenizer's."""
    problems: tuple[str, ...] = field(default=())
    """What decides a number and is not the original's."""
    same_tensors: bool = False


def resaved(model: Path, root: Path, lock: Mapping[str, Entry], hasher: Hasher) -> Resaved | None:
    """Find the recorded model whose record a copy names in config.json, and compare the two.

    None if the copy names no record, if no recorded model has it, or if it is a recorded folder itself.
    """
    digest = _record_digest(model)
    if not digest or not model.is_dir() or irregular(model):
        return None
    own = folder_digest(hasher.files(model))
    inside = model.resolve().relative_to(root.resolve()).as_posix() if _inside(model, root) else ""
    recorded = {md5: path for entry in lock.values() for path, md5 in entry.outs.items()}
    if own in recorded or inside in recorded.values() or cached(root, own) is not None:
        return None
    for path, md5, files in _originals(root, recorded, digest, hasher):
        return _compared(model, path, md5, files)
    return None


def _inside(model: Path, root: Path) -> bool:
    return model.resolve().is_relative_to(root.resolve())


def _record_digest(model: Path) -> str:
    """SHA-256 of calibration.json according to config.json; empty without a calibration entry."""
    with suppress(OSError, ValueError, AttributeError):
        config = read_object(plain_file(model, CONFIG))
        for entry in (config.get("calibration"), (config.get("quantization_config") or {}).get("calibration")):
            if isinstance(entry, dict) and isinstance(entry.get("record"), dict):
                return str(entry["record"].get("sha256", ""))
    return ""


def _originals(
    root: Path, recorded: Mapping[str, str], digest: str, hasher: Hasher
) -> Iterator[tuple[str, str, dict[str, Path]]]:
    """Recorded folders with this calibration.json: path, DVC hash, files."""
    for folder in sorted((root / "data/quantized_model").glob("*")):
        path = folder.relative_to(root).as_posix()
        if (folder / RECORD).is_file() and sha256_file(folder / RECORD) == digest:
            names = hasher.files(folder)
            if recorded.get(folder_digest(names)) == path:
                yield path, folder_digest(names), {name: folder / name for name in names}
    for md5, files in cached_folders(root):
        if {RECORD, CONFIG} <= files.keys():
            data = cached_bytes(root, files[RECORD])
            held = {name: cached(root, file) for name, file in files.items()}
            if data and sha256(data).hexdigest() == digest and all(held.values()):
                yield "DVC's cache", md5, {name: place for name, place in held.items() if place is not None}


def _compared(model: Path, path: str, md5: str, files: dict[str, Path]) -> Resaved:
    copy = {file.relative_to(model).as_posix(): file for file in sorted(model.rglob("*")) if file.is_file()}
    other = [name for name in copy if name in files and sha256_file(copy[name]) != sha256_file(files[name])]
    tokenizer = [name for name in {*copy, *files} if any(fnmatch(name, pattern) for pattern in TOKENIZER)]
    problems = [f"{name} was added" for name in copy if name not in files and not any(fnmatch(name, p) for p in BESIDE)]
    problems = [text for text in problems if not text.split(" ")[0].endswith(".safetensors")]  # compared as tensors
    if RECORD in other:
        problems.append(f"{RECORD} has other bytes")
    if GENERATION in files and GENERATION not in copy:
        problems.append(f"{GENERATION} is gone")
    for name in (CONFIG, GENERATION):
        if name in other and _decisive(name, copy[name]) != _decisive(name, files[name]):
            problems.append(f"{name} decides other numbers: {_other_keys(name, copy[name], files[name])}")
    weights = [name for name in {*copy, *files} if name.endswith(".safetensors")]
    same_tensors = not {*weights} & {*other} and all(name in copy and name in files for name in weights)
    if not same_tensors:
        try:
            different = _other_tensors(_only(copy, weights), _only(files, weights))
        except Exception as error:  # safetensors raises its own class for a file that it cannot read
            different = f"they cannot be read ({str(error)[:80]})"
        same_tensors = not different
        problems += [f"weights: {different}"] if different else []
    problems += [
        f"{name} has other bytes"
        for name in other
        if name not in (CONFIG, GENERATION, RECORD, *tokenizer, *weights, "README.md", INDEX)
    ]
    rewritten = tuple(sorted({*other} - {*tokenizer}))
    return Resaved(path, md5, files, rewritten, tuple(problems), same_tensors)


def _only(files: Mapping[str, Path], names: list[str]) -> list[Path]:
    return [files[name] for name in sorted(names) if name in files]


def _decisive(name: str, path: Path) -> dict[str, Any]:
    """The content of a configuration with its defaults, without what decides no number."""
    content = parse_object(path.read_bytes(), name)
    quantization = dict(content.get("quantization_config") or {})
    for key in UNDECISIVE_OF_QUANTIZATION:
        quantization.pop(key, None)
    plain = {key: value for key, value in content.items() if key not in (*UNDECISIVE, "quantization_config")}
    filled = {**plain, **_with_defaults(name, plain)}
    # An absent entry and an empty one mean the same to transformers and to compressed-tensors.
    return {
        "fields": {key: value for key, value in filled.items() if key not in UNDECISIVE and value is not None},
        "quantization": {key: value for key, value in quantization.items() if value not in (None, {}, [])},
    }


def _with_defaults(name: str, content: dict[str, Any]) -> dict[str, Any]:
    from transformers import CONFIG_MAPPING, GenerationConfig

    if name == GENERATION:
        return dict(GenerationConfig.from_dict(content).to_dict())
    kind = str(content.get("model_type"))
    if "auto_map" in content or kind not in CONFIG_MAPPING:
        return {}  # a model with its own code: compared as it is written
    return dict(CONFIG_MAPPING[kind].from_dict(content).to_dict())


def _other_keys(name: str, copy: Path, original: Path) -> str:
    ours, theirs = _decisive(name, copy), _decisive(name, original)
    return ", ".join(
        sorted(
            key for part in ours for key in {*ours[part], *theirs[part]} if ours[part].get(key) != theirs[part].get(key)
        )
    )


def _other_tensors(copy: list[Path], original: list[Path]) -> str:
    """The first difference between the tensors of two models, one tensor in memory at a time; empty without one."""
    import torch

    places, theirs = _tensors(copy), _tensors(original)
    if places.keys() != theirs.keys():
        return f"{min(places.keys() ^ theirs.keys())} is in one of the two only"
    for name in sorted(places):
        ours, other = _tensor(places[name], name), _tensor(theirs[name], name)
        same = ours.dtype == other.dtype and ours.shape == other.shape
        if not same or not torch.equal(ours.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)):
            return f"{name} differs"
    return ""


def _tensors(paths: list[Path]) -> dict[str, Path]:
    from safetensors import safe_open

    places: dict[str, Path] = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            places |= dict.fromkeys(file.keys(), path)
    return places


def _tensor(path: Path, name: str) -> Any:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name).contiguous()
