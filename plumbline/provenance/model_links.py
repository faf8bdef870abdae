"""Checks of the model's folder: its record, its weights, the folder as a whole, its tokenizer."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from plumbline.artifact import sha256_file, sha256_json
from plumbline.provenance.link import Case, Link, dig, how_to_restore
from plumbline.provenance.model_files import (
    CONFIG,
    RECORD,
    RESTORE,
    TOKENIZER,
    WEIGHTS,
    Unsafe,
    irregular,
    is_cache_link,
    plain_file,
    read_object,
    samples_of,
)
from plumbline.versioning.cache import cached_listing
from plumbline.versioning.digest import differences, folder_digest
from plumbline.yaml_file import read_yaml

FORMAT = 1
COPIED = ("format", "base_model", "fingerprint", "statistics", "scheme", "code_version")
"""Entries that config.json repeats from calibration.json."""


def record(case: Case) -> Link:
    """Check that config.json has the SHA-256 of calibration.json and the same entries; reads both into the case."""
    name, problems = "record", []
    entries: list[Any] = []
    try:
        config = read_object(plain_file(case.model, CONFIG))
        # The entry is stored twice, because save_pretrained of transformers drops the first one.
        both = (dig(config, "quantization_config", "calibration"), config.get("calibration"))
        entries = [entry for entry in both if entry is not None]
    except FileNotFoundError:
        problems.append("config.json does not exist")
    except ValueError as error:
        problems.append(str(error))
    if len(entries) == 2 and entries[0] != entries[1]:
        problems.append("the two calibration entries in config.json differ")
    case.summary = entries[0] if entries else None
    digest = ""
    try:
        path = _record_path(case)
        digest = sha256_file(path)
        case.record = read_object(path)
    except FileNotFoundError:
        if case.summary is None and not problems:
            meaning = "the model has no calibration record: no calibration.json, and no entry in config.json"
            return Link(name, "missing", meaning, fix="only models made by Plumbline can be audited")
        problems.append("calibration.json does not exist, but config.json refers to it")
    except ValueError as error:
        problems.append(str(error))
    case.summary = next((e for e in entries if dig(e, "record", "sha256") == digest), case.summary)
    expected = dig(case.summary, "record", "sha256")
    if case.summary is None and not problems:
        problems.append("config.json has no calibration entry")
    elif case.record is not None and digest != expected:
        problems.append("the SHA-256 of calibration.json is not the one in config.json")
    elif case.record is not None:
        problems += _contradictions(case.record, case.summary)
    case.record_holds = case.record is not None and not problems
    if problems:
        return Link(name, "tampered", "; ".join(problems), str(expected or ""), digest, RESTORE)
    meaning = "the SHA-256 of calibration.json is the one in config.json"
    if case.resaved and not (case.model / RECORD).exists():
        meaning = f"the copy lacks calibration.json; that of {case.resaved.path} has the SHA-256 in config.json"
    return Link(name, "verified", meaning, str(expected), digest)


def _record_path(case: Case) -> Path:
    """calibration.json of the model, or, where `save_pretrained` left it behind, that of the original."""
    try:
        return plain_file(case.model, RECORD)
    except FileNotFoundError:
        if case.resaved is None:
            raise
        return case.resaved.files[RECORD]


def _contradictions(record: dict[str, Any], summary: Any) -> list[str]:
    wrong = [
        f"calibration.json and config.json differ in {key}" for key in COPIED if record.get(key) != summary.get(key)
    ]
    if record.get("format") != FORMAT:
        wrong.append(f"calibration.json has format {record.get('format')!r}, this version reads {FORMAT}")
    calibration_set = dig(record, "calibration_set")
    pairs = [("digest", dig(calibration_set, "digest")), ("samples", len(samples_of(record)))]
    pairs += [(key, dig(calibration_set, "choice", key)) for key in ("name", "strategy", "n", "seed")]
    for key, value in pairs:
        if dig(summary, "calibration_set", key) != value:
            wrong.append(f"calibration.json and config.json differ in calibration_set.{key}")
    return wrong


def weights(case: Case) -> Link:
    """Check every weights file against its SHA-256 in calibration.json; none may be missing or added."""
    name, recorded = "weights", dig(case.record, "model")
    if not isinstance(recorded, dict) or not recorded:
        return Link(name, "missing", "calibration.json does not record the weights' digests", fix=RESTORE)
    altered, absent, size = [], [], 0
    digests = {}
    for file, expected in sorted(recorded.items()):
        try:
            path = plain_file(case.model, file)
            digests[file] = sha256_file(path)
            size += path.stat().st_size
            if digests[file] != expected:
                altered.append(f"{file} has other bytes")
        except FileNotFoundError:
            absent.append(file)
        except Unsafe as error:
            altered.append(str(error))
    present = sorted(
        path.relative_to(case.model).as_posix() for path in case.model.rglob("*") if path.suffix in WEIGHTS
    )
    altered += [f"{file} is not on record" for file in present if file not in recorded]
    altered += [f"{file} does not exist" for file in absent] if altered else []
    expected_and_found = _combined_digest(recorded), _combined_digest(digests)
    if (altered or absent) and case.resaved and case.resaved.same_tensors and case.original:
        meaning = f"other files than {case.resaved.path}, with the same tensors, byte for byte"
        return Link(name, "verified", meaning, *expected_and_found)
    if altered:
        return Link(name, "tampered", "; ".join(altered), *expected_and_found, RESTORE)
    if absent:
        return Link(name, "missing", f"missing: {', '.join(absent)}", *expected_and_found, RESTORE)
    files = f"{len(digests)} files" if len(digests) > 1 else next(iter(digests))
    return Link(name, "verified", f"{files}, {size:,} bytes, as calibration.json records", *expected_and_found)


def _combined_digest(digests: dict[str, Any]) -> str:
    """The digest of a single file, or a digest over the digests of several."""
    values = list(digests.values())
    return (
        str(values[0]) if len(values) == 1 else sha256_json({k: str(v) for k, v in digests.items()}) if values else ""
    )


def folder(case: Case) -> Link:
    """Check that dvc.lock or DVC's cache has the DVC hash of the folder."""
    name, digest = "model folder", case.digest
    if not case.model.is_dir():
        return Link(name, "missing", f"{case.model} is not a folder", fix="name the folder that contains config.json")
    if strange := irregular(case.model):
        return Link(name, "tampered", f"it contains links or devices: {', '.join(strange[:5])}", "", digest, RESTORE)
    files = case.hasher.files(case.model)
    count = f"{len(files)} files"
    recorded = case.recorded(case.place) if case.place else None
    if recorded is not None:
        if recorded == digest:
            return Link(name, "verified", f"{count}, as dvc.lock records for {case.place}", recorded, digest)
        before = cached_listing(case.root, recorded)
        what = ", ".join(differences(before, files)[:5]) if before else "some of its files changed"
        meaning = f"not what dvc.lock records for {case.place}: {what}"
        return Link(name, "tampered", meaning, recorded, digest, how_to_restore(case, case.place))
    if case.resaved is None and case.entry is not None:
        return Link(name, "verified", f"{count}, the same as {next(iter(case.entry.outs))} in dvc.lock", digest, digest)
    if cached_listing(case.root, digest) is not None:
        return Link(
            name, "verified", f"{count}, a version that DVC's cache holds (dvc.lock has another)", digest, digest
        )
    return _unknown(case, files, digest)


