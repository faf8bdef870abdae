from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from plumbline import distribution
from plumbline.cli.main import main


def test_an_extra_is_installed_with_the_pins_of_a_checkout_or_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert distribution.install_command("ray") == "pip install -c constraints.txt -e '.[ray]'"
    monkeypatch.setattr(distribution, "CHECKOUT", tmp_path)  # such as site-packages
    assert distribution.install_command("ray") == "pip install 'plumbline-ptq[ray]'"


def test_the_version_is_that_of_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CliRunner().invoke(main, ["--version"]).output == f"plumbline {distribution.version()}\n"
    monkeypatch.setattr(distribution, "NAME", "no-such-distribution")
    assert distribution.version() == "unknown"
