"""The schemes that the project ships."""

from __future__ import annotations

from typing import Any

import yaml

from tests.helpers.paths import PROJECT

SHIPPED: dict[str, dict[str, Any]] = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))["schemes"]
"""Schemes by name, as params.yaml has them."""
