"""Fixtures that more than one package's tests use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.paths import PROJECT

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: see plumbline/__init__.py


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real models and corpora that lie beside the checkout in CI; a user's clone does not have them."""
    path = PROJECT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs the shared test data beside the checkout (../shared/data), which this clone does not have")
    return path
