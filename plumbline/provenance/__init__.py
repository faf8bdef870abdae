"""Audit of a quantized model back to its calibration documents; every digest is recomputed.

`audit(model, root)` checks the chain of a folder. `resolved(reference, root)` resolves a registry URI, a run, a digest
or a weights file to a folder. `render` formats the result as text. `verify(root)` re-hashes a whole workspace.
`dvc_digest(path)` computes DVC's hash of a file or folder without DVC.
"""

from plumbline.provenance.audit import audit, audit_subject
from plumbline.provenance.link import AuditResult, Link
from plumbline.provenance.subject import Unresolvable, resolved
from plumbline.provenance.text import render
from plumbline.versioning.digest import dvc_digest
from plumbline.versioning.verify import Corrupted, verify

__all__ = [
    "AuditResult",
    "Corrupted",
    "Link",
    "Unresolvable",
    "audit",
    "audit_subject",
    "dvc_digest",
    "render",
    "resolved",
    "verify",
]
