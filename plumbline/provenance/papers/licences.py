"""Licences: what a model card or params.yaml declares, as SPDX names it where SPDX knows it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

SPDX = "https://spdx.org/licenses/"


def declared_in_card(folder: Path) -> str | None:
    """The licence in the metadata of a folder's README.md, as the Hugging Face Hub defines it; None if it has none."""
    from huggingface_hub.repocard import metadata_load

    content: Any = None
    with suppress(Exception):  # YAML by anyone
        content = metadata_load(folder / "README.md")
    if not isinstance(content, dict):
        return None
    declared = content.get("license")
    if declared == "other":  # the hub's way to say that `license_name` has it
        declared = content.get("license_name")
    return declared.strip() if isinstance(declared, str) and declared.strip() not in ("", "other", "unknown") else None


def spdx(declared: str) -> str | None:
    """The SPDX identifier or expression that a text means; None if SPDX has none.

    The hub writes identifiers in lower case.
    """
    try:
        return str(canonicalize_license_expression(declared))
    except InvalidLicenseExpression:
        return None


def for_cyclonedx(declared: str) -> list[dict[str, Any]]:
    """A CycloneDX `licenseChoice` with one licence, as declared by whoever published the component."""
    known = spdx(declared)
    if known is not None and " " in known:
        return [{"expression": known, "acknowledgement": "declared"}]
    named = {"id": known} if known is not None and not known.startswith("LicenseRef-") else {"name": declared}
    return [{"license": {**named, "acknowledgement": "declared"}}]


def for_croissant(declared: str) -> str:
    """URL of a single SPDX licence; else the text that was declared."""
    known = spdx(declared)
    return f"{SPDX}{known}" if known is not None and " " not in known else declared
