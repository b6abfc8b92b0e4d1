"""Things chosen by name: what every registry has in common."""

from __future__ import annotations

import pytest

from nearfar import plugins
from nearfar.errors import SettingsError

BUILT_IN = {"fraction": "fractions:Fraction", "lost": "no.such.module:Thing"}


def made(name: str, **options: object) -> object:
    return plugins.make("number", "nearfar.no-such-group", BUILT_IN, name, "docs/numbers.md", **options)


def test_a_short_name_and_a_place_lead_to_the_same_thing() -> None:
    assert made("fraction", numerator=3) == made("fractions:Fraction", numerator=3) == 3
    assert plugins.names("nearfar.no-such-group", BUILT_IN) == ["fraction", "lost"]


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("fractoin", {}, "There is no number 'fractoin'.*fraction, lost"),
        ("lost", {}, "cannot be loaded.*installed"),
        ("fractions:Nothing", {}, "cannot be loaded"),
        (":", {}, "cannot be loaded"),
        ("fraction", {"colour": 1}, "does not take these options.*docs/numbers.md"),
    ],
)
def test_what_leads_nowhere_says_so(name: str, options: dict[str, object], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        made(name, **options)
