"""The schemes that the project ships."""

from __future__ import annotations

from typing import Any

import yaml

from tests.helpers.paths import PROJECT

SHIPPED: dict[str, dict[str, Any]] = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))["schemes"]
"""Schemes by name, as params.yaml has them."""
NARROW = [
    name
    for name, scheme in SHIPPED.items()
    if scheme.get("weight_type", "int") in ("int", "fp8") and "block_structure" not in scheme
]
"""Those whose groups suit any width; tests/plumbline/quantized_model/test_format_reload.py loads the others."""
