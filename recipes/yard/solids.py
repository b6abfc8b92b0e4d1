"""The solids a yard is made of, and how one camera sees them: people, forklifts, parcels, clutter.

Lengths in metres, angles in radians, colours BGR 0..255. Every solid has a ``draw`` that paints it on a ``Canvas``;
whatever a polygon covers in the image it also covers in the id buffer, which is where truth is counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

MARGIN = 96  # pixels the id buffer extends beyond each border, so that truncation counts as invisibility
SHIFT = 4  # sub-pixel bits of OpenCV's polygon rasteriser
GRID = 1 << SHIFT

Floats = NDArray[np.float64]
Image = NDArray[np.uint8]
Colour = Sequence[float]
Point = Sequence[float] | Floats  # x, y, z


@dataclass(frozen=True, slots=True)
class Camera:
    """Pinhole camera at ``(0, height, 0)``, pitched down by ``pitch`` radians; ``focal`` in pixels."""

    width: int
    rows: int
    focal: float
    height: float
    pitch: float

    def project(self, points: Floats) -> tuple[Floats, Floats]:
        """World points [n, 3] -> pixels [n, 2] and depth along the optical axis [n] (at least 0.3 m)."""
        sine, cosine = math.sin(self.pitch), math.cos(self.pitch)
        above = points[:, 1] - self.height
        depth = np.maximum(points[:, 2] * cosine - above * sine, 0.3)
        up = above * cosine + points[:, 2] * sine
        scale = self.focal / depth
        pixels = np.empty((len(points), 2))
        pixels[:, 0] = self.width / 2 + points[:, 0] * scale
        pixels[:, 1] = self.rows / 2 - up * scale
        return pixels, depth

    def rays(self) -> tuple[Floats, Floats, Floats]:
        """Direction (x, y, z) through each pixel's centre, each [rows, width]."""
        right = (np.arange(self.width) + 0.5 - self.width / 2)[None, :] / self.focal
        up = (self.rows / 2 - np.arange(self.rows) - 0.5)[:, None] / self.focal
        sine, cosine = math.sin(self.pitch), math.cos(self.pitch)
        shape = (self.rows, self.width)
        return (
            np.broadcast_to(right, shape),
            np.broadcast_to(up * cosine - sine, shape),
            np.broadcast_to(up * sine + cosine, shape),
        )

    @property
    def nearest_ground(self) -> float:
        """z at which the ground enters the picture from below, metres."""
        return self.height / math.tan(self.pitch + math.atan(self.rows / 2 / self.focal))


class Canvas:
    """The image being painted and, in step with it, the id buffer."""

    def __init__(self, image: Image) -> None:
        rows, width = image.shape[:2]
        self.image = image
        self.ids: Image = np.zeros((rows + 2 * MARGIN, width + 2 * MARGIN), np.uint8)
        self.id = 0
        self._extent: list[tuple[int, int, int, int]] = []

    def begin(self, identity: int) -> None:
        """Later polygons belong to this object; 0 is anything that is not truth."""
        self.id = identity
        self._extent.clear()

    def polygon(self, points: Floats, colour: Colour, solid: bool = True) -> None:
        """Fill a convex polygon [n, 2]; ``solid=False`` paints decoration that must lie on the object."""
        fixed = np.rint(points * GRID).astype(np.int32)
        cv2.fillConvexPoly(self.image, fixed, colour, cv2.LINE_AA, SHIFT)
        if solid:
            fixed += MARGIN * GRID
            cv2.fillConvexPoly(self.ids, fixed, self.id, cv2.LINE_8, SHIFT)
            x, y, w, h = cv2.boundingRect(fixed)
            self._extent.append((x, y, x + w, y + h))

    def region(self) -> tuple[slice, slice]:
        """Rows and columns of the id buffer that hold all of the current object."""
        rows, width = self.ids.shape
        if not self._extent:
            return slice(0, 0), slice(0, 0)
        left, top, right, bottom = zip(*self._extent, strict=True)
        return (
            slice(min(max((min(top) >> SHIFT) - 2, 0), rows), min(max((max(bottom) >> SHIFT) + 3, 0), rows)),
            slice(min(max((min(left) >> SHIFT) - 2, 0), width), min(max((max(right) >> SHIFT) + 3, 0), width)),
        )


