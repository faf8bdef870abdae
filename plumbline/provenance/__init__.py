"""From a quantized model back to the documents that shaped it, every digest recomputed.

`audit(model, root)` walks the chain of a folder, `resolved(reference, root)` finds the folder that a registry address,
a run, a digest or a weights file means, `render` shows the result on one screen, `verify(root)` re-hashes a whole
workspace, and `dvc_digest(path)` is DVC's hash of a file or folder, computed without DVC.
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
