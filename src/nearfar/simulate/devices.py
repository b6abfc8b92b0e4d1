"""Devices and how long one inference takes there.

Means are the published ones of SSD-MobileNet v1 on 300 x 300 pixels. Everything else is an assumption of ours and named
so: the log-normal shape and its sigma, the thermal model, the cores. Power is stated where the maker publishes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import msgspec

LARGE = (1.45, 1.60)
"""Larger frames add 45 to 60 % to the service time, by the same publications; drawn evenly between."""
AMBIENT_TAU_S = 60.0
"""Assumed: time constant of a small board's temperature, in seconds."""


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`mean_ms` of one inference; `sigma` of its log-normal; `active_w` None where nobody published it.

    `rise_c`: degrees above ambient at full load; at `throttle_c` inference becomes `throttle_factor` times slower,
    until it is 5 degrees cooler. 0 for `rise_c` means a device that never throttles.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,40}$")]
    mean_ms: Annotated[float, msgspec.Meta(gt=0, le=1e6)]
    sigma: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.10
    cores: Annotated[float, msgspec.Meta(gt=0, le=4096)] = 4.0
    active_w: Annotated[float, msgspec.Meta(gt=0, le=1e5)] | None = None
    rise_c: Annotated[float, msgspec.Meta(ge=0, le=200)] = 0.0
    throttle_c: Annotated[float, msgspec.Meta(gt=0, le=200)] = 80.0
    throttle_factor: Annotated[float, msgspec.Meta(ge=1, le=20)] = 1.5
    source: str = "scenario"

    def service_ms(self, z: float) -> float:
        """The service time in milliseconds for a standard normal `z`; its mean over all `z` is `mean_ms`."""
        return self.mean_ms * math.exp(self.sigma * z - self.sigma * self.sigma / 2)


_PUBLISHED = (
    "published mean of SSD-MobileNet v1 in the heterogeneous-edge literature; sigma, cores and heat assumed; "
    "power unavailable"
)
"""Power is what a scenario states of a board that somebody measured; none could be checked against a source here."""

CATALOGUE: Mapping[str, Device] = {
    device.name: device
    for device in (
        Device("coral", 15.7, 0.05, source=_PUBLISHED),
        Device("pi5", 16.9, 0.15, 4.0, None, 60.0, 80.0, 1.5, _PUBLISHED),
        Device("ncs2", 52.8, 0.05, source=_PUBLISHED),
        Device("jetson-nano", 61.6, 0.10, 4.0, source=_PUBLISHED),
        Device("pi3b+", 271.5, 0.15, 4.0, None, 60.0, 80.0, 1.5, _PUBLISHED),
    )
}  # fmt: skip
"""Built-in devices by name."""


class Heat:
    """First-order temperature of one board, and whether it throttles. The model is an assumption."""

    __slots__ = ("ambient", "at", "device", "temperature", "throttled")

    def __init__(self, device: Device, ambient: float) -> None:
        self.device = device
        self.ambient = ambient
        self.temperature = ambient
        self.throttled = False
        self.at = 0.0

    def step(self, now: float, load: float) -> bool:
        """Advance to `now` with a mean load of 0 to 1 since the last step; True when throttling began or ended."""
        device = self.device
        if not device.rise_c:
            return False
        towards = self.ambient + device.rise_c * min(load, 1.0)
        self.temperature += (towards - self.temperature) * -math.expm1(-(now - self.at) / AMBIENT_TAU_S)
        self.at = now
        was = self.throttled
        self.throttled = self.temperature >= device.throttle_c - (5.0 if was else 0.0)
        return was != self.throttled
