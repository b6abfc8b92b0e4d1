from __future__ import annotations

import asyncio
import time

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.types.image import ImageKind
from nearfar.types.request import Stages
from nearfar.types.units import Seconds
from nearfar.vision.base import Frame
from nearfar.vision.encode import PROBE_EVERY, Encoder, cheaper, to_jpeg
from tests.vision.helpers import MODEL, ScriptedSeer, ScriptedSource, answer, find_square, scene

GIGABIT, WIFI = 125e6, 2.5e6


def frame(jpeg: bytes | None = None) -> Frame:
    return Frame(0, Seconds(time.monotonic()), scene(3)[0], jpeg=jpeg)


def test_raw_on_this_machine_whatever_the_sizes() -> None:
    choice = cheaper(raw_bytes=10**9, encoded_bytes=1, encode_ms=0, decode_ms=0, rtt_ms=0.1, bandwidth=None)
    assert choice.kind is ImageKind.BGR
    assert "on this machine" in choice.reason


@given(
    raw=st.integers(1, 10**8),
    share=st.floats(0.001, 1),
    encode=st.floats(0, 100),
    decode=st.floats(0, 100),
    rtt=st.floats(0, 500),
    rate=st.floats(1e3, 1e10),
)
def test_the_choice_is_the_shorter_of_the_two_ways(
    raw: int, share: float, encode: float, decode: float, rtt: float, rate: float
) -> None:
    choice = cheaper(
        raw_bytes=raw, encoded_bytes=raw * share, encode_ms=encode, decode_ms=decode, rtt_ms=rtt, bandwidth=rate
    )
    assert choice.raw_ms == pytest.approx(rtt + raw / rate * 1e3)
    assert choice.encoded_ms == pytest.approx(rtt + encode + decode + raw * share / rate * 1e3)
    chosen, other = (
        (choice.encoded_ms, choice.raw_ms) if choice.kind is ImageKind.ENCODED else (choice.raw_ms, choice.encoded_ms)
    )
    assert chosen <= other
    assert f"{chosen:.1f} ms" in choice.reason


def test_the_first_frame_over_a_link_measures_what_encoding_costs() -> None:
    encoder = Encoder()
    image, spent = asyncio.run(encoder.prepare(frame(), 0.5, WIFI))
    assert image.kind is ImageKind.ENCODED and spent > 0
    decoded = cv2.imdecode(np.frombuffer(image.buffer, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert find_square(np.asarray(decoded, np.uint8)) == pytest.approx(scene(3)[1], abs=2)


def test_a_slow_link_gets_jpeg_and_a_fast_one_raw() -> None:
    encoder = Encoder()
    encoder._encode_ms, encoder._share = 5.0, 0.08
    raw = 1920 * 1080 * 3
    assert encoder.choose(raw, 0.5, WIFI).kind is ImageKind.ENCODED
    assert encoder.choose(raw, 0.2, 100 * GIGABIT).kind is ImageKind.BGR
    assert encoder.choose(raw, 0.05, None).kind is ImageKind.BGR
    assert encoder.choose(raw, 5.0, None).kind is ImageKind.ENCODED  # far away and not measured


def test_the_service_tells_what_decoding_costs() -> None:
    encoder = Encoder()
    encoder._encode_ms, encoder._share = 1.0, 0.1
    link = {"raw_bytes": 1_000_000, "rtt_ms": 0.3, "bandwidth": GIGABIT}  # raw 8.3 ms, JPEG 2.1 ms and decoding
    assert encoder.choose(**link).kind is ImageKind.ENCODED  # type: ignore[arg-type]
    encoder.learn(ImageKind.BGR, Stages(preprocess=2.0))
    encoder.learn(ImageKind.ENCODED, Stages(preprocess=14.0))
    assert encoder.choose(**link).kind is ImageKind.BGR  # type: ignore[arg-type]


def test_after_many_raw_frames_the_cost_is_measured_again() -> None:
    encoder = Encoder()
    encoder._encode_ms, encoder._share = 1000.0, 1.0
    kinds = [asyncio.run(encoder.prepare(frame(), 0.5, GIGABIT))[0].kind for _ in range(3)]
    assert kinds == [ImageKind.BGR] * 3
    encoder._raw_run = PROBE_EVERY
    assert asyncio.run(encoder.prepare(frame(), 0.5, GIGABIT))[0].kind is ImageKind.ENCODED
    assert encoder._encode_ms < 1000
    assert encoder._raw_run == 0


def test_a_jpeg_that_came_travels_on_as_it_is() -> None:
    encoder = Encoder()
    data = to_jpeg(scene(3)[0])
    image, spent = asyncio.run(encoder.prepare(frame(data), 0.5, WIFI))
    assert image.buffer is data and spent == 0.0


@pytest.mark.parametrize("kind", list(ImageKind))
def test_the_user_may_fix_the_choice(kind: ImageKind) -> None:
    for link in ((0.0, None), (1.0, WIFI), (1.0, 1e12)):
        assert asyncio.run(Encoder(always=kind).prepare(frame(), *link))[0].kind is kind


def test_raw_pixels_are_not_copied() -> None:
    one = frame()
    image, _ = asyncio.run(Encoder().prepare(one, 0.0, None))
    assert np.shares_memory(np.frombuffer(image.buffer, np.uint8), one.image)


def test_the_stream_says_how_frames_travelled() -> None:
    from nearfar.vision.stream import watch

    seer = ScriptedSeer(lambda _, image: answer(image), link=(3.0, WIFI / 100))
    summary = asyncio.run(watch(ScriptedSource(6, image=scene(0)[0]), seer, MODEL))
    assert summary.sent == {"encoded": 6}
    assert summary.stages["encode"].sum > 0
