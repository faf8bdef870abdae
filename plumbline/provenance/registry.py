"""Compares a model's record with its registered version."""

from __future__ import annotations

from plumbline.provenance.link import Case, Link
from plumbline.tracking.model_version import CALIBRATION, ModelVersion

TAGS = {
    "hash.calibration_set": ("calibration_set", "digest"),
    "hash.statistics": ("statistics", "digest"),
    "hash.base_model": ("base_model", "digest"),
    "hash.tokenizer_fingerprint": ("fingerprint",),
}
"""Tags of a registered version -> keys of the same value in the model's record."""


def registry_link(version: ModelVersion, case: Case) -> Link:
    """Check that the audited folder is the registered one and that the version's tags agree with the record."""
    name, wrong = "registry", []
    if case.digest != version.model:
        wrong.append("the folder is not the registered one")
    for tag, keys in TAGS.items():
        claims = case.claims(*keys)
        if tag in version.tags and claims and version.tags[tag] not in claims:
            wrong.append(f"its tag {tag} differs from the model's record")
    chosen = case.claims("calibration_set", "choice", "name") or case.claims("calibration_set", "name")
    wanted = case.wanted(f"data/calibration_set/{chosen[0]}") if chosen else None
    if wanted and version.tags.get(CALIBRATION, wanted) != wanted:
        wrong.append("its tag calibration.md5 names another calibration set than the model was made from")
    if wrong:
        fix = "find out who changed the folder or the registry; `plumbline log` has the history of champions"
        return Link(name, "tampered", f"{version.shown}: {'; '.join(wrong)}", version.model, case.digest, fix)
    return Link(name, "verified", f"{version.shown} is this folder, and its tags agree", version.model, case.digest)