def _unknown(case: Case, files: dict[str, str], digest: str) -> Link:
    """The link of a folder that DVC does not know: a changed copy of a known folder, or a foreign one."""
    name = "model folder"
    if case.resaved and case.original:
        changed = ", ".join(case.resaved.rewritten) or "the files of the tokenizer"
        meaning = (
            f"{case.resaved.path}, saved again ({changed} rewritten): weights and every deciding field are the same"
        )
        return Link(name, "verified", meaning, case.resaved.md5, digest)
    if case.resaved:
        meaning = f"a changed copy of {case.resaved.path}: {'; '.join(case.resaved.problems[:5])}"
        return Link(name, "tampered", meaning, case.resaved.md5, digest, RESTORE)
    for entry in case.lock.values():
        for path, expected in entry.outs.items():
            original = cached_listing(case.root, expected) if entry.name.startswith("quantized_model@") else None
            if original is None and path.startswith("data/quantized_model/") and (case.root / path).is_dir():
                original = case.hasher.files(case.root / path)
                original = original if folder_digest(original) == expected else None
            same = [f for f in original or {} if f.endswith((".safetensors", RECORD)) and original[f] == files.get(f)]  # type: ignore[index]
            if original and same:
                what = ", ".join(differences(original, files)[:5])
                return Link(name, "tampered", f"a changed copy of {path}: {what}", expected, digest, RESTORE)
    meaning = "neither dvc.lock nor DVC's cache has this folder: it was made elsewhere, or changed since"
    fix = "audit it inside the workspace that made it (PLUMBLINE_ROOT), after `dvc pull` there"
    return Link(name, "missing", meaning, "", digest, fix)


