"""The file in which llama.cpp keeps a slot (`/slots/N?action=save`), read strictly and without the engine.

llama.cpp reads such a file in C++ and believes much of it, so nothing that came from elsewhere reaches it before every
byte of the file's form was looked at here, and compared with a file that the same engine wrote itself.

The form, all little-endian, as xllamacpp 2026.10.11549 writes it (state version 4; found by reading such files):

    "qsgg"  u32 version  u32 count
    i32[count]           -1, 1, tokens, the tokens themselves, 0 (no pictures)
    u32 streams          one for each slot; of each, in turn:
      u32 cells          0 but for the slot that was saved
      i32[3 * cells]     position, 1, number of the slot
      u32 0  u32 layers  u64 0
      keys of each layer, then values of each layer: i32 type (1: f16), u64 bytes of a row, the rows

Models whose cache has another form (sliding windows, recurrent ones, keys of another type) are not read: their states
do not move.
"""

from __future__ import annotations

import struct
from array import array
from typing import NamedTuple

from nearfar.errors import InputError

MAGIC = b"qsgg"
VERSION = 4
F16 = 1
_MOST_STREAMS = 256
_MOST_LAYERS = 1024
_WIDEST = 1 << 20
"""Bytes of a row."""


class Layout(NamedTuple):
    """What is the same in every state of one loaded model."""

    streams: int
    keys: tuple[int, ...]
    """Bytes of a row, by layer."""
    values: tuple[int, ...]

    @property
    def token_bytes(self) -> int:
        """What a further token adds to a state."""
        return sum(self.keys) + sum(self.values) + 12 + 4


class State(NamedTuple):
    tokens: list[int]
    layout: Layout


class _Reader:
    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data).cast("B")
        self._at = 0

    def take(self, count: int) -> memoryview:
        if count < 0 or count > len(self._data) - self._at:
            raise _wrong("it is truncated")
        self._at += count
        return self._data[self._at - count : self._at]

    def numbers(self, form: str) -> tuple[int, ...]:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def words(self, count: int) -> array[int]:
        words = array("i")
        words.frombytes(self.take(4 * count))
        return words

    @property
    def left(self) -> int:
        return len(self._data) - self._at


def read(data: bytes | memoryview) -> State:
    """Raises `InputError` for anything that is not exactly of the form above; never with a token in it.

    >>> read(b"qsgg")
    Traceback (most recent call last):
    nearfar.errors.InputError: The state cannot be used: it is truncated. The answer is written again without it.
    """
    reader = _Reader(data)
    if reader.take(4) != MAGIC:
        raise _wrong("it is none of llama.cpp")
    version, count = reader.numbers("II")
    if version != VERSION:
        raise _wrong(f"its version is {version}, not {VERSION}")
    if count < 5:
        raise _wrong("it holds no token")
    words = reader.words(count)
    tokens = words[3:-1]
    if words[0] != -1 or words[1] != 1 or words[2] != len(tokens) or words[-1] != 0:
        raise _wrong("its list of tokens has another form")
    layout = _stream(reader, len(tokens))
    if reader.left:
        raise _wrong("something follows it")
    return State(tokens.tolist(), layout)


def check(data: bytes | memoryview, own: Layout, vocabulary: int, context: int) -> State:
    """A state that this model's engine may be given. Raises `InputError`: also when it is of another geometry than
    `own`, has a token beyond the vocabulary, or leaves no room in a context of so many tokens."""
    state = read(data)
    if state.layout != own:
        raise _wrong("it is of a model of another shape")
    if not 0 <= min(state.tokens) <= max(state.tokens) < vocabulary:
        raise _wrong("it holds a token that the model does not have")
    if len(state.tokens) >= context:
        raise _wrong(f"it has {len(state.tokens)} tokens, and the context {context}")
    return state


def _stream(reader: _Reader, tokens: int) -> Layout:
    (streams,) = reader.numbers("I")
    if not 1 <= streams <= _MOST_STREAMS:
        raise _wrong(f"it has {streams} slots")
    layout = None
    for number in range(streams):
        (cells,) = reader.numbers("I")
        if not cells:
            continue
        if layout is not None or cells != tokens:
            raise _wrong("it does not hold one cell for each token")
        found = reader.words(3 * cells)
        if found != _cells(cells, number):
            raise _wrong("its cells are not in order")
        layout = _tensors(reader, streams, cells)
    if layout is None:
        raise _wrong("it holds no cells")
    return layout


def _cells(count: int, number: int) -> array[int]:
    """Position, count of sequences and the sequence of each cell."""
    expected = array("i", (0, 1, number)) * count
    expected[::3] = array("i", range(count))
    return expected


def _tensors(reader: _Reader, streams: int, cells: int) -> Layout:
    transposed, layers, more = reader.numbers("IIQ")
    if transposed or more:
        raise _wrong("its values are kept in another order")
    if not 1 <= layers <= _MOST_LAYERS:
        raise _wrong(f"it has {layers} layers")
    rows = [_rows(reader, cells) for _ in range(2 * layers)]
    return Layout(streams, tuple(rows[:layers]), tuple(rows[layers:]))


def _rows(reader: _Reader, cells: int) -> int:
    import numpy as np

    kind, width = reader.numbers("iQ")
    if kind != F16:
        raise _wrong(f"its numbers are of the type {kind}")
    if not 2 <= width <= _WIDEST or width % 2:
        raise _wrong(f"it has rows of {width} bytes")
    bits = np.frombuffer(reader.take(cells * width), "<u2")
    if bool(((bits & 0x7C00) == 0x7C00).any()):
        raise _wrong("it holds what is no finite number")
    return int(width)


def _wrong(why: str) -> InputError:
    return InputError(f"The state cannot be used: {why}.", "The answer is written again without it.")
