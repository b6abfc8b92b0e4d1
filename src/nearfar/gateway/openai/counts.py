"""What a gateway counts of language calls, for `/metrics`."""

from __future__ import annotations

from collections import Counter

from nearfar.language.call import About
from nearfar.types.histogram import Histogram


class LanguageCounts:
    """Used on the gateway's event loop only."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()
        """(model, where, `ok` or error code) -> requests; `where` is "" for those that failed."""
        self.tokens: Counter[tuple[str, str, str]] = Counter()
        """(model, where, `in` or `out`) -> tokens."""
        self.first: dict[tuple[str, str], Histogram] = {}
        """(model, where) -> milliseconds to the first token of streamed answers."""
        self.cost: Counter[tuple[str, str]] = Counter()
        """(model, currency) -> what its answers cost."""

    def answered(self, about: About) -> None:
        model, where = about.model, about.where
        self.requests[(model, where, "ok")] += 1
        self.tokens[(model, where, "in")] += about.tokens_in
        self.tokens[(model, where, "out")] += about.tokens_out
        if about.first_token_ms is not None:
            histogram = self.first.get((model, where))
            if histogram is None:
                histogram = self.first[(model, where)] = Histogram()
            histogram.add(about.first_token_ms)
        if about.cost:
            self.cost[(model, about.currency)] += about.cost  # type: ignore[assignment]  # a Counter adds floats too

    def failed(self, model: str, code: str) -> None:
        self.requests[(model, "", code)] += 1