@dataclass(frozen=True)
class Route:
    """A closed walk on the ground, sampled every ``step`` seconds: x, z, heading (unwrapped), distance."""

    step: float
    x: Floats
    z: Floats
    heading: Floats
    distance: Floats
    length: float
    turned: float  # by how much the heading grows in one round, a multiple of 2 pi

    def at(self, t: float) -> tuple[float, float, float, float, float]:
        """x, z, heading (radians, 0 looks away from the camera), distance walked (m), speed (m/s)."""
        loops, rest = divmod(t / self.step, len(self.x))
        i = int(rest)
        j, f = (i + 1) % len(self.x), rest - int(rest)

        def mix(a: Floats, round_trip: float = 0.0) -> float:
            return float(a[i] * (1 - f) + (a[j] + (round_trip if j == 0 else 0.0)) * f)

        walked = mix(self.distance, self.length)
        speed = (float(self.distance[j] - self.distance[i]) + (self.length if j == 0 else 0.0)) / self.step
        return mix(self.x), mix(self.z), mix(self.heading, self.turned), walked + loops * self.length, speed


def walk(rng: np.random.Generator, corners: Floats, speed: float, restless: float, turning: float) -> Route:
    """Closed Catmull-Rom curve through ``corners`` [k, 2].

    The speed (m/s, about) swells and, if not ``restless``, rests; sharp bends are taken in ``turning`` seconds.
    """
    count = 60
    f = np.arange(count)[:, None] / count
    before, here, after, beyond = (np.roll(corners, k, 0) for k in (1, 0, -1, -2))
    curve = np.concatenate(
        [
            0.5 * (2 * b + (c - a) * f + (2 * a - 5 * b + 4 * c - d) * f**2 + (3 * b - a - 3 * c + d) * f**3)
            for a, b, c, d in zip(before, here, after, beyond, strict=True)
        ]
    )
    closed = np.concatenate([curve, curve[:1]])
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
    length = float(along[-1])
    step = 0.1
    samples = max(60, int(length / speed / 0.8 / step))
    phase = 2 * np.pi * np.arange(samples) / samples
    pace = np.clip(restless + 0.6 * np.sin(rng.integers(1, 4) * phase + rng.uniform(0, 6.3)), 0.0, 1.0)
    done = np.concatenate([[0.0], np.cumsum(pace)])
    distance = done[:-1] / done[-1] * length
    x, z = (np.interp(distance, along, closed[:, k]) for k in (0, 1))
    ahead = [np.interp((distance + 0.3) % length, along, closed[:, k]) for k in (0, 1)]
    behind = [np.interp((distance - 0.3) % length, along, closed[:, k]) for k in (0, 1)]
    dx, dz = ahead[0] - behind[0], ahead[1] - behind[1]
    heading = np.unwrap(np.arctan2(np.append(dx, dx[0]), np.append(dz, dz[0])))
    turned = float(np.rint((heading[-1] - heading[0]) / (2 * np.pi)) * 2 * np.pi)
    window = max(3, int(turning / step) | 1)
    smooth, half = heading[:-1], window // 2
    for _ in range(2):
        around = np.concatenate([smooth[-half:] - turned, smooth, smooth[:half] + turned])
        smooth = np.convolve(around, np.full(window, 1 / window), "valid")
    return Route(step, x, z, smooth, distance, length, turned)


CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (0, 1) for z in (-1, 1)], np.float64)
_FACES = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])  # -x +x +y -z +z
NORMALS = np.array([[-1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, -1], [0, 0, 1]], np.float64)
_ARC = np.linspace(np.pi / 2, 3 * np.pi / 2, 6)
CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 14, False)), np.sin(np.linspace(0, 2 * np.pi, 14, False))], 1)


def turn(points: Floats, heading: float, at: Point) -> Floats:
    """Local (right, up, forward) [n, 3] -> world, standing at ``at``."""
    sine, cosine = math.sin(heading), math.cos(heading)
    turned = np.empty_like(points)
    turned[:, 0] = points[:, 0] * cosine + points[:, 2] * sine + at[0]
    turned[:, 1] = points[:, 1] + at[1]
    turned[:, 2] = points[:, 2] * cosine - points[:, 0] * sine + at[2]
    return turned


@dataclass(frozen=True)
class Light:
    """Direction towards the sun (unit), share of light that comes from everywhere, strength of cast shadows."""

    sun: Floats
    ambient: float
    shadow: float

    def shade(self, normals: Floats) -> Floats:
        """Brightness 0..~1.1 of faces with these unit normals [n, 3]; faces turned up get more sky."""
        lit = np.maximum(normals @ self.sun, 0)
        return np.asarray(self.ambient * (0.8 + 0.2 * normals[:, 1]) + (1.08 - self.ambient) * lit)

    def cast(self, points: Floats) -> Floats:
        """Where the shadows of points [n, 3] fall on the ground [n, 3]."""
        fallen: Floats = points - self.sun * (points[:, 1] / self.sun[1])[:, None]
        fallen[:, 1] = 0.0
        return fallen


