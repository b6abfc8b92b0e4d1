"""Renders a working yard from a seed: people, forklifts and boxes in front of a fixed camera, with exact truth.

    seed -> Scene -> frame(t) -> (BGR image, list of Truth)

Everything is a function of ``(seed, width, height, t)``: no state survives between two calls of ``frame``, so
frames may be asked for in any order and on any machine. Objects are 3-D shapes in metres, seen by a pinhole
camera and painted from far to near; each is painted into an id buffer as well, and the truth is counted there.

World axes: x to the right, y up, z away from the camera, metres. Image: BGR uint8 [height, width, 3].
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from recipes.yard.solids import (
    CORNERS,
    GRID,
    MARGIN,
    SHIFT,
    Camera,
    Canvas,
    Clutter,
    Colour,
    Floats,
    Forklift,
    Image,
    Light,
    Painter,
    Parcel,
    Person,
    Route,
    noise_tile,
    turn,
    vary,
    walk,
)

LABELS = ("person", "forklift", "box")
IGNORE_BELOW = 0.3  # truth less visible than this is neither a hit nor a miss in any evaluation

PERSON, FORKLIFT, BOX = range(3)


@dataclass(frozen=True, slots=True)
class Truth:
    """One object in one frame.

    ``xyxy`` spans the whole silhouette, also where something stands before it, clipped to the image; pixels,
    edges (a single pixel at 3, 4 is ``(3, 4, 4, 5)``). ``visible`` is the share (0..1) of the silhouette's
    pixels that can be seen: inside the image and not covered. ``track_id`` stays with the object for the scene.
    """

    label_id: int
    xyxy: tuple[float, float, float, float]
    visible: float
    track_id: int = 0

    @property
    def ignored(self) -> bool:
        """Too hidden to demand of a detector."""
        return self.visible < IGNORE_BELOW


class Backdrop:
    """The empty yard [height, width, 3]: ground with texture and markings, a wall, sky."""

    def __init__(self, rng: np.random.Generator, camera: Camera, light: Light, wall_z: float, reach: float) -> None:
        self.camera = camera
        self.wall_z = wall_z
        rx, ry, rz = camera.rays()
        down = np.where(ry < -1e-4, -camera.height / np.minimum(ry, -1e-4), 1e6)
        ground = (down * rz < wall_z)[..., None]
        self.image: Image = np.where(ground, self._ground(rng, rx * down, rz * down), self._wall(rng, rx, ry, rz))
        self._gates(rng, light, reach)
        self._markings(rng, reach)

    def _ground(self, rng: np.random.Generator, x: Floats, z: Floats) -> Image:
        tone = ((96, 98, 100), (128, 134, 138), (62, 62, 64), (96, 122, 140), (150, 156, 158))[rng.integers(5)]
        base = np.array(vary(rng, tone, 9))
        tile = noise_tile(rng, 256, rng.uniform(0.6, 1.2))
        blotch = noise_tile(rng, 256, 1.6)
        far = np.clip(z / 8, 0.5, 3)

        def sample(source: NDArray[np.float32], per_metre: float) -> Floats:
            u, v = (np.mod(a * per_metre, 256).astype(np.float32) for a in (x, z))
            looked_up = cv2.remap(source, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
            return np.asarray(looked_up, np.float64)

        gain = 1 + rng.uniform(0.03, 0.11) * sample(tile, 48) / far + rng.uniform(0.02, 0.09) * sample(blotch, 14)
        image = base * gain[..., None]
        wet = sample(blotch, 9)
        level = rng.uniform(1.3, 2.6)  # puddles and oil where the blotches are deepest
        puddle = np.clip((wet - level) * 6, 0, 1)[..., None] * 0.75
        image = image * (1 - puddle) + puddle * np.array(vary(rng, (105, 92, 82), 20)) * rng.uniform(0.5, 1.1)
        return np.asarray(np.clip(image, 0, 255), np.uint8)

    def _wall(self, rng: np.random.Generator, rx: Floats, ry: Floats, rz: Floats) -> Image:
        t = self.wall_z / np.maximum(rz, 1e-3)
        x, y = rx * t, self.camera.height + ry * t
        tone = ((140, 140, 138), (80, 92, 140), (150, 135, 110), (110, 120, 105), (175, 180, 182))[rng.integers(5)]
        base = np.array(vary(rng, tone, 14))
        kind = rng.integers(3)
        if kind == 0:  # corrugated sheet
            gain = 1 + 0.12 * np.sin(x * 2 * np.pi / rng.uniform(0.3, 0.6))
        elif kind == 1:  # brick
            course = np.floor(y / 0.2)
            inside = (np.mod(y, 0.2) > 0.025) & (np.mod(x + 0.2 * (course % 2), 0.42) > 0.03)
            gain = np.where(inside, 1 + 0.08 * np.sin(course * 12.9 + np.floor(x / 0.42) * 78.2), 1.25)
        else:  # concrete panels
            gain = np.where((np.mod(x, 2.5) > 0.05) & (np.mod(y, 1.8) > 0.05), 1.0, 0.75)
        gain = gain * (0.86 + 0.14 * np.clip(y / 1.5, 0, 1))
        sky = np.array(vary(rng, (215, 190, 165), 20)) * (0.85 + 0.15 * np.clip(ry, 0, 1))[..., None]
        top = rng.uniform(3.5, 8.0)
        image = np.where((y < top)[..., None], base * gain[..., None], sky)
        return np.asarray(np.clip(image, 0, 255), np.uint8)

    def _quad(self, points: Sequence[Colour], colour: Colour) -> None:
        """Fill a patch of ground or wall (world corners), smoothed."""
        pixels = self.camera.project(np.array(points, np.float64))[0]
        fixed = np.rint(np.clip(pixels, -2000, 3000) * GRID).astype(np.int32)
        cv2.fillConvexPoly(self.image, fixed, colour, cv2.LINE_AA, SHIFT)

    def _gates(self, rng: np.random.Generator, light: Light, reach: float) -> None:
        z = self.wall_z
        for _ in range(rng.integers(1, 6)):
            x, w = rng.uniform(-reach, reach), rng.uniform(0.9, 3.6)
            low, high = (0.0, rng.uniform(2.1, 3.4)) if rng.random() < 0.7 else (1.2, 2.3)
            colour = np.array(vary(rng, (90, 88, 84) if low else (120, 110, 100), 30))
            self._quad(
                [(x - 0.1, low, z), (x - 0.1, high + 0.1, z), (x + w + 0.1, high + 0.1, z), (x + w + 0.1, low, z)],
                (colour * 0.6).tolist(),
            )
            self._quad([(x, low, z), (x, high, z), (x + w, high, z), (x + w, low, z)], colour.tolist())
            for y in np.arange(low + 0.15, high, 0.3):
                self._quad([(x, y, z), (x, y + 0.06, z), (x + w, y + 0.06, z), (x + w, y, z)], (colour * 0.8).tolist())

    def _markings(self, rng: np.random.Generator, reach: float) -> None:
        near = self.camera.nearest_ground - 0.5
        if rng.random() < 0.6:  # slab joints
            gap = rng.uniform(2.5, 5.0)
            tone = (self.image[-1].mean(0) * 0.72).tolist()
            for x in np.arange(-reach - 3, reach + 3, gap):
                self._quad([(x, 0, near), (x, 0, self.wall_z), (x + 0.03, 0, self.wall_z), (x + 0.03, 0, near)], tone)
            for z in np.arange(near, self.wall_z, gap):
                self._quad([(-20, 0, z), (20, 0, z), (20, 0, z + 0.04), (-20, 0, z + 0.04)], tone)
        paint = vary(rng, (60, 190, 215) if rng.random() < 0.5 else (205, 210, 210), 14)
        for _ in range(rng.integers(0, 4)):
            x, slope = rng.uniform(-reach, reach), rng.uniform(-0.4, 0.4)
            dash = rng.choice([0.0, 1.0])
            for z in np.arange(near, self.wall_z - 0.5, 1.8):
                a, b = z, z + (1.1 if dash else 1.8)
                xa, xb = x + slope * (a - near), x + slope * (b - near)
                self._quad([(xa, 0, a), (xb, 0, b), (xb + 0.13, 0, b), (xa + 0.13, 0, a)], paint)
        if rng.random() < 0.3:  # a hatched keep-clear area
            x, z = rng.uniform(-reach, reach), rng.uniform(near + 1, self.wall_z - 3)
            for k in range(6):
                self._quad(
                    [
                        (x + 0.5 * k, 0, z),
                        (x + 0.5 * k + 0.7, 0, z + 2),
                        (x + 0.5 * k + 0.9, 0, z + 2),
                        (x + 0.5 * k + 0.2, 0, z),
                    ],
                    paint,
                )


class Scene:
    """One yard with its people, forklifts, boxes, light and camera; ``frame(t)`` is a pure function of ``t``.

    >>> image, truth = Scene(seed=7).frame(t=1.5)
    >>> image.shape, image.dtype.name
    ((240, 320, 3), 'uint8')
    """

    def __init__(self, seed: int, width: int = 320, height: int = 240) -> None:
        rng = np.random.default_rng([seed, 0x5A4D])
        self.seed, self.width, self.height = seed, width, height
        camera = Camera(width, height, width * rng.uniform(0.82, 1.15), rng.uniform(3.0, 5.2), rng.uniform(0.2, 0.42))
        overcast = rng.random() < 0.4
        azimuth, rise = rng.uniform(0, 2 * np.pi), rng.uniform(0.45, 1.2)
        sun = np.array([math.cos(azimuth) * math.cos(rise), math.sin(rise), math.sin(azimuth) * math.cos(rise)])
        light = Light(sun, 0.82 if overcast else rng.uniform(0.45, 0.68), 0.25 if overcast else rng.uniform(0.35, 0.62))
        self.camera, self.light = camera, light
        self._near = camera.nearest_ground
        self._wall = self._near + rng.uniform(9.0, 13.0)
        self._reach = self._wall * width / 2 / camera.focal
        self._backdrop = Backdrop(rng, camera, light, self._wall, self._reach).image
        self._painter = Painter(camera, light)
        self._taken: list[tuple[float, float, float]] = []  # x, z, radius of what stands still
        self._boxes = self._stacks(rng)
        self._clutter = self._litter(rng)
        busy = rng.random()
        self._people = [self._person(rng) for _ in range(rng.integers(1, 4 if busy < 0.6 else 7))]
        self._forklifts = [self._forklift(rng) for _ in range(rng.choice([0, 1, 2], p=[0.2, 0.55, 0.25]))]
        self._weather(rng, overcast)

    # -- what stands and moves in it

    def _place(self, rng: np.random.Generator, radius: float) -> tuple[float, float]:
        """A free place on the ground inside the picture."""
        x = z = 0.0
        for _ in range(12):
            z = rng.uniform(self._near + 0.3, self._wall - 1.0)
            x = rng.uniform(-0.95, 0.95) * z * self.width / 2 / self.camera.focal
            if all(math.hypot(x - a, z - b) > radius + r for a, b, r in self._taken):
                break
        self._taken.append((x, z, radius))
        return x, z

    def _route(self, rng: np.random.Generator, radius: float, speed: float, restless: float, turning: float) -> Route:
        """The one of several random walks that keeps furthest from what stands still."""
        best: tuple[float, Route] | None = None
        for _ in range(6):
            z = rng.uniform(self._near + 0.2 + radius * 0.5, self._wall - 0.6 - radius, rng.integers(4, 7))
            x = rng.uniform(-1.08, 1.08, len(z)) * z * self.width / 2 / self.camera.focal
            path = walk(rng, np.stack([x, z], 1), speed, restless, turning)
            gap = min((float((np.hypot(path.x - a, path.z - b) - r).min()) for a, b, r in self._taken), default=9.0)
            if best is None or gap > best[0]:
                best = gap, path
        assert best is not None
        return best[1]

    def _parcel(self, rng: np.random.Generator, at: Colour, biggest: float, heading: float, level: int) -> Parcel:
        crate = rng.random() < 0.22
        tones: tuple[Colour, ...] = ((150, 90, 40), (70, 120, 60), (60, 60, 170), (110, 110, 110))
        colour = vary(rng, tones[rng.integers(4)] if crate else (96, 138, 178), 16)
        size = rng.uniform(0.62, 1.0, 3) * biggest
        size[1] = min(size[1], 1.1)
        return Parcel(
            (at[0], at[1], at[2]),
            (float(size[0]), float(size[1]), float(size[2])),
            heading,
            colour,
            vary(rng, (120, 165, 200), 14),
            crate,
            bool(rng.random() < 0.6),
            level,
        )

    def _stacks(self, rng: np.random.Generator) -> list[Parcel]:
        boxes: list[Parcel] = []
        for _ in range(rng.integers(1, 6)):
            biggest = rng.uniform(0.7, 1.35)
            x, z = self._place(rng, biggest * 0.8)
            heading, base = rng.uniform(0, np.pi), 0.0
            for level in range(rng.choice([1, 2, 3], p=[0.5, 0.33, 0.17])):
                box = self._parcel(rng, (x, base, z), biggest, heading, level)
                boxes.append(box)
                base += box.size[1]
                biggest = min(box.size[0], box.size[2]) * 1.05
                heading += rng.normal(0, 0.12)
        return boxes

    def _litter(self, rng: np.random.Generator) -> list[Clutter]:
        shapes: dict[str, tuple[Colour, Colour]] = {
            "cone": ((0.36, 0.6, 0.36), (30, 90, 235)),
            "barrel": ((0.6, 0.9, 0.6), (150, 80, 30)),
            "bollard": ((0.16, 1.0, 0.16), (40, 190, 220)),
            "pallet": ((1.2, 0.15, 0.9), (90, 130, 160)),
            "container": ((5.0, 2.5, 2.4), (90, 80, 130)),
        }
        litter = []
        for kind in rng.choice(["cone", "barrel", "bollard", "pallet", "pallet"], rng.integers(0, 6)):
            x, z = self._place(rng, 0.6)
            litter.append(self._item(rng, str(kind), (x, 0.0, z), shapes))
        if rng.random() < 0.35:
            side = rng.choice([-1, 1])
            x, z = side * self._reach * rng.uniform(0.45, 0.8), self._wall - 1.8
            self._taken.append((x, z, 2.4))
            litter.append(self._item(rng, "container", (x, 0.0, z), shapes))
        return litter

    def _item(
        self,
        rng: np.random.Generator,
        kind: str,
        at: tuple[float, float, float],
        shapes: dict[str, tuple[Colour, Colour]],
    ) -> Clutter:
        size, tone = shapes[kind]
        heading = rng.normal(0, 0.08) if kind == "container" else rng.uniform(0, np.pi)
        w, h, d = (np.asarray(size) * rng.uniform(0.85, 1.15, 3)).tolist()
        return Clutter(kind, at, (w, h, d), heading, vary(rng, tone, 20))

    def _person(self, rng: np.random.Generator) -> Person:
        path = self._route(rng, 0.3, rng.uniform(0.6, 1.25), rng.uniform(0.5, 1.0), 0.5)
        height = float(np.clip(rng.normal(1.74, 0.09), 1.5, 1.95))
        skins: tuple[Colour, ...] = ((150, 175, 215), (120, 150, 195), (75, 105, 150), (45, 65, 100))
        vests: tuple[Colour, ...] = ((40, 235, 225), (30, 120, 245), (60, 230, 160))
        tops: tuple[Colour, ...] = ((130, 70, 40), (60, 60, 160), (60, 60, 62), (190, 190, 190), (70, 110, 60))
        heads: tuple[Colour, ...] = ((230, 230, 235), (40, 200, 240), (200, 120, 40), (30, 35, 45), (50, 75, 110))
        legs: tuple[Colour, ...] = ((110, 70, 45), (55, 55, 58), (95, 110, 120), (45, 70, 60))
        vest = vary(rng, vests[rng.integers(3)], 12) if rng.random() < 0.6 else None
        return Person(
            path,
            height,
            0.85 * height,
            vary(rng, skins[rng.integers(4)], 8),
            vary(rng, tops[rng.integers(5)], 22),
            vest,
            vary(rng, legs[rng.integers(4)], 18),
            vary(rng, heads[rng.integers(5)], 12),
            float(rng.uniform(0, 60)),
        )

    def _forklift(self, rng: np.random.Generator) -> Forklift:
        path = self._route(rng, 1.3, rng.uniform(0.8, 1.8), rng.uniform(0.5, 1.0), 1.6)
        paints: tuple[Colour, ...] = ((25, 175, 235), (35, 60, 200), (30, 120, 235), (170, 95, 40), (90, 150, 60))
        load = self._parcel(rng, (0, 0, 0), rng.uniform(0.9, 1.25), 0.0, 0) if rng.random() < 0.5 else None
        lift = rng.uniform(0.3, 1.3) if rng.random() < 0.5 else 0.15
        return Forklift(
            path,
            rng.uniform(0.9, 1.1),
            vary(rng, paints[rng.integers(5)], 14),
            vary(rng, (52, 52, 56), 8),
            load,
            lift,
            float(rng.uniform(0, 60)),
        )

    # -- light, lens, sensor

    def _weather(self, rng: np.random.Generator, overcast: bool) -> None:
        h, w = self.height, self.width
        dusk = rng.random() < 0.25
        self._gain = rng.uniform(0.3, 0.55) if dusk else rng.uniform(0.7, 1.2)
        self._tint = np.clip(1 + rng.normal(0, 0.05, 3), 0.85, 1.15)
        self._drift = rng.uniform(0.02, 0.18), rng.uniform(0.05, 0.5), rng.uniform(0, 6.3)
        self._cloud = rng.uniform(0.0, 0.1 if overcast else 0.28), rng.uniform(0, 6.3, 3), rng.uniform(0.1, 0.6, 3)
        y, x = np.mgrid[0:h, 0:w] / (h / 2) - 1.0
        lens = 1 - rng.uniform(0.0, 0.22) * np.clip((x / (w / h)) ** 2 + y**2, 0, 2)
        if dusk:  # lamps on the wall
            for _ in range(rng.integers(1, 4)):
                cx, cy, r = rng.uniform(-1, 2), rng.uniform(-0.8, 0.4), rng.uniform(0.35, 0.8)
                lens += rng.uniform(0.4, 1.2) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / r**2)
        self._lens = lens.astype(np.float32)
        self._blur = float(rng.uniform(0.35, 1.0))
        self._sigma = float(rng.uniform(3.0, 9.0) if dusk else rng.uniform(0.8, 5.0))
        grain = np.random.default_rng([self.seed, 0x17]).standard_normal((h + 48, w + 48, 3), np.float32)
        self._grain = grain * self._sigma

    def _shadows(self, canvas: Canvas, t: float) -> None:
        """Darken the ground of the canvas where the sun is hidden."""
        mask = np.full((self.height, self.width), 255, np.uint8)
        casts: list[Floats] = []
        for box in self._boxes:
            casts.append(turn(CORNERS * (box.size[0] / 2, box.size[1], box.size[2] / 2), box.heading, box.at))
        for item in self._clutter:
            w, h, d = item.size
            casts.append(turn(CORNERS * (w / 2, h, d / 2), item.heading, item.at))
        for person in self._people:
            casts += person.shadow(t)
        for truck in self._forklifts:
            casts += truck.shadow(t)
            if truck.load is not None:
                at, heading = truck.load_at(t)
                s = truck.load.size
                casts.append(turn(CORNERS * (s[0] / 2, s[1], s[2] / 2), heading, at.tolist()))
        sizes = np.cumsum([len(c) for c in casts])[:-1]
        fallen = self.light.cast(np.concatenate(casts))
        fallen[:, 2] = np.minimum(fallen[:, 2], self._wall)
        value = int(255 * (1 - self.light.shadow))
        for pixels in np.split(self.camera.project(fallen)[0], sizes):
            fixed = np.rint(np.clip(pixels, -900, 1900) * GRID).astype(np.int32)
            cv2.fillConvexPoly(mask, cv2.convexHull(fixed), value, cv2.LINE_AA, SHIFT)
        mask = cv2.blur(mask, (5, 3) if self.light.ambient < 0.8 else (9, 5)).astype(np.uint8)
        cv2.multiply(canvas.image, cv2.merge([mask, mask, mask]), canvas.image, 1 / 255)

    def _expose(self, image: Image, t: float) -> Image:
        """Light, lens blur and sensor noise at time t."""
        depth, rate, phase = self._drift
        strength, phases, rates = self._cloud
        y, x = np.mgrid[0:6, 0:8] * 0.7
        cloud = np.sin(x + rates[0] * t + phases[0]) + np.sin(1.3 * y - x * 0.6 + rates[1] * t + phases[1])
        gain = self._gain * (1 + depth * math.sin(rate * t + phase)) * (1 - strength * 0.25 * (2 - cloud))
        field = cv2.resize(gain.astype(np.float32), (self.width, self.height), interpolation=cv2.INTER_CUBIC)
        cv2.multiply(field, self._lens, field)
        tinted = cv2.merge([field * float(c) for c in self._tint])
        soft = cv2.GaussianBlur(image, (3, 3), self._blur)
        lit = cv2.multiply(soft, tinted, dtype=cv2.CV_32F)
        dy, dx = np.random.default_rng([self.seed, round(t * 1e4) & 0xFFFFFFFF, 3]).integers(0, 48, 2)
        noise = self._grain[dy : dy + self.height, dx : dx + self.width]
        return np.asarray(cv2.add(lit, noise, dtype=cv2.CV_8U), np.uint8)

    # -- pictures

    def _paint(self, t: float) -> tuple[Canvas, list[tuple[int, int, slice, slice, int, tuple[int, int, int, int]]]]:
        canvas = Canvas(self._backdrop.copy())
        self._shadows(canvas, t)
        jobs: list[tuple[float, int, int, int, Any]] = []  # distance, order, track, label, thing
        track = 0

        def job(x: float, z: float, y: float, label: int, thing: Any) -> None:
            nonlocal track
            track += label >= 0
            jobs.append((-math.hypot(x, z) + y * 1e-3, len(jobs), track if label >= 0 else 0, label, thing))

        for item in self._clutter:
            job(item.at[0], item.at[2], 0.0, -1, item)
        for box in self._boxes:
            ground = next(b for b in self._boxes if b.level == 0 and (b.at[0], b.at[2]) == (box.at[0], box.at[2]))
            job(ground.at[0], ground.at[2], box.at[1], BOX, box)
        for person in self._people:
            x, z, *_ = person.path.at(t + person.start)
            job(x, z, 0.0, PERSON, person)
        for truck in self._forklifts:
            at, _, _ = truck.pose(t)
            job(at[0], at[2], 0.0, FORKLIFT, truck)
            if truck.load is not None:
                there, _ = truck.load_at(t)
                job(there[0], there[2], 0.0, BOX, (truck, there))
        drawn: list[tuple[int, int, slice, slice, int, tuple[int, int, int, int]]] = []
        for *_, identity, label, thing in sorted(jobs, key=lambda j: j[:2]):
            canvas.begin(identity)
            if isinstance(thing, Clutter):
                thing.draw(canvas, self._painter)
            elif isinstance(thing, Parcel):
                thing.draw(canvas, self._painter, thing.at, thing.heading)
            elif isinstance(thing, tuple):
                carrier, there = thing
                carrier.load.draw(canvas, self._painter, there.tolist(), carrier.pose(t)[1])
            else:
                thing.draw(canvas, self._painter, t)
            if identity:
                rows, columns = canvas.region()
                mask = (canvas.ids[rows, columns] == identity).view(np.uint8)
                count = cv2.countNonZero(mask) if mask.size else 0
                if count:
                    x, y, w, h = cv2.boundingRect(mask)
                    box_ = (columns.start + x - MARGIN, rows.start + y - MARGIN, w, h)
                    drawn.append((identity, label, rows, columns, count, box_))
        return canvas, drawn

    def frame_with_ids(self, t: float) -> tuple[Image, list[Truth], Image]:
        """As ``frame``, and the id buffer [height, width]: ``track_id`` of what each pixel shows, 0 for the rest."""
        canvas, drawn = self._paint(t)
        inside = canvas.ids[MARGIN : MARGIN + self.height, MARGIN : MARGIN + self.width]
        seen = np.bincount(inside.ravel(), minlength=256)
        truth = []
        for identity, label, _, _, count, (x, y, w, h) in drawn:
            x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, self.width), min(y + h, self.height)
            if x1 > x0 and y1 > y0:
                box = float(x0), float(y0), float(x1), float(y1)
                truth.append(Truth(label, box, float(seen[identity]) / count, identity))
        return self._expose(canvas.image, t), truth, inside

    def frame(self, t: float) -> tuple[Image, list[Truth]]:
        """The picture at ``t`` seconds (any real number): BGR uint8 [height, width, 3], and what is in it."""
        image, truth, _ = self.frame_with_ids(t)
        return image, truth

    def frames(self, seconds: float, fps: float) -> Iterator[tuple[Image, list[Truth]]]:
        """A clip: the frames at ``t = i / fps``."""
        for i in range(round(seconds * fps)):
            yield self.frame(i / fps)


def render_clip(
    path: str | Path, seed: int, seconds: float = 10.0, fps: int = 15, width: int = 320, height: int = 240
) -> Path:
    """Write a scene as H.264 and its truth beside it; returns the truth's path (``clip.mp4`` -> ``clip.truth.jsonl``).

    The truth has one JSON object a line: ``{"frame", "t", "objects": [{"label_id", "label", "xyxy", "visible",
    "track_id"}]}``; pixels of the clip, see ``Truth``. Needs PyAV, and even ``width`` and ``height``.
    """
    import av

    path = Path(path)
    beside = path.with_suffix(".truth.jsonl")
    with av.open(str(path), "w") as container, beside.open("w", encoding="utf-8") as lines:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "20", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for i, (image, truth) in enumerate(Scene(seed, width, height).frames(seconds, fps)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
            objects = [
                {
                    "label_id": o.label_id,
                    "label": LABELS[o.label_id],
                    "xyxy": o.xyxy,
                    "visible": round(o.visible, 4),
                    "track_id": o.track_id,
                }
                for o in truth
            ]
            lines.write(json.dumps({"frame": i, "t": i / fps, "objects": objects}) + "\n")
        container.mux(stream.encode(None))
    return beside
