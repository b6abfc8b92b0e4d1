"""The network: Llama's architecture, small. The torch network that trains it, and its weights as plain arrays.

RMSNorm, rotary positions over neighbouring pairs (as llama2.c and llama.cpp's ``llama`` have them), grouped-query
attention, SwiGLU, the output tied to the embedding. Every size is a multiple of 32, so that every row can be
quantised in blocks. ``Weights`` (numpy, names as in llama2.c) is what the writers take: they need no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

EPSILON = 1e-5
THETA = 10_000.0


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the network. ``width`` = ``heads`` * head size; ``context`` in tokens."""

    width: int = 128
    layers: int = 5
    heads: int = 4
    kv_heads: int = 4
    hidden: int = 384
    vocabulary: int = 512
    context: int = 768

    @property
    def head(self) -> int:
        return self.width // self.heads

    @property
    def kv_width(self) -> int:
        return self.head * self.kv_heads

    def check(self) -> None:
        """Raises ValueError for sizes no format can hold."""
        for name in ("width", "kv_width", "hidden"):
            if getattr(self, name) % 32:
                raise ValueError(f"{name} {getattr(self, name)} is no multiple of 32, so its rows have no whole blocks")
        if self.width % self.heads or self.heads % self.kv_heads or self.head % 2:
            raise ValueError("heads must divide the width, kv_heads the heads, and a head must be even")


Weights = dict[str, np.ndarray]
"""``embedding`` [vocabulary, width], ``norm`` [width], and per layer ``i.attention_norm``, ``i.wq``, ``i.wk``,
``i.wv``, ``i.wo``, ``i.ffn_norm``, ``i.w1`` (gate), ``i.w2`` (down), ``i.w3`` (up): float32 [out, in]."""


def sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Every weight and its dimensions, in the order of ``Weights``."""
    w, h, kv = shape.width, shape.hidden, shape.kv_width
    out: dict[str, tuple[int, ...]] = {"embedding": (shape.vocabulary, w)}
    for i in range(shape.layers):
        out |= {
            f"{i}.attention_norm": (w,),
            f"{i}.wq": (w, w),
            f"{i}.wk": (kv, w),
            f"{i}.wv": (kv, w),
            f"{i}.wo": (w, w),
            f"{i}.ffn_norm": (w,),
            f"{i}.w1": (h, w),
            f"{i}.w2": (w, h),
            f"{i}.w3": (h, w),
        }
    return out | {"norm": (w,)}


def count(shape: Shape) -> int:
    """Number of weights."""
    return sum(int(np.prod(s)) for s in sizes(shape).values())


def random_weights(shape: Shape, seed: int = 0) -> Weights:
    """An untrained network, for tests of the writers."""
    rng = np.random.default_rng(seed)
    return {
        name: np.ones(s, np.float32) if len(s) == 1 else rng.normal(0, s[-1] ** -0.5, s).astype(np.float32)
        for name, s in sizes(shape).items()
    }


def rotations(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine [context, head / 2] of the rotary positions, float32."""
    steps = THETA ** (-np.arange(0, shape.head, 2) / shape.head)
    angles = np.outer(np.arange(shape.context), steps)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def network(shape: Shape) -> Any:
    """A fresh torch network: ids [n, t] -> logits [n, t, vocabulary]; its parameters are named as in ``Weights``."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Facts(nn.Module):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterDict()
            for name, size in sizes(shape).items():
                deep = (2 * shape.layers) ** -0.5 if name.endswith(("wo", "w2")) else 1.0
                if len(size) == 1:
                    start = torch.ones(size)
                elif name == "embedding":
                    start = torch.randn(size) * 0.05
                else:
                    start = torch.randn(size) * size[-1] ** -0.5 * deep
                self.weights[name.replace(".", "_")] = nn.Parameter(start)
            cos, sin = rotations(shape)
            self.register_buffer("cos", torch.from_numpy(cos), persistent=False)
            self.register_buffer("sin", torch.from_numpy(sin), persistent=False)

        def turn(self, x: torch.Tensor) -> torch.Tensor:
            """Rotate pairs. x [n, t, 2, heads * head / 2]: all first halves of the pairs, then all second ones."""
            t, many = x.shape[1], x.shape[3] // (shape.head // 2)
            cos, sin = (z[:t].to(x.dtype).repeat(1, many) for z in (self.cos, self.sin))
            a, b = x[:, :, 0], x[:, :, 1]
            return torch.stack((a * cos - b * sin, a * sin + b * cos), 2)

        def forward(self, ids: torch.Tensor, chosen: torch.Tensor | None = None) -> torch.Tensor:
            """Logits of every place, or of the ``chosen`` ones (a mask [n, t]): [places, vocabulary]."""
            p = self.weights
            n, t = ids.shape
            x = F.embedding(ids, p["embedding"])
            half = torch.is_autocast_enabled("cpu")
            mask = torch.full((t, t), -1e9, dtype=torch.bfloat16 if half else torch.float32).triu(1)

            def apart(w: torch.Tensor, k: int) -> torch.Tensor:
                """The rows of all first halves of pairs, then those of the second. As q and k are cut alike no score
                changes, and long runs of neighbours are rotated alike: three times as fast."""
                return w.view(k, shape.head // 2, 2, shape.width).permute(2, 0, 1, 3).reshape(2, -1, shape.width)

            for i in range(shape.layers):
                y = F.rms_norm(x, (shape.width,), p[f"{i}_attention_norm"], EPSILON)
                both = torch.cat((apart(p[f"{i}_wq"], shape.heads), apart(p[f"{i}_wk"], shape.kv_heads)), 1).flatten(
                    0, 1
                )
                turned = self.turn(F.linear(y, both).view(n, t, 2, -1)).view(n, t, 2, -1, shape.head // 2)
                q, k = (z.transpose(2, 3).flatten(3) for z in turned.split((shape.heads, shape.kv_heads), 3))
                v = F.linear(y, p[f"{i}_wv"]).view(n, t, shape.kv_heads, shape.head)
                if shape.kv_heads != shape.heads:
                    k, v = (z.repeat_interleave(shape.heads // shape.kv_heads, 2) for z in (k, v))
                # written out: on two cores twice as fast as the fused kernel, whose way back is slow
                q, k, v = (z.to(mask.dtype).transpose(1, 2).reshape(-1, t, shape.head) for z in (q, k, v))
                scores = torch.baddbmm(mask.expand(len(q), t, t), q, k.transpose(1, 2), alpha=shape.head**-0.5)
                y = (scores.softmax(-1) @ v).view(n, shape.heads, t, shape.head)
                y = y.transpose(1, 2).reshape(n, t, shape.width)
                if chosen is not None and i == shape.layers - 1:
                    x, y = x[chosen], y[chosen]  # what is not asked for need not go through the last layer
                x = x + F.linear(y, p[f"{i}_wo"])
                y = F.rms_norm(x, (shape.width,), p[f"{i}_ffn_norm"], EPSILON)
                x = x + F.linear(F.silu(F.linear(y, p[f"{i}_w1"])) * F.linear(y, p[f"{i}_w3"]), p[f"{i}_w2"])
            return F.linear(F.rms_norm(x, (shape.width,), p["norm"], EPSILON), p["embedding"])

    shape.check()
    return Facts()


def weights_of(net: Any) -> Weights:
    """The weights of a torch network as arrays."""
    return {name.replace("_", ".", 1) if name[0].isdigit() else name: p.detach().float().numpy().copy()
            for name, p in net.weights.items()}  # fmt: skip


def put(net: Any, weights: Weights) -> None:
    """Give a torch network these weights."""
    import torch

    with torch.no_grad():
        for name, w in weights.items():
            net.weights[name.replace(".", "_")].copy_(torch.from_numpy(w))


def save(path: Any, shape: Shape, weights: Weights) -> None:
    """One ``.npz`` with the shape and the weights."""
    content: dict[str, Any] = {**weights, **{f"shape/{k}": np.array(v) for k, v in asdict(shape).items()}}
    np.savez(path, **content)


def load(path: Any) -> tuple[Shape, Weights]:
    """What ``save`` wrote."""
    with np.load(path, allow_pickle=False) as data:
        shape = Shape(**{k[6:]: int(data[k]) for k in data.files if k.startswith("shape/")})
        return shape, {k: data[k] for k in data.files if not k.startswith("shape/")}