class Painter:
    """Draws solids seen by one camera under one light."""

    def __init__(self, camera: Camera, light: Light) -> None:
        self.camera = camera
        self.light = light
        self.eye = np.array([0.0, camera.height, 0.0])

    def cuboid(
        self, canvas: Canvas, size: Colour, at: Colour, heading: float, colour: Colour, solid: bool = True
    ) -> list[tuple[int, Floats]]:
        """A box of (right, up, forward) metres whose base's middle is ``at``; returns the seen faces' corners."""
        corners = turn(CORNERS * (size[0] / 2, size[1], size[2] / 2), heading, at)
        normals = turn(NORMALS, heading, (0, 0, 0))
        pixels, _ = self.camera.project(corners)
        shades = self.light.shade(normals)
        seen: list[tuple[int, Floats]] = []
        for k in range(5):
            if normals[k] @ (self.eye - corners[_FACES[k, 0]]) > 0:
                s = float(shades[k])
                canvas.polygon(pixels[_FACES[k]], (colour[0] * s, colour[1] * s, colour[2] * s), solid)
                seen.append((k, corners[_FACES[k]]))
        return seen

    def patch(self, canvas: Canvas, face: Floats, uv: Colour, colour: Colour, shade: float = 1.0) -> None:
        """Decoration on a face [4, 3]: the rectangle ``uv`` = (u0, v0, u1, v1), each 0..1 along the face's sides."""
        u0, v0, u1, v1 = uv
        sides = face[1::2] - face[0]
        quad = np.array([[u0, v0], [u1, v0], [u1, v1], [u0, v1]]) @ sides + face[0]
        canvas.polygon(self.camera.project(quad)[0], [c * shade for c in colour], solid=False)

    def capsules(
        self, canvas: Canvas, ends: Floats, radii: Floats, colours: Sequence[Colour], order: Sequence[int]
    ) -> None:
        """Rounded limbs: ends [n, 2, 3] m, radii [n, 2] m; a lighter streak on the sunny side makes them round."""
        n = len(ends)
        pixels, depth = self.camera.project(ends.reshape(-1, 3))
        p = pixels.reshape(n, 2, 2)
        r = radii * self.camera.focal / depth.reshape(n, 2)
        along = np.arctan2(p[:, 1, 1] - p[:, 0, 1], p[:, 1, 0] - p[:, 0, 0])
        angle = along[:, None, None] + np.stack([_ARC, _ARC + np.pi])[None]  # [n, end, 6]
        ring = np.stack([np.cos(angle), np.sin(angle)], -1)
        outline = (p[:, :, None] + ring * r[:, :, None, None]).reshape(n, 12, 2)
        side = 1.0 if self.light.sun[0] > 0 else -1.0
        streak = (p[:, :, None] + (ring * 0.6 + (0.3 * side, -0.15)) * r[:, :, None, None]).reshape(n, 12, 2)
        dark, lit = 0.25 + 0.55 * self.light.ambient, 0.98
        for k in order:
            c = colours[k]
            canvas.polygon(outline[k], (c[0] * dark, c[1] * dark, c[2] * dark))
            canvas.polygon(streak[k], (c[0] * lit, c[1] * lit, c[2] * lit), solid=False)


@dataclass(frozen=True)
class Parcel:
    """A parcel or crate: ``at`` is where it stands, unless it rides on a forklift; ``level`` 0 is the ground."""

    at: tuple[float, float, float]
    size: tuple[float, float, float]
    heading: float
    colour: tuple[float, float, float]
    tape: tuple[float, float, float]
    crate: bool
    sticker: bool
    level: int = 0

    def draw(self, canvas: Canvas, painter: Painter, at: Colour, heading: float) -> None:
        for k, face in painter.cuboid(canvas, self.size, at, heading, self.colour):
            shade = float(painter.light.shade(turn(NORMALS[k : k + 1], heading, (0, 0, 0)))[0])
            if self.crate:
                for v in (0.2, 0.45, 0.7):
                    area = (0.08, v, 0.92, v + 0.1) if k in (2, 3) else (v, 0.08, v + 0.1, 0.92)
                    painter.patch(canvas, face, area, self.colour, shade * 0.72)
                continue
            if k == 2:
                painter.patch(canvas, face, (0.0, 0.44, 1.0, 0.56), self.tape, shade)
                painter.patch(canvas, face, (0.49, 0.0, 0.51, 1.0), self.colour, shade * 0.7)
            elif k in (3, 4):
                painter.patch(canvas, face, (0.0, 0.44, 1.0, 0.56), self.tape, shade * 0.95)
                if self.sticker:
                    painter.patch(canvas, face, (0.5, 0.62, 0.85, 0.9), (225, 230, 228), shade)
                    painter.patch(canvas, face, (0.6, 0.66, 0.66, 0.86), (50, 50, 55), shade)


