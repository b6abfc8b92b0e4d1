"""Server-sent events, as far as streamed answers use them, from bytes that may end anywhere.

Source: WHATWG HTML, "Server-sent events", 9.2.6 "Interpreting an event stream". Lines end with LF, CR LF or CR; a line
that starts with a colon is a comment; several `data` lines of one event are joined by LF; one without data is no event.
"""

from __future__ import annotations

from collections.abc import Iterator

LONGEST_EVENT = 8 * 1024 * 1024
"""Bytes of one event; more is refused, as a stream without line breaks would fill the memory."""


class TooLong(ValueError):
    """An event is longer than the limit."""


class Events:
    """Feed it bytes, take the data of each event that is complete. What stands at the end without a blank line is no
    event (the same standard), so a stream that is cut loses it."""

    def __init__(self, longest: int = LONGEST_EVENT) -> None:
        self._longest = longest
        self._rest = bytearray()
        """The last line, which has no end yet."""
        self._after_cr = False
        self._first = True
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of the events that end in this chunk. Raises `TooLong`."""
        if self._after_cr and chunk:
            chunk, self._after_cr = chunk.removeprefix(b"\n"), False
        if not chunk:
            return
        self._after_cr = chunk.endswith(b"\r")
        self._rest += chunk
        if self._size + len(self._rest) > self._longest + len(chunk):
            raise TooLong
        if b"\n" not in chunk and b"\r" not in chunk:
            return  # not copied again for every byte of a long line
        *lines, rest = bytes(self._rest).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = bytearray(rest)
        for line in lines:
            if self._first:
                line, self._first = line.removeprefix(b"\xef\xbb\xbf"), False
            if line:
                self._take(line)
            else:
                data = b"\n".join(self._data)
                self._data.clear()
                self._size = 0
                if data:
                    yield data

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._size += len(value)
            if self._size > self._longest:
                raise TooLong
            self._data.append(value.removeprefix(b" "))
