"""The links inside the model's folder: its record, its weights, the folder as a whole, its tokenizer."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from plumbline.artifact import sha256_file, sha256_json
from plumbline.provenance.link import Case, Link, dig, how_to_restore
from plumbline.versioning.cache import cached_listing
from plumbline.versioning.digest import differences, folder_digest

RECORD, CONFIG = "calibration.json", "config.json"
FORMAT = 1
COPIED = ("format", "base_model", "fingerprint", "statistics", "scheme", "code_version")
"""Entries that config.json repeats from calibration.json."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pkl", ".npz", ".py")
"""Files that decide what the model computes; one that the record does not name is an intruder."""
TOKENIZER = (
    "tokenizer*",
    "*.model",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
)
MAX_JSON = 1 << 30
"""Bytes of a JSON file that is read at all: a hundred times the largest that Plumbline writes."""
RESTORE = "restore the folder from where it was made (`dvc checkout --force`, or the registry's path), then audit again"


class Unsafe(ValueError):
    """A name or file that leads out of the folder."""


def plain_file(folder: Path, name: str) -> Path:
    """A regular file directly in the folder.

    Raises:
        Unsafe: the name has a path in it, or the file is a link or something else.
        FileNotFoundError: there is none.
    """
    if not name or name != Path(name).name or "\\" in name or "\0" in name or name in (".", ".."):
        raise Unsafe(f"the file name {name!r} leads out of the folder")
    path = folder / name
    if path.is_symlink():
        raise Unsafe(f"{name} is a symbolic link, whose target nobody vouches for")
    if not path.exists():
        raise FileNotFoundError(f"{name} is not there")
    if not path.is_file():
        raise Unsafe(f"{name} is not a file")
    return path


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is something else.
    """
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"{path.name} has {path.stat().st_size:,} bytes; no record is above {MAX_JSON:,}")
    return parse_object(path.read_bytes(), path.name)


def parse_object(data: bytes, name: str = "it") -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is something else.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not a JSON object")
    return value


def record_of(folder: Path) -> dict[str, Any]:
    """calibration.json of a model; empty if it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return read_object(plain_file(folder, RECORD))
    return {}


def record(case: Case) -> Link:
    """calibration.json is the one whose SHA-256 config.json carries, and both say the same. Fills in the case."""
    name, problems = "record", []
    entries: list[Any] = []
    try:
        config = read_object(plain_file(case.model, CONFIG))
        # Twice in there: save_pretrained of transformers drops the first one.
        both = (dig(config, "quantization_config", "calibration"), config.get("calibration"))
        entries = [entry for entry in both if entry is not None]
    except FileNotFoundError:
        problems.append("config.json is not there")
    except ValueError as error:
        problems.append(str(error))
    if len(entries) == 2 and entries[0] != entries[1]:
        problems.append("the two entries on calibration in config.json differ")
    case.summary = entries[0] if entries else None
    found = ""
    try:
        path = plain_file(case.model, RECORD)
        found = sha256_file(path)
        case.record = read_object(path)
    except FileNotFoundError:
        if case.summary is None and not problems:
            meaning = "the model does not say what it was calibrated on: no calibration.json, nothing in config.json"
            return Link(name, "missing", meaning, fix="only models that Plumbline made can be audited")
        problems.append("calibration.json is not there, although config.json speaks of it")
    except ValueError as error:
        problems.append(str(error))
    case.summary = next((e for e in entries if dig(e, "record", "sha256") == found), case.summary)
    expected = dig(case.summary, "record", "sha256")
    if case.summary is None and not problems:
        problems.append("config.json does not say what the model was calibrated on")
    elif case.record is not None and found != expected:
        problems.append("calibration.json is not the one that config.json names")
    elif case.record is not None:
        problems += _contradictions(case.record, case.summary)
    case.record_holds = case.record is not None and not problems
    if problems:
        return Link(name, "tampered", "; ".join(problems), str(expected or ""), found, RESTORE)
    return Link(name, "verified", "calibration.json is the one that config.json names", str(expected), found)


def _contradictions(record: dict[str, Any], summary: Any) -> list[str]:
    wrong = [
        f"calibration.json and config.json differ in {key}" for key in COPIED if record.get(key) != summary.get(key)
    ]
    if record.get("format") != FORMAT:
        wrong.append(f"format {record.get('format')!r} of calibration.json, this version reads {FORMAT}")
    of_set = dig(record, "calibration_set")
    pairs = [("digest", dig(of_set, "digest")), ("samples", len(samples_of(record)))]
    pairs += [(key, dig(of_set, "choice", key)) for key in ("name", "strategy", "n", "seed")]
    for key, value in pairs:
        if dig(summary, "calibration_set", key) != value:
            wrong.append(f"calibration.json and config.json differ in calibration_set.{key}")
    return wrong