@dataclass(frozen=True)
class Person:
    path: Route
    height: float
    stride: float
    skin: Colour
    top: Colour
    vest: Colour | None
    trousers: Colour
    head: Colour
    start: float

    def limbs(self, t: float) -> tuple[Floats, Floats, Floats, float]:
        """Ends [12, 2, 3] and radii [12, 2] of the limbs, position [3], heading."""
        x, z, heading, walked, speed = self.path.at(t + self.start)
        h = self.height
        swing = 0.55 * min(1.0, speed / 0.7)
        phase = 2 * np.pi * walked / self.stride
        points: list[list[tuple[float, float, float]]] = []
        lowest = h
        for side, shift in ((-1, 0.0), (1, np.pi)):
            a = swing * math.sin(phase + shift)
            bend = 0.1 + 1.2 * swing * max(0.0, math.cos(phase + shift))
            hip = (side * 0.055 * h, 0.52 * h, 0.0)
            knee = (hip[0], hip[1] - 0.26 * h * math.cos(a), 0.26 * h * math.sin(a))
            low = a - bend
            ankle = (hip[0], knee[1] - 0.24 * h * math.cos(low), knee[2] + 0.24 * h * math.sin(low))
            toe = (hip[0], ankle[1] - 0.01 * h, ankle[2] + 0.09 * h)
            lowest = min(lowest, ankle[1] - 0.03 * h)
            b = -0.8 * a
            shoulder = (side * 0.125 * h, 0.8 * h, 0.0)
            elbow = (side * 0.15 * h, shoulder[1] - 0.17 * h * math.cos(b), 0.17 * h * math.sin(b))
            low = b + 0.35 + 0.3 * swing
            hand = (side * 0.145 * h, elbow[1] - 0.16 * h * math.cos(low), elbow[2] + 0.16 * h * math.sin(low))
            points += [[hip, knee], [knee, ankle], [ankle, toe], [shoulder, elbow], [elbow, hand]]
        lean = 0.03 * h * swing
        points += [[(0, 0.55 * h, 0), (0, 0.75 * h, lean)], [(0, 0.915 * h, lean + 0.01), (0, 0.94 * h, lean + 0.01)]]
        local = np.array(points, np.float64)
        local[:, :, 1] -= lowest
        broad = 0.085 + 0.035 * abs(math.cos(heading))
        radii = h * np.array(
            [[0.05, 0.038], [0.036, 0.026], [0.024, 0.02], [0.032, 0.027], [0.025, 0.022]] * 2
            + [[broad * 0.85, broad], [0.055, 0.06]]
        )
        at = np.array([x, 0.0, z])
        return turn(local.reshape(-1, 3), heading, at).reshape(-1, 2, 3), radii, at, heading

    def draw(self, canvas: Canvas, painter: Painter, t: float) -> None:
        ends, radii, at, _ = self.limbs(t)
        shoe = (35, 38, 42)
        colours = [self.trousers, self.trousers, shoe, self.top, self.skin] * 2 + [self.vest or self.top, self.skin]
        away = (ends.mean(1) - at) @ (at - painter.eye)  # limbs behind the body's axis first
        left, right = ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
        first, second = (left, right) if away[3] > away[8] else (right, left)
        painter.capsules(
            canvas, ends, radii, colours, [*first, second[2], second[1], second[0], 10, 11, second[3], second[4]]
        )
        pixels, depth = painter.camera.project(ends[11])
        r = float(radii[11, 1] * painter.camera.focal / depth[1])
        cap = CIRCLE[7:] * (1.08 * r, 1.15 * r) + pixels[1] + (0, -0.15 * r)  # helmet or hair: the upper half
        canvas.polygon(cap, self.head)
        if self.vest is not None:
            p, d = painter.camera.project(ends[10])
            half = radii[10, 0] * painter.camera.focal / d[0] * 0.9
            for f in (0.25, 0.6):
                m = p[0] + (p[1] - p[0]) * f
                band = m + np.array(
                    [[-half, -0.12 * half], [half, -0.12 * half], [half, 0.14 * half], [-half, 0.14 * half]]
                )
                canvas.polygon(band, (215, 225, 225), solid=False)

    def shadow(self, t: float) -> list[Floats]:
        ends, radii, _, _ = self.limbs(t)
        side = np.array([1.0, 0.0, 0.0])
        quads = []
        for k in (0, 1, 5, 6, 10, 11):
            (a, b), (ra, rb) = ends[k], radii[k]
            quads.append(np.stack([a - side * ra, a + side * ra, b + side * rb, b - side * rb]))
        return quads


