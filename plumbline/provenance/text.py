"""An audit on one screen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.provenance.link import AuditResult, Link
from plumbline.text_layout import printable, wrapped

if TYPE_CHECKING:
    from plumbline.provenance.reproduce import Reproduction

MARK = {"verified": "verified", "missing": "MISSING", "tampered": "TAMPERED"}
INDENT = " " * 11


def render(result: AuditResult) -> str:
    """The chain from the model to its documents, a line per link, then the verdict and what to do.

    Texts from the model are shown without control characters: a terminal must not obey them.
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
        text = "VERIFIED: every digest from the weights to the documents was recomputed and is the recorded one."
    elif result.verdict == "tampered":
        text = (
            f"TAMPERED: {', '.join(broken['tampered'])}. Do not deploy this model or rely on its record; restore what "
            "is named above, or make the model again (`plumbline run`)."
        )
    else:
        text = (
            f"NOT VERIFIED: {', '.join(broken['missing'])} could not be checked here. Nothing found contradicts the "
            "record; bring back what is named above and audit again."
        )
    return wrapped(text, "  ")


def render_restored(folder: Path, told: Mapping[str, Any]) -> str:
    """What was brought back, and where it is."""
    lines = [f"RESTORED to {folder}, each file checked against the model's digests:"]
    lines += [f"  {path}  ({md5})" for path, md5 in told["dvc"].items()]
    return "\n".join([*lines, f"  params.yaml  ({told['parameters']})"])


def render_reproduction(made: Reproduction) -> str:
    """Which artifacts came out with the same bytes."""
    lines = [f"run again in a clean place, {made.start}, with {made.code}"]
    for each in made.artifacts:
        lines.append(f"{'same bytes' if each.same else 'DIFFERS':<11}{each.path}")
        if not each.same:
            lines += wrapped(f"{INDENT}{each.detail or 'other bytes'}", INDENT)
            lines += [f"{INDENT}expected {each.expected}", f"{INDENT}found    {each.found or 'nothing'}"]
    if made.error:
        lines += wrapped(f"NOT REPRODUCED: {made.error}", "  ")
    elif made.same:
        lines.append("REPRODUCED: the same bytes, from the first artifact to the model.")
    else:
        first = next((each.path for each in made.artifacts if not each.same), "nothing was made")
        lines.append(f"NOT REPRODUCED: the first difference is in {first}.")
    return "\n".join(lines)
