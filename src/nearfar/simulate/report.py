"""Summaries as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nearfar.simulate.measures import Summary, as_json

if TYPE_CHECKING:
    from rich.table import Table

BOUND = "clairvoyant"
PRESENT = "omniscient"
OURS = "predictive"


def ratios(summaries: Sequence[Summary]) -> dict[str, Any]:
    """Violations of `predictive` over those of the best baseline, and over the clairvoyant's.

    A ratio is None when its part is missing, or when it would divide by zero violations: then the counts say more.
    """
    by_name = {summary.policy: summary for summary in summaries}
    ours, bound = by_name.get(OURS), by_name.get(BOUND)
    others = [s for s in summaries if s.policy not in (OURS, BOUND, PRESENT)]
    best = min(others, key=lambda s: s.violation_rate, default=None)
    return {
        "best_baseline": best.policy if best else None,
        "of_best_baseline": _ratio(ours, best),
        "of_clairvoyant": _ratio(ours, bound),
        "of_omniscient": _ratio(ours, by_name.get(PRESENT)),
        "violations": {s.policy: s.late + s.lost for s in summaries},
    }


def _ratio(ours: Summary | None, other: Summary | None) -> float | None:
    if ours is None or other is None or not other.violation_rate:
        return None
    return round(ours.violation_rate / other.violation_rate, 3)


def json_of(summaries: Sequence[Summary], assumptions: Sequence[str] = ()) -> dict[str, Any]:
    """Everything, with the time series, as plain values."""
    return {
        "policies": [as_json(summary, series=True) for summary in summaries],
        "ratios": ratios(summaries),
        "assumptions": list(assumptions),
        "complete": all(summary.complete for summary in summaries),
    }


def table(summaries: Sequence[Summary], title: str, wide: bool = False) -> Table:
    """A rich table with one row a policy; `wide` adds what needs more than 80 columns."""
    from rich.table import Table

    shown = Table(title=title, title_justify="left", box=None, pad_edge=False)
    more = ("unprovoked", "balance", "busiest", "energy") if wide else ()
    for name in ("policy", "violations", "late", "lost", "p50 ms", "p99 ms", "moves", "flaps", *more):
        shown.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    for s in summaries:
        cells = [
            s.policy + ("" if s.complete else " *"), f"{s.violation_rate:.2%}", f"{s.late}", f"{s.lost}",
            _number(s.latency_ms["p50"]), _number(s.latency_ms["p99"]), f"{s.moves}", f"{s.flaps}",
        ]  # fmt: skip
        if wide:
            cells += [f"{s.unprovoked_moves}", _number(s.balance, 2), f"{s.busiest:.0%}", energy(s)]
        shown.add_row(*cells)
    return shown


def notes(summaries: Sequence[Summary]) -> list[str]:
    """What the table has no room for: how many frames, which weights, what was interrupted."""
    told = []
    if summaries:
        told.append(f"{summaries[0].frames} frames each, {summaries[0].true_changes} true changes")
    for s in summaries:
        if s.options:
            told.append(f"{s.policy}: {', '.join(f'{name} {value:g}' for name, value in s.options.items())}")
        if not s.complete:
            told.append(f"* {s.policy} was interrupted after {s.seconds:.0f} of {s.asked_s:.0f} virtual seconds")
    return told


def energy(summary: Summary) -> str:
    """Joules a frame over what is known, or why there is no figure."""
    if summary.energy_j is None:
        return "unavailable"
    return f"{summary.energy_j:.0f} J ({summary.energy_covered:.0%} known)"


def verdict(summaries: Sequence[Summary]) -> str:
    """One sentence: where predictive stands beside the best baseline and the bound; empty when it was not played."""
    found = ratios(summaries)
    names = {s.policy: s for s in summaries}
    ours = names.get(OURS)
    if ours is None or len(summaries) < 2:
        return ""
    parts = []
    best = names.get(found["best_baseline"] or "")
    if best is not None:
        parts.append(f"{best.violation_rate:.2%} of the best baseline ({best.policy})")
    if PRESENT in names:
        parts.append(f"{names[PRESENT].violation_rate:.2%} of the bound that knows the present")
    if BOUND in names:
        parts.append(f"{names[BOUND].violation_rate:.2%} of the clairvoyant bound")
    return f"predictive breaks the deadline of {ours.violation_rate:.2%} of the frames, against {' and '.join(parts)}."


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
