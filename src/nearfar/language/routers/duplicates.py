"""Prompts that are nearly the same, so that none of them is trained on while another is scored."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

ALIKE = 0.5
"""Share of common word triples (Jaccard) from which two prompts count as one."""
LONG_LINE = 100
"""Characters of a line, such as a passage that questions are about, whose second appearance ties two prompts."""
_COMMON = 50
"""A triple or line in more prompts than this is boilerplate and ties nothing."""
_FEWEST = 3


def near_duplicates(prompts: Sequence[str]) -> list[int]:
    """For each prompt, the number of its group, which is the place of the group's first prompt.

    Equal letters and digits, a long line in common, or half of the rarer word triples in common; and whatever is tied
    to the same third prompt.

    >>> near_duplicates(["What is a fridge?", "Who?", "what is a  FRIDGE"])
    [0, 1, 0]
    """
    parent = list(range(len(prompts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def tie(i: int, j: int) -> None:
        first, second = sorted((root(i), root(j)))
        parent[second] = first

    plain = [_plain(prompt) for prompt in prompts]
    lines: defaultdict[str, list[int]] = defaultdict(list)
    first: dict[str, int] = {}
    for i, prompt in enumerate(prompts):
        tie(first.setdefault(plain[i], i), i)
        for line in {_plain(part) for part in prompt.split("\n")}:
            if len(line) >= LONG_LINE:
                lines[line].append(i)
    for holders in lines.values():
        if len(holders) <= _COMMON:
            for other in holders[1:]:
                tie(holders[0], other)
    triples = [_triples(text) for text in plain]
    spread = Counter(triple for own in triples for triple in own)
    holders_of: defaultdict[str, list[int]] = defaultdict(list)
    for i, all_own in enumerate(triples):
        own = [triple for triple in all_own if spread[triple] <= _COMMON]
        triples[i] = set(own)
        shared = Counter(j for triple in own for j in holders_of[triple])
        for j, count in shared.items():
            if count >= _FEWEST and count >= ALIKE * (len(own) + len(triples[j]) - count):
                tie(i, j)
        for triple in own:
            holders_of[triple].append(i)
    return [root(i) for i in range(len(prompts))]


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _triples(plain: str) -> set[str]:
    words = plain.split()
    return {" ".join(words[i : i + 3]) for i in range(len(words) - 2)}
