"""From a quantized model back to the documents that shaped it, every digest recomputed.

`audit(model, root)` walks the chain, `render` shows it on one screen, `verify(root)` re-hashes a whole workspace, and
`dvc_digest(path)` is DVC's hash of a file or folder, computed without DVC.
"""

from orchestration.provenance.audit import audit
from orchestration.provenance.content import Corrupted, dvc_digest, verify
from orchestration.provenance.link import AuditResult, Link
from orchestration.provenance.text import render

__all__ = ["AuditResult", "Corrupted", "Link", "audit", "dvc_digest", "render", "verify"]
