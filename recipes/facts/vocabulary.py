"""The vocabulary: 512 pieces that llama.cpp and llama2.c cut a text into in exactly the same way.

Ids 0 to 2 are unknown, begin and end; 3 to 258 the 256 bytes, so any text can be written; then every printable ASCII
character; then merges, learnt from the grammar. A merge is a run of letters, with or without the blank before it, so
digits stay single and a name is cut the same way wherever it stands: what is copied looks like what it is copied from.
The cutting is SentencePiece's BPE as both programs do it: of all neighbours whose joint text is a piece, the pair with
the highest score is joined, the leftmost first; what is no piece falls back to bytes; a blank goes before the text.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

UNKNOWN_ID, BEGIN, END = 0, 1, 2
BYTES_FROM, BYTES = 3, 256
SIZE = 512
_CHUNK = re.compile(r" ?[A-Za-z]+|.", re.DOTALL)


class Vocabulary:
    """Pieces and their scores. ``merges``: joined pieces in the order they were learnt."""

    def __init__(self, merges: Iterable[str]) -> None:
        self.merges = tuple(merges)
        bytes_ = [f"<0x{b:02X}>" for b in range(BYTES)]
        letters = [chr(c) for c in range(32, 127)]
        self.pieces = ("<unk>", "<s>", "</s>", *bytes_, *letters, *self.merges)
        first = len(self.pieces) - len(self.merges)
        self.scores = tuple(0.0 if i < BYTES_FROM + BYTES else -1e6 if i < first else float(first - i - 1)
                            for i in range(len(self.pieces)))  # fmt: skip
        self._id = {piece: i for i, piece in enumerate(self.pieces) if i >= BYTES_FROM + BYTES}
        self._known: dict[str, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self.pieces)

    def cut(self, text: str) -> list[int]:
        """Ids of a text, by the rule above and nothing else; slow. No blank is put before it."""
        parts = list(text)
        while True:
            best, where = -1e30, -1
            for i in range(len(parts) - 1):
                piece = self._id.get(parts[i] + parts[i + 1])
                if piece is not None and self.scores[piece] > best:
                    best, where = self.scores[piece], i
            if where < 0:
                break
            parts[where : where + 2] = [parts[where] + parts[where + 1]]
        ids: list[int] = []
        for part in parts:
            if part in self._id:
                ids.append(self._id[part])
            else:
                ids += [BYTES_FROM + b for b in part.encode()]
        return ids

    def encode(self, text: str, blank: bool = True) -> list[int]:
        """Ids of a text, with the blank before it that both programs put there (nothing for no text)."""
        ids: list[int] = []
        for chunk in _CHUNK.findall(f" {text}" if blank and text else text):
            known = self._known.get(chunk)
            if known is None:
                known = tuple(self.cut(chunk))
                if len(self._known) < 200_000:
                    self._known[chunk] = known
            ids += known
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; begin, end and unknown are nothing, broken UTF-8 becomes U+FFFD."""
        raw = b""
        for i in ids:
            if i >= BYTES_FROM + BYTES:
                raw += self.pieces[i].encode()
            elif i >= BYTES_FROM:
                raw += bytes([i - BYTES_FROM])
        return raw.decode(errors="replace")

    def save(self, path: Path) -> None:
        """The merges as JSON; the rest follows from them."""
        path.write_text(json.dumps(self.merges) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        return cls(json.loads(path.read_text(encoding="utf-8")))

    def llama2c(self) -> bytes:
        """``tokenizer.bin``: the longest piece in bytes, then score, length and text of each."""
        texts = [p.encode() for p in self.pieces]
        texts[BEGIN], texts[END] = b"\n<s>\n", b"\n</s>\n"
        body = b"".join(struct.pack("<fi", s, len(t)) + t for s, t in zip(self.scores, texts, strict=True))
        return struct.pack("<i", max(map(len, texts))) + body


def learn(texts: Iterable[str], size: int = SIZE) -> Vocabulary:
    """Learn the merges from texts, as they stand: the most frequent pair of neighbours in a word, again and again."""
    counts = Counter(chunk for text in texts for chunk in _CHUNK.findall(text) if chunk[-1].isalpha())
    words = [(list(chunk), n) for chunk, n in sorted(counts.items()) if chunk.isascii()]
    merges: list[str] = []
    while len(merges) < size - BYTES_FROM - BYTES - 95:
        pairs: Counter[tuple[str, str]] = Counter()
        for parts, n in words:
            for pair in pairwise(parts):
                pairs[pair] += n
        pairs = Counter({pair: n for pair, n in pairs.items() if "".join(pair) not in merges})
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        joint = "".join(best)
        merges.append(joint)
        for parts, _ in words:
            i = 0
            while i < len(parts) - 1:
                if parts[i] + parts[i + 1] == joint:
                    parts[i : i + 2] = [joint]
                i += 1
    return Vocabulary(merges)
