"""Where the project, the bundled model and the commands of this interpreter lie."""

from __future__ import annotations

import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
BUNDLED = PROJECT / "plumbline" / "base_model" / "llama-stdlib-6m"
BIN = Path(sys.executable).parent
