"""Text of `plumbline audit`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.calibration_report.wording import base_model_in_words
from plumbline.provenance.link import AuditResult, Link
from plumbline.text_layout import printable, wrapped

if TYPE_CHECKING:
    from plumbline.provenance.reproduce import Reproduction

MARK = {"verified": "verified", "missing": "MISSING", "tampered": "TAMPERED"}
INDENT = " " * 11


def render(result: AuditResult) -> str:
    """Format the chain from the model to its documents, a line per link, then the verdict and what to do.

    Control characters in texts from the model are removed, so that the terminal does not interpret them.
    """
    lines = [f"audit of {result.model}", *([f"  {result.origin}"] if result.origin else []), *_head(result.about), ""]
    for link in result.links:
        lines += _link(link)
    lines += ["", *_verdict(result)]
    return "\n".join(printable(line) for line in lines)


def _head(about: dict[str, Any]) -> list[str]:
    if not about.get("samples"):
        return []
    domains = ", ".join(f"{count} {domain}" for domain, count in list(about["domains"].items())[:6])
    lines = [
        *([f"base model {base_model_in_words(about['base_model'])}"] if about.get("base_model") else []),
        f"{about['scheme'].get('name')} calibrated by {about['choice'].get('name')} "
        f"(strategy {about['choice'].get('strategy')}, seed {about['choice'].get('seed')})",
        f"on {about['samples']} samples of {about['documents']} documents: {domains}",
        f"most from {', '.join(f'{source} ({count})' for source, count in about['sources'].items())}",
    ]
    return [line for text in lines for line in wrapped(f"  {text}", "    ")]


def _link(link: Link) -> list[str]:
    lines = wrapped(f"{MARK[link.status]:<9}  {link.name}: {link.meaning}", INDENT)
    if link.status == "verified":
        return lines
    if link.expected or link.found:
        lines.append(f"{INDENT}expected {link.expected or 'nothing'}")
        lines.append(f"{INDENT}found    {link.found or 'nothing'}")
    return lines + wrapped(f"{INDENT}fix: {link.fix}", INDENT + "     ")


def _verdict(result: AuditResult) -> list[str]:
    broken = {status: [link.name for link in result.links if link.status == status] for status in MARK}
    if result.verdict == "verified":
        text = "VERIFIED: every digest from the weights to the documents was recomputed and matches the record."
    elif result.verdict == "tampered":
        text = (
            f"TAMPERED: {', '.join(broken['tampered'])}. Do not deploy this model or rely on its record; restore the "
            "artifacts above, or make the model again (`plumbline run`)."
        )
    else:
        text = (
            f"NOT VERIFIED: {', '.join(broken['missing'])} could not be checked here. Nothing found contradicts the "
            "record; restore the artifacts above and audit again."
        )
    return wrapped(text, "  ")


def render_restored(folder: Path, summary: Mapping[str, Any]) -> str:
    """Format the result of --restore: the restored artifacts and their paths."""
    lines = [f"RESTORED to {folder}, each file checked against the model's digests:"]
    lines += [f"  {path}  ({md5})" for path, md5 in summary["dvc"].items()]
    return "\n".join([*lines, f"  params.yaml  ({summary['parameters']})"])


def render_reproduction(reproduction: Reproduction) -> str:
    """Format the result of --reproduce: which artifacts have the same bytes."""
    lines = [f"rerun in a clean workspace, {reproduction.start}, with {reproduction.code}"]
    for artifact in reproduction.artifacts:
        lines.append(f"{'same bytes' if artifact.same else 'DIFFERS':<11}{artifact.path}")
        if not artifact.same:
            lines += wrapped(f"{INDENT}{artifact.detail or 'other bytes'}", INDENT)
            lines += [f"{INDENT}expected {artifact.expected}", f"{INDENT}found    {artifact.found or 'nothing'}"]
    if reproduction.error:
        lines += wrapped(f"NOT REPRODUCED: {reproduction.error}", "  ")
    elif reproduction.same:
        lines.append("REPRODUCED: the same bytes, from the first artifact to the model.")
    else:
        first = next((artifact.path for artifact in reproduction.artifacts if not artifact.same), "nothing was made")
        lines.append(f"NOT REPRODUCED: the first difference is in {first}.")
    return "\n".join(lines)
