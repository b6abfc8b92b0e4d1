"""Lines and polygons as a user writes them, in pixels or in shares of the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from nearfar.errors import InputError

MOST_POINTS = 64
LONGEST_NAME = 40
LARGEST = 1e6
Point = tuple[float, float]


class Area(msgspec.Struct, frozen=True):
    """A line (2 points) or a polygon (3 points and more), x to the right, y down."""

    name: str
    points: tuple[Point, ...]
    shares: bool
    """Points are shares of the picture's width and height, 0 to 1; else pixels."""

    def scaled(self, width: int, height: int) -> tuple[Point, ...]:
        """The points in pixels of a picture of this size."""
        return tuple((x * width, y * height) for x, y in self.points) if self.shares else self.points


def parse_line(text: str, default_name: str = "line") -> Area:
    """`x1,y1,x2,y2[:name]`. Raises `InputError` that says what is wrong.

    >>> parse_line("0,0.5,1,0.5:gate")
    Area(name='gate', points=((0.0, 0.5), (1.0, 0.5)), shares=True)
    """
    area = _parse(text, "--line", "x1,y1,x2,y2[:name]", default_name)
    if len(area.points) != 2:
        raise _wrong("--line", text, f"a line has 2 points, not {len(area.points)}", "x1,y1,x2,y2[:name]")
    if area.points[0] == area.points[1]:
        raise _wrong("--line", text, "both ends are the same point", "x1,y1,x2,y2[:name]")
    return area


def parse_zone(text: str, default_name: str = "zone") -> Area:
    """`x1,y1,x2,y2,x3,y3[,...][:name]`, at most `MOST_POINTS` points. Raises `InputError` that says what is wrong."""
    form = "x1,y1,x2,y2,x3,y3[,...][:name]"
    area = _parse(text, "--zone", form, default_name)
    if not 3 <= len(area.points) <= MOST_POINTS:
        raise _wrong("--zone", text, f"a zone has 3 to {MOST_POINTS} points, not {len(area.points)}", form)
    if crosses_itself(area.points):
        raise _wrong("--zone", text, "its edges cross or touch; go round the zone in order", form)
    return area


def parse_areas(lines: Sequence[str], zones: Sequence[str]) -> tuple[tuple[Area, ...], tuple[Area, ...]]:
    """All of a command; those without a name are called line-1, zone-2, ... Raises `InputError`, also for names that
    stand twice."""
    parsed = tuple(parse_line(text, f"line-{n}") for n, text in enumerate(lines, 1))
    polygons = tuple(parse_zone(text, f"zone-{n}") for n, text in enumerate(zones, 1))
    for kind, areas in (("line", parsed), ("zone", polygons)):
        names = [area.name for area in areas]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"Two of --{kind} are called {name!r}.", "Give each a name of its own.")
    return parsed, polygons


def crosses_itself(points: Sequence[Point]) -> bool:
    """Whether a closed polygon's edges meet anywhere but at the corner of two neighbours, or it has no area."""
    n = len(points)
    edges = [(points[i], points[(i + 1) % n]) for i in range(n)]
    for i in range(n):
        (a, b), (c, d) = edges[i], edges[(i + 1) % n]
        if a == b or (_turn(a, b, d) == 0 and _between(a, b, d, c)):
            return True  # a corner that folds back onto its edge
        for j in range(i + 2, n):
            if (i, j) != (0, n - 1) and _meet(*edges[i], *edges[j]):
                return True
    return False


def inside(point: Point, polygon: Sequence[Point]) -> bool:
    """Even-odd rule; points on an edge belong to one side of it."""
    x, y = point
    odd = False
    for i in range(len(polygon)):
        (x1, y1), (x2, y2) = polygon[i - 1], polygon[i]
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) / (y2 - y1) * (x2 - x1):
            odd = not odd
    return odd


def _parse(text: str, flag: str, form: str, default_name: str) -> Area:
    numbers, colon, name = text.partition(":")
    name = name.strip() if colon else default_name
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise _wrong(flag, text, f"a name has 1 to {LONGEST_NAME} printable letters", form)
    values = []
    for word in numbers.split(","):
        try:
            value = float(word)
        except ValueError:
            raise _wrong(flag, text, f"{word.strip()!r} is no number", form) from None
        if not math.isfinite(value) or not 0 <= value <= LARGEST:
            raise _wrong(flag, text, f"{word.strip()} does not lie in a picture", form)
        values.append(value)
    if len(values) % 2:
        raise _wrong(flag, text, f"{len(values)} numbers make no pairs of x and y", form)
    shares = max(values) <= 1
    if not shares and any(0 < value < 1 for value in values):
        raise _wrong(flag, text, "shares (0 to 1) and pixels are mixed", form)
    return Area(name, tuple(zip(values[::2], values[1::2], strict=True)), shares)


def _wrong(flag: str, text: str, why: str, form: str) -> InputError:
    return InputError(f"{flag} {text!r}: {why}.", f"Write {form}, in pixels or all in shares from 0 to 1.")


def _turn(a: Point, b: Point, c: Point) -> float:
    """More than 0 when c lies to the right of the way from a to b, as seen on the screen."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _between(a: Point, b: Point, c: Point, corner: Point) -> bool:
    """Whether from the corner b the way on to c goes back towards a."""
    return (a[0] - corner[0]) * (c[0] - corner[0]) + (a[1] - corner[1]) * (c[1] - corner[1]) > 0


def _meet(a: Point, b: Point, c: Point, d: Point) -> bool:
    t1, t2, t3, t4 = _turn(a, b, c), _turn(a, b, d), _turn(c, d, a), _turn(c, d, b)
    if ((t1 > 0) != (t2 > 0)) and ((t3 > 0) != (t4 > 0)) and t1 and t2 and t3 and t4:
        return True
    return any(
        t == 0 and min(p[0], q[0]) <= r[0] <= max(p[0], q[0]) and min(p[1], q[1]) <= r[1] <= max(p[1], q[1])
        for t, p, q, r in ((t1, a, b, c), (t2, a, b, d), (t3, c, d, a), (t4, c, d, b))
    )
