"""The detector: one plain list of layers, and the torch network that trains it.

``GRAPH`` is all there is to the architecture; the network here and both writers in ``export.py`` follow it, so
none of the three can drift from the others. Numbers are quantised the same way everywhere:

- the image is raw uint8 RGB, value = q / 255;
- an inner activation is uint8, value = q * 6 / 255: the clamp of the quantiser *is* the ReLU6;
- a weight is a whole number in -64..64 times a scale per output channel. Two products of 255 * 64 fit 16 bits,
  so kernels that add pairs in 16 bits (x86 without VNNI) do not saturate and give the same result as others;
- ``box`` outputs are q * 0.02 - 2.04 (cells, log cells), ``score`` outputs q * 0.05 - 8 (logits).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 3
STRIDES = (8, 16)
WEIGHT_MAX = 64


@dataclass(frozen=True, slots=True)
class Grid:
    """Affine uint8 quantisation: value = (q - zero) * scale."""

    scale: float
    zero: int


@dataclass(frozen=True, slots=True)
class Layer:
    """A node of the graph. ``kind``: conv, up (nearest, twice) or concat (channels); ``out`` names its grid."""

    name: str
    inputs: tuple[str, ...]
    channels: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    kind: str = "conv"
    out: str = "relu6"


GRIDS = {"image": Grid(1 / 255, 0), "relu6": Grid(6 / 255, 0), "box": Grid(0.02, 102), "score": Grid(0.05, 160)}

GRAPH = (
    Layer("stem", ("image",), 16, stride=2),
    Layer("down4", ("stem",), 32, stride=2),
    Layer("body4", ("down4",), 32),
    Layer("down8", ("body4",), 48, stride=2),
    Layer("body8a", ("down8",), 48),
    Layer("body8b", ("body8a",), 48),
    Layer("body8c", ("body8b",), 48),
    Layer("down16", ("body8c",), 64, stride=2),
    Layer("body16a", ("down16",), 64),
    Layer("body16b", ("body16a",), 64, dilation=2),
    Layer("lateral", ("body16b",), 32, kernel=1),
    Layer("lifted", ("lateral",), 32, kind="up"),
    Layer("joined", ("body8c", "lifted"), 80, kind="concat"),
    Layer("fused", ("joined",), 48),
    Layer("box8", ("fused",), 4, kernel=1, out="box"),
    Layer("score8", ("fused",), CLASSES, kernel=1, out="score"),
    Layer("box16", ("body16b",), 4, kernel=1, out="box"),
    Layer("score16", ("body16b",), CLASSES, kernel=1, out="score"),
)
OUTPUTS = ("box8", "score8", "box16", "score16")


def channels_of(name: str) -> int:
    """Channels of a tensor of the graph."""
    return 3 if name == "image" else next(layer.channels for layer in GRAPH if layer.name == name)


def padding(layer: Layer) -> tuple[int, int]:
    """Rows (and columns) of zeros before and after, as TFLite's SAME does for even inputs."""
    total = layer.dilation * (layer.kernel - 1) - (layer.stride - 1)
    return total // 2, total - total // 2


def fake_quantise(x: Tensor, grid: Grid) -> Tensor:
    """Round to the grid and saturate; the gradient passes where nothing saturated."""
    low, high = -grid.zero * grid.scale, (255 - grid.zero) * grid.scale
    clamped = x.clamp(low, high)
    return clamped + (torch.round(clamped / grid.scale) * grid.scale - clamped).detach()


