"""A latency histogram with bounded relative error, as HDR histograms have: two significant digits over 1 us to 100 s.

Buckets are logarithmic with `SUB` steps per power of two (relative error at most 1/SUB). A histogram is a plain mapping
bucket -> count, so that it adds, subtracts, travels and prints as Prometheus buckets without a library.
Source of the idea: G. Tene, HdrHistogram (log-linear buckets).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

SUB = 32
_STEPS = 2 * SUB
_LEAST = 1e-3  # milliseconds: everything below is bucket 0
_MOST = 1e5


def bucket_of(value_ms: float) -> int:
    """The bucket of a value in milliseconds; NaN and negatives count as 0."""
    if not value_ms > _LEAST:
        return 0
    mantissa, exponent = math.frexp((value_ms if value_ms < _MOST else _MOST) / _LEAST)  # 0.5 <= mantissa < 1
    return exponent * SUB + int(mantissa * _STEPS) - _STEPS + 1


def upper_bound(bucket: int) -> float:
    """The largest value in milliseconds that belongs to the bucket.

    >>> all(v <= upper_bound(bucket_of(v)) <= v * 1.04 for v in (0.01, 0.5, 3.3, 250.0))
    True
    """
    if bucket <= 0:
        return _LEAST
    exponent, step = divmod(bucket - 1, SUB)
    return float(_LEAST * 2.0**exponent * (1 + (step + 1) / SUB))


class Histogram:
    """Counts by bucket; `sum` keeps the exact mean."""

    __slots__ = ("counts", "sum", "total")

    def __init__(self, counts: Mapping[int, int] | None = None, total_sum: float = 0.0) -> None:
        self.counts: dict[int, int] = dict(counts or {})
        self.total = sum(self.counts.values())
        self.sum = total_sum

    def add(self, value_ms: float) -> None:
        bucket = bucket_of(value_ms)
        counts = self.counts
        counts[bucket] = counts.get(bucket, 0) + 1
        self.total += 1
        if value_ms > 0:
            self.sum += value_ms

    def merge(self, other: Histogram) -> None:
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count
        self.total += other.total
        self.sum += other.sum

    def quantile(self, q: float) -> float:
        """The value in milliseconds below which a share q of what was added lies; NaN when nothing was.

        >>> h = Histogram(); [h.add(v) for v in range(1, 101)] and None
        >>> 50 <= h.quantile(0.5) <= 52
        True
        """
        if not self.total:
            return math.nan
        rank = max(1, math.ceil(q * self.total))
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                return upper_bound(bucket)
        return math.nan

    def mean(self) -> float:
        return self.sum / self.total if self.total else math.nan

    def at_most(self, bounds: Iterable[float]) -> list[int]:
        """Cumulative counts for the given upper bounds in milliseconds (Prometheus' `le`)."""
        ordered = sorted(self.counts.items())
        return [sum(n for b, n in ordered if upper_bound(b) <= bound * (1 + 1e-9)) for bound in bounds]
