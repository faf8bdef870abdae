"""Licences as SPDX names them, and as the hub writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from plumbline.provenance.papers.licences import declared_in_card, for_croissant, for_cyclonedx


@pytest.mark.parametrize(
    ("front", "declared"),
    [
        ("license: apache-2.0", "apache-2.0"),
        ("license: other\nlicense_name: qwen-research", "qwen-research"),
        ("license: other", None),
        ("license: unknown", None),
        ("license: [mit]", None),
        ("tags: [x]", None),
        ("license: 'a: b", None),
    ],
)
def test_the_card_declares_it_or_not(front: str, declared: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\ntext\n", encoding="utf-8")
    assert declared_in_card(tmp_path) == declared


def test_no_card_declares_nothing(tmp_path: Path) -> None:
    assert declared_in_card(tmp_path) is None


@pytest.mark.parametrize(
    ("declared", "cyclonedx", "croissant"),
    [
        ("mit", {"license": {"id": "MIT", "acknowledgement": "declared"}}, "https://spdx.org/licenses/MIT"),
        (
            "apache-2.0 or mit",
            {"expression": "Apache-2.0 OR MIT", "acknowledgement": "declared"},
            "apache-2.0 or mit",
        ),
        ("llama3.1", {"license": {"name": "llama3.1", "acknowledgement": "declared"}}, "llama3.1"),
        ("", {"license": {"name": "", "acknowledgement": "declared"}}, ""),
    ],
)
def test_both_formats_name_it(declared: str, cyclonedx: dict, croissant: str) -> None:
    assert for_cyclonedx(declared) == [cyclonedx]
    assert for_croissant(declared) == croissant