class YardNet(nn.Module):  # type: ignore[misc,unused-ignore]
    """Input float [n, 3, h, w] in 0..1, h and w divisible by 16; output dict of ``OUTPUTS`` [n, c, h/s, w/s]."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleDict()
        self.norms = nn.ModuleDict()
        self.quantised = False
        for layer in GRAPH:
            if layer.kind != "conv":
                continue
            head = layer.out != "relu6"
            conv = nn.Conv2d(
                channels_of(layer.inputs[0]), layer.channels, layer.kernel, layer.stride, dilation=layer.dilation
            )
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
            if head:
                nn.init.normal_(conv.weight, 0, 0.01)
                nn.init.constant_(conv.bias, -4.0 if layer.out == "score" else 0.8)
            else:
                self.norms[layer.name] = nn.BatchNorm2d(layer.channels, eps=1e-3)
            self.convs[layer.name] = conv

    def fold(self) -> None:
        """Move batch norm into the weights and, from now on, compute on the int8 grids."""
        for name, norm in self.norms.items():
            conv = self.convs[name]
            gain = norm.weight.data / torch.sqrt(norm.running_var + norm.eps)
            conv.weight.data *= gain[:, None, None, None]
            conv.bias.data = (conv.bias.data - norm.running_mean) * gain + norm.bias.data
        self.norms = nn.ModuleDict()
        self.quantised = True

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        values = {"image": image}
        for layer in GRAPH:
            x = values[layer.inputs[0]]
            if layer.kind == "up":
                values[layer.name] = F.interpolate(x, scale_factor=2.0, mode="nearest")
                continue
            if layer.kind == "concat":
                values[layer.name] = torch.cat([values[name] for name in layer.inputs], 1)
                continue
            conv: Any = self.convs[layer.name]
            before, after = padding(layer)
            if before == after:
                pad = before
            else:
                x, pad = F.pad(x, (before, after, before, after)), 0
            weight = self._on_grid(conv.weight) if self.quantised else conv.weight
            y = F.conv2d(x, weight, conv.bias, layer.stride, pad, layer.dilation)
            if layer.name in self.norms:
                y = self.norms[layer.name](y)
            if self.quantised:
                y = fake_quantise(y, GRIDS[layer.out])
            elif layer.out == "relu6":
                y = F.relu6(y)
            values[layer.name] = y
        return {name: values[name] for name in OUTPUTS}

    @staticmethod
    def _on_grid(weight: Tensor) -> Tensor:
        scale = (weight.detach().abs().amax((1, 2, 3), keepdim=True) / WEIGHT_MAX).clamp_min(1e-8)
        return weight + (torch.round(weight / scale) * scale - weight).detach()

    def integers(self) -> dict[str, np.ndarray]:
        """After ``fold``: per conv ``name/weight`` int8 [o, i, k, k], ``name/scale`` float32 [o], ``name/bias`` [o]."""
        assert self.quantised, "fold() first"
        out: dict[str, np.ndarray] = {}
        for name, conv in self.convs.items():
            weight = conv.weight.detach()
            scale = (weight.abs().amax((1, 2, 3), keepdim=True) / WEIGHT_MAX).clamp_min(1e-8)
            out[f"{name}/weight"] = torch.round(weight / scale).to(torch.int8).numpy()
            out[f"{name}/scale"] = scale.flatten().numpy().astype(np.float32)
            out[f"{name}/bias"] = conv.bias.detach().numpy().astype(np.float32)
        return out


def cells(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Left upper corner in cells [a, 2] and stride [a] of every prediction, stride 8 first, row by row."""
    corners, strides = [], []
    for stride in STRIDES:
        y, x = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
        corners.append(torch.stack([x, y], -1).reshape(-1, 2).float())
        strides.append(torch.full((len(corners[-1]),), float(stride)))
    return torch.cat(corners), torch.cat(strides)


def flatten(outputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Raw boxes [n, a, 4] and logits [n, a, classes], in the order of ``cells``."""

    def rows(kind: str) -> Tensor:
        return torch.cat([outputs[f"{kind}{s}"].float().flatten(2).transpose(1, 2) for s in STRIDES], 1)

    return rows("box"), rows("score")


def decode(raw: Tensor, corners: Tensor, strides: Tensor) -> Tensor:
    """Raw boxes [n, a, 4] -> x0, y0, x1, y1 in pixels."""
    raw = raw.clamp(-3.0, 4.0)
    centre = (corners + raw[..., :2]) * strides[:, None]
    half = torch.exp(raw[..., 2:]) * strides[:, None] / 2
    return torch.cat([centre - half, centre + half], -1)
