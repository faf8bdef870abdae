"""The list of tamperings is complete and consistent, and the table counts what went wrong."""

from __future__ import annotations

from benchmarks.tamperings.__main__ import HARMLESS, WAYS, Line, table
from plumbline.provenance.explain import LINKS


def test_the_tamperings_have_names_of_their_own_and_links_that_exist() -> None:
    names = [way.name for way in (*WAYS, *HARMLESS)]
    assert len(set(names)) == len(names)
    known = {link.name for link in LINKS} | {""}
    assert {link for way in WAYS for link in (way.link, way.signed)} <= known
    assert len(WAYS) >= 48 and len(HARMLESS) >= 10
    assert all(way.signed in ("signature", "statement") for way in WAYS if not way.link)


def test_the_table_counts_the_undetected_and_the_false_alarms() -> None:
    way, harmless = WAYS[0].name, HARMLESS[0].name
    rows = [
        Line(way, False, "not verified: weights", "tampered: weights", 1, True),
        Line(way, True, "not verified: weights", "verified", 0, False),
        Line(harmless, False, "verified", "tampered: registry", 1, False),
        Line("x", False, "out of reach", "verified", 0, True),
    ]
    lines = table(rows).splitlines()
    assert len(lines) == 6 and lines[2].endswith("verified  <- WRONG")
    assert lines[-1] == (
        "2 tamperings, 1 undetected (1 more are out of reach without a signature); 1 harmless changes, 1 false alarms"
    )