def samples_of(record: Any) -> list[dict[str, Any]]:
    """The samples that the record lists, in order; those that are no objects are left out."""
    listed = dig(record, "calibration_set", "samples")
    return [sample for sample in listed if isinstance(sample, dict)] if isinstance(listed, list) else []


def documents_of(record: Any) -> set[str]:
    """Ids of the documents whose text is in the samples; a sample that the base model wrote has none."""
    listed = (sample.get("doc_ids") for sample in samples_of(record))
    return {str(document) for documents in listed if isinstance(documents, list) for document in documents}


def weights(case: Case) -> Link:
    """Every weights file has the SHA-256 that calibration.json records; none is missing, none was added."""
    name, recorded = "weights", dig(case.record, "model")
    if not isinstance(recorded, dict) or not recorded:
        return Link(name, "missing", "calibration.json does not record the weights' digests", fix=RESTORE)
    altered, absent, size = [], [], 0
    found = {}
    for file, expected in sorted(recorded.items()):
        try:
            path = plain_file(case.model, file)
            found[file] = sha256_file(path)
            size += path.stat().st_size
            if found[file] != expected:
                altered.append(f"{file} holds other bytes")
        except FileNotFoundError:
            absent.append(file)
        except Unsafe as error:
            altered.append(str(error))
    present = sorted(
        path.relative_to(case.model).as_posix() for path in case.model.rglob("*") if path.suffix in WEIGHTS
    )
    altered += [f"{file} is not on record" for file in present if file not in recorded]
    altered += [f"{file} is not there" for file in absent] if altered else []
    digests = _one(recorded), _one(found)
    if altered:
        return Link(name, "tampered", "; ".join(altered), *digests, RESTORE)
    if absent:
        return Link(name, "missing", f"not there: {', '.join(absent)}", *digests, RESTORE)
    files = f"{len(found)} files" if len(found) > 1 else next(iter(found))
    return Link(name, "verified", f"{files}, {size:,} bytes, as calibration.json records", *digests)


def _one(digests: dict[str, Any]) -> str:
    """The digest of one file, or the digest over those of several."""
    values = list(digests.values())
    return (
        str(values[0]) if len(values) == 1 else sha256_json({k: str(v) for k, v in digests.items()}) if values else ""
    )


def folder(case: Case) -> Link:
    """The folder as a whole has the DVC hash that dvc.lock (or DVC's cache) has for it."""
    name, found = "model folder", case.digest
    if not case.model.is_dir():
        return Link(name, "missing", f"{case.model} is not a folder", fix="give the folder that holds config.json")
    odd = [path for path in case.model.rglob("*") if path.is_symlink() or not (path.is_file() or path.is_dir())]
    if odd:
        names = sorted(path.relative_to(case.model).as_posix() for path in odd)
        return Link(name, "tampered", f"links or devices in it: {', '.join(names[:5])}", "", found, RESTORE)
    files = case.hasher.files(case.model)
    count = f"{len(files)} files"
    here = case.recorded(case.place) if case.place else None
    if here is not None:
        if here == found:
            return Link(name, "verified", f"{count}, as dvc.lock records for {case.place}", here, found)
        before = cached_listing(case.root, here)
        what = ", ".join(differences(before, files)[:5]) if before else "some of its files changed"
        meaning = f"not what dvc.lock records for {case.place}: {what}"
        return Link(name, "tampered", meaning, here, found, how_to_restore(case, case.place))
    if case.entry is not None:
        return Link(name, "verified", f"{count}, the same as {next(iter(case.entry.outs))} in dvc.lock", found, found)
    if cached_listing(case.root, found) is not None:
        return Link(
            name, "verified", f"{count}, a version that DVC's cache holds (dvc.lock has moved on)", found, found
        )
    return _unknown(case, files, found)


