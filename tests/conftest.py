"""Fixtures that more than one package's tests use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.paths import PROJECT

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: see plumbline/__init__.py


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest first, so that at the end no process is alone with one of them."""
    items.sort(key=lambda item: -sum(mark.args[0] for mark in item.iter_markers("minutes")))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real models and corpora that lie beside the checkout in CI; a user's clone does not have them."""
    path = PROJECT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs the shared test data beside the checkout (../shared/data), which this clone does not have")
    return path
