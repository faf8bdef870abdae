"""What MLflow says of versions and their promotions."""

from __future__ import annotations

from plumbline.tracking.promotion_entry import Promotion
from plumbline.tracking.text import LATEST, OURS, with_history

FIRST = Promotion("2026-11-29T10:00:00+00:00", "1", None, "Ada", "the first", "promoted")
SECOND = Promotion("2026-11-29T11:30:00+00:00", "3", "1", "Ben", "lower KL", "promoted")
BACK = Promotion("2026-11-30T08:15:00+00:00", "1", "3", "Ada", "broken chats", "rolled back")


def test_a_version_has_its_own_history_the_latest_first() -> None:
    text = with_history("What it is.", "1", [FIRST, SECOND, BACK])
    assert text.splitlines() == [
        "What it is.",
        "",
        OURS,
        "",
        "* 2026-11-30 08:15 UTC: version 1 rolled back in place of version 3 by Ada: broken chats",
        "* 2026-11-29 11:30 UTC: replaced by version 3 (promoted by Ben): lower KL",
        "* 2026-11-29 10:00 UTC: version 1 promoted by Ada: the first",
    ]
    assert with_history(text, "1", [FIRST, SECOND, BACK]) == text
    assert with_history("What it is.", "2", [FIRST, SECOND, BACK]) == "What it is."


def test_the_model_has_the_latest_of_all() -> None:
    text = with_history("", "", [FIRST, SECOND] * LATEST)
    assert text.startswith(OURS) and text.count("\n* ") == LATEST and text.splitlines()[2].endswith("lower KL")
