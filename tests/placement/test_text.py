"""Language services in placement: the first token, slots, and the speed of writing."""

from __future__ import annotations

from typing import Any

import pytest

from nearfar.fleet.snapshot import ServiceView
from nearfar.placement.expectation import expect, first_token
from nearfar.placement.filters import refuse
from nearfar.types.ids import ModelName
from nearfar.types.request import Qos, Request
from nearfar.types.telemetry import TextReport
from nearfar.types.units import Bytes, Milliseconds
from tests.fleet.build import NOW, fleet, service_view, sid

STREAMED = Request(ModelName("yard"), "pi", Bytes(400), first_token=True)
WHOLE = Request(ModelName("yard"), "pi", Bytes(400))


def talks(first: float = 100.0, prefill: float = 1000.0, decode: float = 20.0, **changes: Any) -> ServiceView:
    """Ten answers to prompts of 100 tokens each, which is what 400 bytes are."""
    text = TextReport(4096, Milliseconds(first), prefill, decode, 1000, 0, 500)
    return service_view("pi/yard", **{"service_ms": 3000.0, "answered": 10, "workers": 4, "text": text, **changes})


def of(view: ServiceView, request: Request = STREAMED) -> float:
    return expect(fleet(view), request, view, NOW).total


def test_of_a_streamed_answer_the_first_token_is_expected_and_of_a_whole_one_all_of_it() -> None:
    assert of(talks()) == pytest.approx(100.0)
    assert of(talks(), WHOLE) == pytest.approx(3000.0)


def test_a_longer_prompt_takes_as_long_as_reading_it() -> None:
    longer = Request(ModelName("yard"), "pi", Bytes(400 + 4000), first_token=True)
    assert of(talks(), longer) == pytest.approx(100.0 + 1000.0)
    assert of(talks(prefill=0.0), longer) == pytest.approx(100.0), "nobody measured how fast it reads"


def test_the_incumbent_of_a_conversation_knows_its_beginning() -> None:
    longer = Request(ModelName("yard"), "pi", Bytes(4400), first_token=True, incumbent=sid("pi"))
    assert of(talks(), longer) == pytest.approx(100.0)


def test_a_shorter_prompt_takes_never_less_than_one_token() -> None:
    assert first_token(talks(first=10.0), Request(ModelName("yard"), "pi", Bytes(0))) == pytest.approx(1.0)


def test_before_the_first_answer_it_is_the_service_time() -> None:
    assert of(talks(first=0.0)) == pytest.approx(3000.0)


@pytest.mark.parametrize(("in_flight", "queued", "wait"), [(3, 0, 0.0), (4, 0, 750.0), (4, 4, 3750.0)])
def test_one_waits_only_when_every_slot_is_taken(in_flight: int, queued: int, wait: float) -> None:
    assert of(talks(in_flight=in_flight, queued=queued)) == pytest.approx(100.0 + wait)


@pytest.mark.parametrize(("wanted", "code"), [(None, ""), (20.0, ""), (20.1, "slow")])
def test_who_writes_too_slowly_is_not_asked(wanted: float | None, code: str) -> None:
    view = talks()
    refusal = refuse(fleet(view), Request(ModelName("yard"), "pi", qos=Qos(tokens_per_s=wanted)), view, NOW)
    assert (refusal.code if refusal else "") == code
    if refusal:
        assert "20 tokens a second" in refusal.reason


def test_who_has_not_written_yet_is_asked_and_so_is_what_is_no_language_service() -> None:
    request = Request(ModelName("yard"), "pi", qos=Qos(tokens_per_s=50.0))
    for view in (talks(decode=0.0), service_view("pi/yard")):
        assert refuse(fleet(view), request, view, NOW) is None
