"""Block quantisation: GGML's Q8_0 and Q4_0, and llama2.c's groups of int8.

Q8_0: 32 weights as a float16 scale and 32 int8; 34 bytes. Q4_0: 32 weights as a float16 scale and 32 numbers -8 to 7,
stored plus 8, the first sixteen in the low halves of the bytes; 18 bytes. Both as ggml-org's GGML defines them.
llama2.c: a float32 scale for each group, int8 in -127 to 127. The last dimension must be whole blocks.
"""

from __future__ import annotations

import numpy as np

BLOCK = 32


def _blocks(x: np.ndarray, size: int = BLOCK) -> np.ndarray:
    if x.shape[-1] % size:
        raise ValueError(f"rows of {x.shape[-1]} are not whole blocks of {size}")
    return np.ascontiguousarray(x, np.float32).reshape(-1, size)


def _inverse(scale: np.ndarray) -> np.ndarray:
    """1 / scale; 0 for a scale so small that its inverse is no number (GGML's float16 scale is 0 there, too)."""
    inverse = np.zeros_like(scale)
    np.divide(1.0, scale, out=inverse, where=np.abs(scale) >= np.finfo(np.float32).tiny)
    return inverse


def _away(x: np.ndarray) -> np.ndarray:
    """Round half away from zero, as C's ``roundf``."""
    return np.asarray(np.trunc(x + np.copysign(np.float32(0.5), x)))


def q8_0(x: np.ndarray) -> np.ndarray:
    """float32 [..., n] -> uint8 [..., n / 32 * 34]."""
    blocks = _blocks(x)
    scale = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    q = _away(blocks * _inverse(scale)).astype(np.int8)
    packed = np.concatenate([scale.astype("<f2").view(np.uint8), q.view(np.uint8)], 1)
    return packed.reshape(*x.shape[:-1], -1)


def from_q8_0(packed: np.ndarray) -> np.ndarray:
    """What the blocks of ``q8_0`` stand for: float32 [..., n]."""
    blocks = packed.reshape(-1, 34)
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    values = np.ascontiguousarray(blocks[:, 2:]).view(np.int8) * scale
    return values.reshape(*packed.shape[:-1], -1)


def q4_0(x: np.ndarray) -> np.ndarray:
    """float32 [..., n] -> uint8 [..., n / 32 * 18]."""
    blocks = _blocks(x)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    scale = extreme / np.float32(-8)
    q = np.clip(np.trunc(blocks * _inverse(scale) + np.float32(8.5)), 0, 15).astype(np.uint8)
    halves = q[:, :16] | (q[:, 16:] << 4)
    return np.concatenate([scale.astype("<f2").view(np.uint8), halves], 1).reshape(*x.shape[:-1], -1)


def from_q4_0(packed: np.ndarray) -> np.ndarray:
    """What the blocks of ``q4_0`` stand for: float32 [..., n]."""
    blocks = packed.reshape(-1, 18)
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    q = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], 1).astype(np.float32) - 8
    return np.asarray(q * scale).reshape(*packed.shape[:-1], -1)


def groups(x: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """llama2.c's groups: int8 [...] like ``x`` and float32 scales [x.size / size]."""
    blocks = _blocks(x, size)
    scale = np.abs(blocks).max(1) / np.float32(127)
    q = np.rint(blocks * _inverse(scale)[:, None]).astype(np.int8)
    return q.reshape(x.shape), scale.astype(np.float32)


def from_groups(q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """What groups stand for: float32, shaped as ``q``."""
    return np.asarray((q.reshape(len(scale), -1).astype(np.float32) * scale[:, None]).reshape(q.shape))