@dataclass(frozen=True)
class Forklift:
    path: Route
    scale: float
    paint: Colour
    frame: Colour
    load: Parcel | None
    lift: float
    start: float

    def pose(self, t: float) -> tuple[Floats, float, float]:
        """Position [3], heading, height of the forks (m)."""
        x, z, heading, _, _ = self.path.at(t + self.start)
        height = 0.12 + self.lift * max(0.0, math.sin(0.35 * (t + self.start)))
        return np.array([x, 0.0, z]), heading, height

    def load_at(self, t: float) -> tuple[Floats, float]:
        assert self.load is not None
        at, heading, height = self.pose(t)
        reach = 0.9 * self.scale + 0.12 + self.load.size[2] / 2
        return turn(np.array([[0.0, height + 0.06, reach]]), heading, at)[0], heading

    def draw(self, canvas: Canvas, painter: Painter, t: float) -> None:
        at, heading, height = self.pose(t)
        s, dark = self.scale, (38, 38, 40)
        parts: list[tuple[Colour, Colour, Colour]] = [  # size, place, colour in local metres
            ((1.1, 0.55, 1.5), (0, 0.25, -0.05), self.paint),
            ((1.1, 0.85, 0.45), (0, 0.3, -0.98), self.frame),
            ((0.95, 0.95, 0.8), (0, 0.8, -0.1), (78, 66, 52)),  # glazed cab
            ((1.08, 0.09, 1.2), (0, 2.0, -0.15), self.frame),
            *(((0.09, 1.25, 0.09), (x, 0.78, z), self.paint) for x in (-0.48, 0.48) for z in (-0.65, 0.38)),
            *(((0.12, 2.15, 0.12), (x, 0.12, 0.78), dark) for x in (-0.36, 0.36)),
            ((0.8, 0.1, 0.1), (0, 2.12, 0.78), dark),
            ((0.85, 0.4, 0.07), (0, height, 0.88), (60, 62, 66)),
            *(((0.13, 0.06, 1.05), (x, height, 1.42), (70, 74, 80)) for x in (-0.28, 0.28)),
        ]
        middles = turn(np.array([[p[1][0], p[1][1] + p[0][1] / 2, p[1][2]] for p in parts]) * s, heading, at)
        wheels = np.array([[x, 0.27, z] for x in (-0.56, 0.56) for z in (-0.85, 0.55)]) * s
        hubs = turn(wheels, heading, at)
        gaps = np.linalg.norm(np.concatenate([middles, hubs]) - painter.eye, axis=1)
        gaps[2] += 0.25  # the glass stands inside its pillars
        drawn = sorted(((float(g), k) for k, g in enumerate(gaps)), reverse=True)
        for _, k in drawn:
            if k >= len(parts):
                hub = wheels[k - len(parts)]
                for radius, grey in ((0.29, (30, 30, 32)), (0.13, (130, 135, 140))):
                    rim = np.concatenate([np.zeros((14, 1)), CIRCLE * radius * s], 1) + hub
                    pixels = painter.camera.project(turn(rim, heading, at))[0]
                    canvas.polygon(pixels, grey, solid=radius > 0.2)
                continue
            size, place, colour = parts[k]
            faces = painter.cuboid(
                canvas, [v * s for v in size], turn(np.array([place]) * s, heading, at)[0].tolist(), heading, colour
            )
            for n, face in faces:
                if k == 2 and n != 2:  # sky in the glass
                    painter.patch(canvas, face, (0.12, 0.45, 0.8, 0.9), (150, 135, 118), 0.8)
                if k == 1 and n == 3:  # warning stripes on the counterweight
                    for u in (0.1, 0.4, 0.7):
                        painter.patch(canvas, face, (0.15, u, 0.45, u + 0.15), (40, 190, 235), 0.8)
        beacon = painter.camera.project(turn(np.array([[0.3, 2.16, -0.5]]) * s, heading, at))
        glow = 1.0 if math.sin(6.0 * t + self.start) > 0.3 else 0.45
        r = 0.09 * s * painter.camera.focal / float(beacon[1][0])
        canvas.polygon(CIRCLE * r + beacon[0][0], (20 * glow, 150 * glow, 255 * glow))

    def shadow(self, t: float) -> list[Floats]:
        at, heading, _ = self.pose(t)
        s = self.scale
        low = turn(CORNERS * (0.55 * s, 1.1 * s, 0.98 * s) + (0, 0, -0.2 * s), heading, at)
        roof = turn(CORNERS * (0.54 * s, 2.08 * s, 0.6 * s) * (1, 1, 1) + (0, 0, -0.15 * s), heading, at)
        mast = turn(CORNERS * (0.42 * s, 2.2 * s, 0.06 * s) + (0, 0, 0.78 * s), heading, at)
        return [low, roof[roof[:, 1] > 1], mast]


