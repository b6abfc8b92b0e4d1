"""Pictures of a comparison, as PNG and SVG. Needs the extra `plots` (matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nearfar.errors import RuntimeUnavailable
from nearfar.simulate.measures import BUCKETS, Summary

COLOURS = {
    "random": "#999999",
    "round-robin": "#56b4e9",
    "least-loaded": "#009e73",
    "nearest": "#cc79a7",
    "weighted": "#e69f00",
    "predictive": "#d55e00",
    "clairvoyant": "#000000",
}
"""One colour a policy in every picture; told apart also by those who do not see all colours (Okabe and Ito)."""


def need_matplotlib() -> Any:
    """matplotlib, drawing into files only. Raises `RuntimeUnavailable` when the extra is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise RuntimeUnavailable(
            "Plots need matplotlib, which is not installed.", "Type: pip install 'nearfar[plots]'"
        ) from None
    matplotlib.use("Agg")
    return matplotlib


def draw(summaries: Sequence[Summary], folder: Path) -> list[Path]:
    """Write `SCENARIO-violations` and `SCENARIO-overview` as .png and .svg; the files that were written.

    Raises `RuntimeUnavailable` without matplotlib, `OSError` when the folder cannot be written.
    """
    need_matplotlib()
    if not summaries:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, figure in (("violations", _over_time(summaries)), ("overview", _overview(summaries))):
        for suffix in ("png", "svg"):
            path = folder / f"{summaries[0].scenario}-{name}.{suffix}"
            figure.savefig(path, dpi=120)
            written.append(path)
    return written


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _colour(policy: str) -> str:
    return COLOURS.get(policy, "#0072b2")


def _over_time(summaries: Sequence[Summary]) -> Any:
    figure = _figure(9, 6)
    above, below = figure.subplots(2, 1, sharex=True)
    for s in summaries:
        width = s.asked_s / BUCKETS
        moments = [(i + 0.5) * width for i in range(BUCKETS)]
        shares = [100 * bad / sent if sent else float("nan")
                  for bad, sent in zip(s.series["violations"], s.series["sent"], strict=True)]  # fmt: skip
        thick = 2.0 if s.policy in ("predictive", "clairvoyant") else 1.0
        above.plot(moments, shares, label=s.policy, color=_colour(s.policy), linewidth=thick)
        below.plot(moments, s.series["moves"], color=_colour(s.policy), linewidth=thick)
    above.set_ylabel("frames past their deadline, %")
    above.set_ylim(bottom=-2)
    above.set_title(f"{summaries[0].scenario}: violations and moves over time", loc="left")
    figure.legend(loc="outside right upper", frameon=False)
    below.set_ylabel("moves per interval")
    below.set_yscale("symlog", linthresh=10)
    below.set_ylim(bottom=0)
    below.set_xlabel("virtual time, s")
    return figure


def _overview(summaries: Sequence[Summary]) -> Any:
    figure = _figure(11, 4)
    rates, latency, moves = figure.subplots(1, 3)
    names = [s.policy for s in summaries]
    colours = [_colour(name) for name in names]
    for axes, values, title, form in (
        (rates, [100 * s.violation_rate for s in summaries], "frames past their deadline, %", "{:.2f}"),
        (moves, [float(s.moves) for s in summaries], "moves of streams", "{:.0f}"),
    ):
        bars = axes.barh(names, values, color=colours)
        axes.bar_label(bars, labels=[form.format(v) for v in values], padding=3, fontsize=8)
        axes.set_title(title, fontsize=10, loc="left")
        axes.invert_yaxis()
        axes.margins(x=0.25)
    for s in summaries:
        total = s.series["latency_at_most"][-1]
        if total:
            share = [n / total for n in s.series["latency_at_most"]]
            latency.plot(s.series["latency_bounds_ms"], share, color=_colour(s.policy))
    latency.set_xscale("log")
    latency.set_xlim(5, 1000)
    latency.set_title("share of answers within ms", fontsize=10, loc="left")
    figure.suptitle(summaries[0].scenario, x=0.01, ha="left")
    return figure