def tokenizer(case: Case) -> Link:
    """Check that the tokenizer has the fingerprint with which the calibration set was tokenized."""
    name, claims = "tokenizer", case.claims("fingerprint")
    if not claims:
        return Link(name, "missing", "the model does not record a tokenization fingerprint", fix=RESTORE)
    files = [path for pattern in TOKENIZER for path in case.model.glob(pattern)]
    strange = [path.name for path in files if not (path.is_file() and (not path.is_symlink() or is_cache_link(path)))]
    if strange:
        return Link(name, "tampered", f"not a regular file: {', '.join(strange)}", claims[0], "", RESTORE)
    if not files:
        return Link(name, "missing", "the folder has no tokenizer", claims[0], "", RESTORE)
    loaded, problem = _load_tokenizer(case.model)
    if problem:
        return Link(name, "tampered", f"it does not load: {problem}", claims[0], "", RESTORE)

    from plumbline.tokenized_samples.fingerprint import tokenizer_fingerprint

    known_parts = _known_parts(case, claims)
    fingerprint = ""
    for params in _settings(case, known_parts):
        fingerprint, parts = tokenizer_fingerprint(loaded, params)
        if fingerprint in claims:
            case.tokenizer_holds = True
            meaning = "its fingerprint is the one with which the calibration set was tokenized"
            return Link(name, "verified", meaning, fingerprint, fingerprint)
        if known_parts is not None:
            other = sorted(key for key in known_parts if parts.get(key) != known_parts[key])
            meaning = f"not the tokenizer that the calibration set was tokenized with: {', '.join(other)} differ"
            return Link(name, "tampered", meaning, claims[0], fingerprint, RESTORE)
    meaning = (
        "the fingerprint cannot be recomputed: data/tokenized_samples has another tokenization, and the settings in "
        "params.yaml give another fingerprint"
    )
    return Link(
        name, "missing", meaning, claims[0], fingerprint, "dvc checkout data/tokenized_samples of the model's commit"
    )


def _load_tokenizer(model: Path) -> tuple[Any, str]:
    from plumbline.base_model.load import load_tokenizer

    problem = ""
    # Try again without config.json: a damaged config.json is reported by the link `record`.
    with tempfile.TemporaryDirectory() as scratch:
        for folder in (model, Path(scratch)):
            try:
                return load_tokenizer(folder), ""
            except (KeyboardInterrupt, SystemExit, MemoryError):
                raise
            except BaseException as error:  # a panic in the Rust library is not an Exception
                problem = f"{type(error).__name__}: {error}"
            for path in {path for pattern in TOKENIZER for path in model.glob(pattern) if path.is_file()}:
                shutil.copyfile(path, Path(scratch) / path.name)
    return None, problem[:200]


def _known_parts(case: Case, claims: list[str]) -> dict[str, Any] | None:
    """The parts of the fingerprint, from the record or data/tokenized_samples; None unless they hash to it."""
    written = [dig(case.record, "fingerprint_parts")]
    accounting = case.root / "data" / "tokenized_samples" / "accounting.json"
    if accounting.is_file():
        with contextlib.suppress(ValueError):
            written.append(read_object(accounting).get("fingerprint_parts"))
    return next((parts for parts in written if isinstance(parts, dict) and sha256_json(parts) in claims), None)


def _settings(case: Case, known_parts: dict[str, Any] | None) -> list[Any]:
    """Tokenization settings worth trying, likeliest first."""
    from pydantic import ValidationError

    from plumbline.tokenized_samples.params import TokenizeParams

    candidates: list[Any] = [known_parts] if known_parts else []
    stage = case.lock.get("tokenized_samples")
    candidates.append(dig(stage.params, "tokenize") if stage else None)
    with contextlib.suppress(OSError, ValueError):
        params = read_yaml(case.root / "params.yaml").content
        candidates.append(dig(params, "tokenize"))
    settings = []
    for candidate in [*candidates, {}]:
        if isinstance(candidate, dict):
            fields = {key: value for key, value in candidate.items() if key in TokenizeParams.model_fields}
            try:
                settings.append(TokenizeParams.model_validate(fields))
            except ValidationError:
                continue
    return settings
