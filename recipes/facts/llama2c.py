"""llama2.c's files: writing them, reading them back, and running them in plain numpy.

Two layouts, after Karpathy's ``export.py`` and ``run.c``/``runq.c``: *legacy* (``run.c``): seven int32 (width, hidden,
layers, heads, kv heads, vocabulary, context; a positive vocabulary says the output is tied), float32 weights kind by
kind, then two unused tables of rotations. *Version 2* (``runq.c``): a header of 256 bytes (magic ``ak42``, version, the
same seven numbers, one byte for tied, int32 group size), norms in float32, then every matrix as int8 and its scales.
``Interpreter`` does what ``run.c`` and ``runq.c`` do, with the activations quantised in groups for version 2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from recipes.facts import blocks
from recipes.facts.model import EPSILON, Shape, Weights, rotations

MAGIC, VERSION, HEADER = 0x616B3432, 2, 256
GROUP = 32
NORMS = ("attention_norm", "ffn_norm")
LEGACY = ("attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3")
QUANTISED = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")


def _numbers(shape: Shape) -> bytes:
    s = shape
    return struct.pack("<7i", s.width, s.hidden, s.layers, s.heads, s.kv_heads, s.vocabulary, s.context)


def write_fp32(path: Path, shape: Shape, weights: Weights) -> None:
    """The legacy layout, for ``run.c``."""
    parts = [weights["embedding"]]
    for kind in LEGACY:
        parts += [weights[f"{i}.{kind}"] for i in range(shape.layers)]
    parts += [weights["norm"], *rotations(shape)]
    path.write_bytes(_numbers(shape) + b"".join(p.astype("<f4").tobytes() for p in parts))


def write_q80(path: Path, shape: Shape, weights: Weights, group: int = GROUP) -> None:
    """Version 2, for ``runq.c``. ``group`` must divide every size."""
    head = struct.pack("<Ii", MAGIC, VERSION) + _numbers(shape) + struct.pack("<Bi", 1, group)
    body = [head.ljust(HEADER, b"\0")]
    for kind in NORMS:
        body += [weights[f"{i}.{kind}"].astype("<f4").tobytes() for i in range(shape.layers)]
    body.append(weights["norm"].astype("<f4").tobytes())
    matrices = [weights["embedding"]]
    for kind in QUANTISED:
        matrices += [weights[f"{i}.{kind}"] for i in range(shape.layers)]
    for matrix in matrices:
        q, scale = blocks.groups(matrix, group)
        body += [q.tobytes(), scale.astype("<f4").tobytes()]
    path.write_bytes(b"".join(body))


Matrix = np.ndarray | tuple[np.ndarray, np.ndarray]
"""float32 [out, in], or int8 [out, in] and its scales."""


class Interpreter:
    """Runs a file of either layout. Raises ValueError for a file that is neither or is cut short."""

    def __init__(self, path: Path) -> None:
        raw = path.read_bytes()
        self.group = 0
        at = 28
        numbers: Sequence[int] = struct.unpack_from("<7i", raw) if len(raw) >= HEADER else (0,) * 7
        if len(raw) >= HEADER and struct.unpack_from("<I", raw)[0] == MAGIC:
            version, *numbers = struct.unpack_from("<8i", raw, 4)
            tied, self.group = struct.unpack_from("<Bi", raw, 36)
            if version != VERSION or not tied:
                raise ValueError(f"{path.name}: version {version}, tied {tied}; write it with recipes.facts.export")
            at = HEADER
        width, hidden, layers, heads, kv_heads, vocabulary, context = numbers
        self.shape = Shape(width, layers, heads, kv_heads, hidden, vocabulary, context)
        try:
            self.shape.check()
            self.values: dict[str, Matrix] = dict(self._read(raw, at))
        except (ValueError, ZeroDivisionError) as e:
            raise ValueError(f"{path.name} is no llama2.c file: {e}; write it with recipes.facts.export") from None
        self.cos, self.sin = rotations(self.shape)
        self.reset()

    def _read(self, raw: bytes, at: int) -> Iterator[tuple[str, Matrix]]:
        from recipes.facts.model import sizes

        shapes = sizes(self.shape)
        layers = range(self.shape.layers)

        def floats(name: str) -> tuple[str, np.ndarray]:
            nonlocal at
            count = int(np.prod(shapes[name]))
            values = np.frombuffer(raw, "<f4", count, at).reshape(shapes[name])
            at += 4 * count
            return name, values

        if not self.group:
            yield floats("embedding")
            for kind in LEGACY:
                yield from (floats(f"{i}.{kind}") for i in layers)
            yield floats("norm")
            return
        for kind in NORMS:
            yield from (floats(f"{i}.{kind}") for i in layers)
        yield floats("norm")
        for name in ("embedding", *(f"{i}.{kind}" for kind in QUANTISED for i in layers)):
            count = int(np.prod(shapes[name]))
            q = np.frombuffer(raw, np.int8, count, at).reshape(shapes[name])
            scale = np.frombuffer(raw, "<f4", count // self.group, at + count)
            at += count + 4 * len(scale)
            yield name, (q, scale)

    def reset(self) -> None:
        """Forget what was read."""
        s = self.shape
        self.keys = np.zeros((s.layers, s.context, s.kv_heads, s.head), np.float32)
        self.held = np.zeros_like(self.keys)
        self.position = 0

    def times(self, name: str, x: np.ndarray) -> np.ndarray:
        """Matrix times vector; in groups, whole numbers first, for version 2."""
        matrix = self.values[name]
        if not isinstance(matrix, tuple):
            return np.asarray(matrix @ x)
        q, scale = matrix
        xq, xs = blocks.groups(x[None], self.group)
        whole = np.einsum(
            "ogk,gk->og",
            q.reshape(len(q), -1, self.group).astype(np.float32),
            xq.reshape(-1, self.group).astype(np.float32),
        )
        return np.asarray((whole * scale.reshape(len(q), -1) * xs).sum(1), np.float32)

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.values[name] * (x / np.sqrt(np.mean(x * x) + np.float32(EPSILON))), np.float32)

    def step(self, token: int) -> np.ndarray:
        """Logits [vocabulary] after one more token. Raises ValueError when the context is full."""
        s, at = self.shape, self.position
        if at >= s.context:
            raise ValueError(f"the context of {s.context} tokens is full; ask with a shorter table")
        embedding = self.values["embedding"]
        if isinstance(embedding, tuple):
            per = s.width // self.group
            scales = embedding[1][token * per : (token + 1) * per]
            x = blocks.from_groups(embedding[0][token], scales)
        else:
            x = embedding[token].astype(np.float32)

        def turned(y: np.ndarray) -> np.ndarray:
            a, b, c, d = y[:, 0::2], y[:, 1::2], self.cos[at], self.sin[at]
            return np.stack([a * c - b * d, a * d + b * c], -1).reshape(y.shape)

        repeat = s.heads // s.kv_heads
        for i in range(s.layers):
            y = self.norm(f"{i}.attention_norm", x)
            q = turned(self.times(f"{i}.wq", y).reshape(s.heads, s.head))
            self.keys[i, at] = turned(self.times(f"{i}.wk", y).reshape(s.kv_heads, s.head))
            self.held[i, at] = self.times(f"{i}.wv", y).reshape(s.kv_heads, s.head)
            keys, held = (z[i, : at + 1].repeat(repeat, 1) for z in (self.keys, self.held))
            scores = np.einsum("hd,thd->ht", q, keys) / np.float32(np.sqrt(s.head))
            scores = np.exp(scores - scores.max(1, keepdims=True))
            mixed = np.einsum("ht,thd->hd", scores / scores.sum(1, keepdims=True), held)
            x = x + self.times(f"{i}.wo", mixed.reshape(-1))
            y = self.norm(f"{i}.ffn_norm", x)
            gate = self.times(f"{i}.w1", y)
            x = x + self.times(f"{i}.w2", gate / (1 + np.exp(-gate)) * self.times(f"{i}.w3", y))
        self.position += 1
        return self.times("embedding", self.norm("norm", x))

    def greedy(self, ids: Sequence[int], stop: Sequence[int], most: int = 64) -> list[int]:
        """The most likely tokens after ``ids``, up to one of ``stop`` (left out) or ``most``."""
        self.reset()
        logits = np.zeros(self.shape.vocabulary, np.float32)
        for token in ids:
            logits = self.step(token)
        out: list[int] = []
        while len(out) < most:
            token = int(logits.argmax())
            if token in stop:
                break
            out.append(token)
            if len(out) < most:
                logits = self.step(token)
        return out
