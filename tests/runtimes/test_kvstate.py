"""The reader of states that came from elsewhere: exactly one form passes, and nothing else ends the process."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.errors import InputError
from nearfar.runtimes.kvstate import Layout, State, check, read

OWN = Layout(3, (8, 8), (8, 8))
VOCABULARY = 300
CONTEXT = 64
TOKENS = [1, 299, 0, 7]


def made(
    tokens: Sequence[int] = TOKENS,
    *,
    magic: bytes = b"qsgg",
    version: int = 4,
    marks: tuple[int, int] = (-1, 1),
    told: int | None = None,
    pictures: int = 0,
    streams: int = 3,
    stream: int = 1,
    cells: int | None = None,
    positions: Sequence[int] | None = None,
    sequences: int = 1,
    sequence: int | None = None,
    transposed: int = 0,
    layers: int = 2,
    more: int = 0,
    kind: int = 1,
    width: int = 8,
    value: bytes = b"\x01\x3c",
    after: bytes = b"",
) -> bytes:
    """A file as the engine writes it, but for what is given."""
    count = len(tokens)
    data = magic + struct.pack("<II", version, count + 4)
    data += struct.pack("<iii", *marks, count if told is None else told)
    data += struct.pack(f"<{count}i", *tokens) + struct.pack("<i", pictures)
    data += struct.pack("<I", streams)
    for number in range(min(streams, 300)):
        if number != stream:
            data += struct.pack("<I", 0)
            continue
        data += struct.pack("<I", count if cells is None else cells)
        for position in positions if positions is not None else range(count):
            data += struct.pack("<iii", position, sequences, stream if sequence is None else sequence)
        data += struct.pack("<IIQ", transposed, layers, more)
        for _ in range(min(2 * layers, 64)):
            data += struct.pack("<iQ", kind, width) + value * (min(width, 1 << 12) * count // 2)
    return data + after


def test_what_the_engine_writes_is_read() -> None:
    assert read(made()) == State(TOKENS, OWN)
    assert check(made(), OWN, VOCABULARY, CONTEXT).tokens == TOKENS
    assert len(made([*TOKENS, 5])) - len(made()) == OWN.token_bytes
    assert read(memoryview(made())) == read(made())


WRONG = {
    "another file": made(magic=b"ggsq"),
    "another version": made(version=3),
    "no token": made([]),
    "another mark": made(marks=(-1, 2)),
    "more tokens than told": made(told=3),
    "fewer tokens than told": made(told=1 << 30),
    "a picture": made(pictures=1),
    "no slots": made(streams=0),
    "too many slots": made(streams=1 << 20),
    "no cells": made(stream=9),
    "fewer cells": made(cells=3, positions=range(3)),
    "cells without end": made(cells=0xFFFFFFFF),
    "a position twice": made(positions=[0, 1, 1, 3]),
    "a position below 0": made(positions=[-1, 0, 1, 2]),
    "sequences without end": made(sequences=1 << 30),
    "another slot's cells": made(sequence=2),
    "values in another order": made(transposed=1),
    "no layers": made(layers=0),
    "layers without end": made(layers=1 << 31),
    "something more": made(more=1),
    "another type": made(kind=0),
    "an unknown type": made(kind=-7),
    "rows of nothing": made(width=0),
    "odd rows": made(width=7),
    "rows without end": made(width=1 << 63),
    "no number": made(value=b"\x00\x7e"),
    "infinity": made(value=b"\x00\xfc"),
    "something after it": made(after=b"\0"),
    "checkpoints after it": made(after=b"SCKP" + struct.pack("<II", 1, 1)),
    "nothing": b"",
}


@pytest.mark.parametrize("name", WRONG)
def test_every_other_form_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="cannot be used"):
        read(WRONG[name])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (made([1, VOCABULARY]), "token that the model does not have"),
        (made([1, -1]), "token that the model does not have"),
        (made([1, -(1 << 31)]), "token that the model does not have"),
        (made([1] * CONTEXT), "64 tokens, and the context 64"),
        (made(width=16), "another shape"),
        (made(layers=3), "another shape"),
        (made(streams=4), "another shape"),
    ],
)
def test_what_the_engine_of_this_model_must_not_get(data: bytes, why: str) -> None:
    read(data)
    with pytest.raises(InputError, match=why):
        check(data, OWN, VOCABULARY, CONTEXT)


def test_an_error_tells_no_token() -> None:
    with pytest.raises(InputError) as error:
        check(made([123456]), OWN, VOCABULARY, CONTEXT)
    assert "123456" not in str(error.value)


def refused_or_sound(data: bytes) -> None:
    try:
        state = check(data, OWN, VOCABULARY, CONTEXT)
    except InputError:
        return
    assert state.layout == OWN
    assert len(data) == len(made(state.tokens))
    assert all(0 <= token < VOCABULARY for token in state.tokens)


WHOLE = made()


@given(st.integers(0, len(WHOLE) - 1))
def test_truncated_it_is_refused(length: int) -> None:
    with pytest.raises(InputError):
        read(WHOLE[:length])


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=400)
def test_with_any_bytes_changed_it_is_refused_or_of_the_same_form(changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for place, byte in changes:
        data[place] = byte
    refused_or_sound(bytes(data))


@given(st.integers(0, len(WHOLE) // 4 - 1), st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 20, 65536]))
@settings(max_examples=400)
def test_with_a_hostile_number_anywhere_it_is_refused_or_of_the_same_form(place: int, number: int) -> None:
    data = bytearray(WHOLE)
    data[4 * place : 4 * place + 4] = number.to_bytes(4, "little")
    refused_or_sound(bytes(data))


@given(st.binary(max_size=200))
def test_anything_at_all_ends_no_process(data: bytes) -> None:
    refused_or_sound(data)
    refused_or_sound(WHOLE[:12] + data)
    refused_or_sound(WHOLE[:40] + data)