def _unknown(case: Case, files: dict[str, str], found: str) -> Link:
    """A folder that DVC has no record of: a changed copy of one that it has, or from elsewhere?"""
    name = "model folder"
    for entry in case.lock.values():
        for path, expected in entry.outs.items():
            original = cached_listing(case.root, expected) if entry.name.startswith("quantized_model@") else None
            if original is None and path.startswith("data/quantized_model/") and (case.root / path).is_dir():
                original = case.hasher.files(case.root / path)
                original = original if folder_digest(original) == expected else None
            same = [f for f in original or {} if f.endswith((".safetensors", RECORD)) and original[f] == files.get(f)]  # type: ignore[index]
            if original and same:
                what = ", ".join(differences(original, files)[:5])
                return Link(name, "tampered", f"a changed copy of {path}: {what}", expected, found, RESTORE)
    meaning = "dvc.lock and DVC's cache here know no such folder: it was made elsewhere, or changed since"
    fix = "audit it inside the workspace that made it (PLUMBLINE_ROOT), after `dvc pull` there"
    return Link(name, "missing", meaning, "", found, fix)


def tokenizer(case: Case) -> Link:
    """The tokenizer files give the fingerprint under which the calibration set was tokenized."""
    name, claims = "tokenizer", case.claims("fingerprint")
    if not claims:
        return Link(name, "missing", "the model records no tokenization fingerprint", fix=RESTORE)
    files = [path for pattern in TOKENIZER for path in case.model.glob(pattern)]
    if odd := [path.name for path in files if path.is_symlink() or not path.is_file()]:
        return Link(name, "tampered", f"not a plain file: {', '.join(odd)}", claims[0], "", RESTORE)
    if not files:
        return Link(name, "missing", "the folder has no tokenizer", claims[0], "", RESTORE)
    loaded, problem = _load_tokenizer(case.model)
    if problem:
        return Link(name, "tampered", f"it does not load: {problem}", claims[0], "", RESTORE)

    from plumbline.tokenized_samples.fingerprint import tokenizer_fingerprint

    known = _known_parts(case, claims)
    found = ""
    for params in _settings(case, known):
        found, parts = tokenizer_fingerprint(loaded, params)
        if found in claims:
            meaning = "its files give the fingerprint under which the calibration set was tokenized"
            return Link(name, "verified", meaning, found, found)
        if known is not None:
            other = sorted(key for key in known if parts.get(key) != known[key])
            meaning = f"not the tokenizer that the calibration set was tokenized with: {', '.join(other)} differ"
            return Link(name, "tampered", meaning, claims[0], found, RESTORE)
    meaning = (
        "the tokenization settings that are part of the fingerprint are not at hand (data/tokenized_samples holds "
        "another tokenization), and those of params.yaml do not give it"
    )
    return Link(name, "missing", meaning, claims[0], found, "dvc checkout data/tokenized_samples of the model's commit")


def _load_tokenizer(model: Path) -> tuple[Any, str]:
    from plumbline.base_model.load import load_tokenizer

    problem = ""
    # A second time without config.json, whose own damage is the record's business.
    with tempfile.TemporaryDirectory() as scratch:
        for folder in (model, Path(scratch)):
            try:
                return load_tokenizer(folder), ""
            except (KeyboardInterrupt, SystemExit, MemoryError):
                raise
            except BaseException as error:  # a panic of the Rust library is no Exception
                problem = f"{type(error).__name__}: {error}"
            for path in {path for pattern in TOKENIZER for path in model.glob(pattern) if path.is_file()}:
                shutil.copyfile(path, Path(scratch) / path.name)
    return None, problem[:200]


def _known_parts(case: Case, claims: list[str]) -> dict[str, Any] | None:
    """What the fingerprint was made of, from wherever it is written down; believed only if it gives the fingerprint."""
    written = [dig(case.record, "fingerprint_parts")]
    accounting = case.root / "data" / "tokenized_samples" / "accounting.json"
    if accounting.is_file():
        with contextlib.suppress(ValueError):
            written.append(read_object(accounting).get("fingerprint_parts"))
    return next((parts for parts in written if isinstance(parts, dict) and sha256_json(parts) in claims), None)


def _settings(case: Case, known: dict[str, Any] | None) -> list[Any]:
    """Tokenization settings worth trying, likeliest first."""
    from pydantic import ValidationError

    from plumbline.tokenized_samples.params import TokenizeParams

    tried: list[Any] = [known] if known else []
    stage = case.lock.get("tokenized_samples")
    tried.append(dig(stage.params, "tokenize") if stage else None)
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        params = yaml.safe_load((case.root / "params.yaml").read_text(encoding="utf-8"))
        tried.append(dig(params, "tokenize"))
    settings = []
    for candidate in [*tried, {}]:
        if isinstance(candidate, dict):
            fields = {key: value for key, value in candidate.items() if key in TokenizeParams.model_fields}
            try:
                settings.append(TokenizeParams.model_validate(fields))
            except ValidationError:
                continue
    return settings