@dataclass(frozen=True)
class Clutter:
    """Something that is not truth: a cone, a barrel, a bollard, a pallet, a container."""

    kind: str
    at: tuple[float, float, float]
    size: tuple[float, float, float]
    heading: float
    colour: tuple[float, float, float]

    def draw(self, canvas: Canvas, painter: Painter) -> None:
        h = self.size[1]
        if self.kind in ("pallet", "container"):
            for k, face in painter.cuboid(canvas, self.size, self.at, self.heading, self.colour):
                shade = float(painter.light.shade(turn(NORMALS[k : k + 1], self.heading, (0, 0, 0)))[0])
                for v in np.arange(0.04, 0.96, 0.08 if self.kind == "container" else 0.17):
                    area = (0.03, v, 0.97, v + 0.035) if k in (2, 3) else (v, 0.03, v + 0.035, 0.97)
                    painter.patch(canvas, face, area, self.colour, shade * 0.8)
            return
        base = np.array([self.at, (self.at[0], self.at[1] + h, self.at[2])])
        p, depth = painter.camera.project(base)
        r = self.camera_radius(painter, depth) * ((1.0, 0.15) if self.kind == "cone" else (1.0, 1.0))
        for f0, f1, shade in ((-1.0, 1.0, 0.55), (-0.6, 0.75, 0.75), (-0.1, 0.55, 0.95)):
            side = 1.0 if painter.light.sun[0] > 0 else -1.0
            quad = np.array(
                [
                    p[0] + (f0 * side * r[0], 0),
                    p[0] + (f1 * side * r[0], 0),
                    p[1] + (f1 * side * r[1], 0),
                    p[1] + (f0 * side * r[1], 0),
                ]
            )
            canvas.polygon(quad, [c * shade for c in self.colour])
        for f in (0.35, 0.62):
            m, half = p[0] + (p[1] - p[0]) * f, r[0] + (r[1] - r[0]) * f
            rise = -0.1 * (p[0, 1] - p[1, 1])
            band = np.array([[-half, 0], [half, 0], [half, rise], [-half, rise]]) + m
            canvas.polygon(band, (205, 208, 210) if self.kind == "cone" else [c * 0.6 for c in self.colour], False)
        if self.kind == "barrel":
            canvas.polygon(CIRCLE * (r[1], r[1] * 0.35) + p[1], [c * 0.85 for c in self.colour])

    def camera_radius(self, painter: Painter, depth: Floats) -> Floats:
        """Radius in pixels at foot and top [2]."""
        return self.size[0] / 2 * painter.camera.focal / depth


def vary(rng: np.random.Generator, base: Colour, spread: float = 18.0) -> tuple[float, float, float]:
    b, g, r = np.clip(np.asarray(base, np.float64) + rng.normal(0, spread, 3) * 0.5 + rng.normal(0, spread), 8, 250)
    return float(b), float(g), float(r)


def noise_tile(rng: np.random.Generator, size: int, slope: float) -> NDArray[np.float32]:
    """Periodic texture [size, size] with a 1/f**slope spectrum, mean 0, standard deviation 1."""
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    f[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / f**slope
    spectrum[0, 0] = 0.0
    tile = np.fft.irfft2(spectrum, (size, size))
    return np.asarray(tile / tile.std(), np.float32)
