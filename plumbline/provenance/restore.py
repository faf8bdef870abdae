"""`plumbline audit --restore`: the exact set, statistics and parameters of a model, also of an earlier one."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from plumbline.artifact import write_json
from plumbline.provenance import data_links
from plumbline.provenance.cache_recovery import CORPUS, SET, STATS, chain_hashes, parameters
from plumbline.provenance.link import Case, dig
from plumbline.versioning.digest import Hasher
from plumbline.versioning.object_store import Lacking, Store

WANTED = (SET, STATS)
CHOICE = "data/calibration_choice"
README = "restored.json"


def restore(case: Case, target: Path) -> dict[str, Any]:
    """Write the model's calibration set, statistics and parameters to a new folder, laid out as in a workspace.

    The artifacts come from DVC's cache or remote by hash, and are checked against the model's digests before the
    folder is renamed to `target`.

    Args:
        case: a case whose record has been read.
        target: a folder that does not exist yet, or an empty one.

    Returns:
        The content of restored.json: hashes and digests of the restored artifacts, and the origin of the parameters.

    Raises:
        ValueError: an artifact cannot be restored, or is not what the model was made from; nothing is written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is not an empty folder; name one that does not exist yet")
    hashes = chain_hashes(case)
    absent = [asset for asset in WANTED if not any(path.startswith(f"{asset}/") for path in hashes)]
    if absent:
        raise Lacking(
            f"DVC has no run on record that made this model, and DVC's cache has no {' and no '.join(absent)} with its "
            "digests; `dvc pull --run-cache`, or restore inside the workspace that made the model"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        draft.chmod(0o755)
        store = Store(case.root, fetch=True)
        placed = {}
        for path, md5 in sorted(hashes.items()):
            if path.startswith((f"{SET}/", f"{STATS}/")):
                store.place(md5, draft / path)
                placed[path] = md5
            elif path.startswith(f"{CHOICE}/"):
                try:
                    store.place(md5, draft / path)
                    placed[path] = md5
                except Lacking:  # the set's manifest has the same parameters
                    shutil.rmtree(draft / path, ignore_errors=True)
        _require_same(case, draft)
        used, source = used_parameters(case)
        (draft / "params.yaml").write_text(
            f"# The parameters that the runs of this chain were given ({source}).\n"
            + yaml.safe_dump(used, sort_keys=False, allow_unicode=True),
            encoding="utf-8",
        )
        summary = {
            "model": case.digest,
            "calibration_set": case.claims("calibration_set", "digest")[0],
            "statistics": case.claims("statistics", "digest")[0],
            "dvc": placed,
            "corpus": hashes.get(CORPUS, ""),
            "parameters": source,
            "runs": {
                name: {part: run[part] for part in ("deps", "outs", "code_version")}
                for name, run in parameters(case).items()
            },
        }
        write_json(draft / README, summary)
        if target.exists():
            target.rmdir()
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return summary


def _require_same(case: Case, folder: Path) -> None:
    """Require the restored artifacts to have the digests in the model's record.

    Raises:
        ValueError: one has another digest.
    """
    restored = replace(case, root=folder, lock={}, hasher=Hasher())
    restored.__dict__["made_by"] = None
    for check in (data_links.calibration_set, data_links.statistics):
        link = check(restored)
        if link.status != "verified":
            raise ValueError(
                f"{link.name}: the content that DVC has under the recorded hash is not what the model was made from "
                f"({link.meaning}); `plumbline verify` lists altered files"
            )


def used_parameters(case: Case) -> tuple[dict[str, Any], str]:
    """The parameters of the model's runs as sections of params.yaml, overrides included; and their origin.

    If DVC has no run on record, only the choice and the scheme are known, from calibration.json.
    """
    nested: dict[str, Any] = {}
    for run in parameters(case).values():
        for dotted, value in run["params"].items():
            section = nested
            *parents, last = str(dotted).split(".")
            for part in parents:
                section = section.setdefault(part, {})
            section[last] = value
    if nested:
        return nested, "from DVC's records of the runs"
    for section_name, entry in (
        ("calibrations", dig(case.record, "calibration_set", "choice")),
        ("schemes", dig(case.record, "scheme")),
    ):
        if isinstance(entry, dict):
            nested[section_name] = {str(entry.get("name")): {k: v for k, v in entry.items() if k != "name"}}
    return nested, "from calibration.json; DVC remembers no run of this model"
