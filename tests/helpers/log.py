"""What the library logged."""

from __future__ import annotations

import re

import pytest


def numbers_logged(caplog: pytest.LogCaptureFixture, start: str) -> list[int]:
    """The numbers in the last message that begins with `start`; the level must be INFO by then."""
    message = [text for text in caplog.messages if text.startswith(start)][-1]
    return [int(number) for number in re.findall(r"\d+", message)]
