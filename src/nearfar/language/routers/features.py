"""A prompt as numbers: hashed word and character n-grams, and a fixed list of counts with names.

All in whole-array numpy over the bytes of the text. A polynomial hash modulo 2^64 is summed up along the text, so the
hash of any stretch is one difference times one inverse power (Karp and Rabin 1987); a text of 4,096 bytes is the
longest looked at, so time is bounded.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BITS = 17
"""Buckets of the n-grams: 2^17."""
HEAD, TAIL = 3072, 1024
"""Bytes looked at: the first and the last of the text, since a question stands at one end."""

_BASE = 0x9E3779B97F4A7C15
_MIX = np.uint64(0xD6E8FEB86659FD93)
_PAIR = np.uint64(0xA24BAED4963EE407)
_LONGEST = HEAD + TAIL


def _powers(base: int) -> NDArray[np.uint64]:
    steps = np.full(_LONGEST + 1, base, np.uint64)
    steps[0] = 1
    return np.cumprod(steps, dtype=np.uint64)


_POWER, _INVERSE = _powers(_BASE), _powers(pow(_BASE, -1, 1 << 64))
_LOWER = np.arange(256, dtype=np.uint8)
_LOWER[65:91] += 32
_CODE = _LOWER.astype(np.uint64) + np.uint64(1)
_WORD = np.zeros(256, np.int8)
_WORD[97:123] = _WORD[48:58] = _WORD[128:] = _WORD[39] = 1
_SIGN = (_WORD == 0) & (np.arange(256) > 32)
_LAST = np.ones(1, bool)
_LOGGED = (1.0 + np.log(np.maximum(np.arange(4 * _LONGEST), 1))).astype(np.float32)
_IS_DIGIT, _IS_CAPITAL = np.zeros(256, bool), np.zeros(256, bool)
_IS_DIGIT[48:58] = _IS_CAPITAL[65:91] = True
_SENTENCE_END = re.compile(rb"[.?!](?=[\x00- ]|\Z)")
_OPTION = re.compile(rb"\n[A-Z][.)]")
_DECIMAL = re.compile(rb"(?<=[0-9])\.(?=[0-9])")

GROUPS: dict[str, str] = {
    "number words": "one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred "
    "thousand million dozen dozens first second",
    "fractions": "half third thirds quarter quarters fourth fourths fifth fifths sixth eighth tenth fraction halves",
    "multiples": "twice thrice double doubles doubled triple tripled times multiplied quadruple",
    "comparisons": "more less fewer than older younger taller longer shorter greater larger",
    "what is left": "remaining rest left remain remains remainder over leftover",
    "each and every": "each per every apiece all both",
    "times of day and year": "hour hours minute minutes day days week weeks month months year years daily weekly "
    "monday tuesday wednesday thursday friday saturday sunday morning afternoon evening night weekend",
    "rates": "percent percentage discount interest tax profit increase increased decrease decreased raise tip rate "
    "ratio average speed mph",
    "conditions": "if when then until after before while but except unless however instead only",
    "totals": "total altogether combined together sum in",
    "money": "cost costs price spend spends spent pay paid pays buy buys bought sell sells sold earn earns earned "
    "money dollars dollar cents worth",
    "negations": "not no never none without nor cannot",
    "question words": "what which who why how where whose",
    "persons": "he she they his her their him them",
    "choices": "following true statement statements correct best likely",
    "code words": "function def return class import python code list string array java print program int integer",
    "mathematics words": "equation polynomial integral derivative matrix theorem prove graph vector prime modulo angle "
    "triangle probability",
}
"""Words that are counted together, by what the reasons call them."""
_COUNTS = (
    "length in bytes", "words", "sentences", "words a sentence", "numbers", "different numbers", "digits of a number",
    "dollar signs", "per cent signs", "slashes", "decimal points", "lines", "backslashes", "length of words",
    "capitalised words", "different words", "commas", "question marks", "brackets", "equals signs", "quotation marks",
    "underscores", "bars", "letters outside English", "lettered options", "long words", "numbers a sentence",
    "'how many'", "'how much'", "large numbers", "braces and semicolons", "it is very short",
)  # fmt: skip
NAMES: tuple[str, ...] = (*_COUNTS, *GROUPS)
"""What `Features.counts` holds, in its order."""
KINDS = ("a question with lettered options", "a question with figures", "an open question")
"""What a prompt looks like; counts are weighed separately for each, since a long sum is not a long letter."""


class Features(NamedTuple):
    buckets: NDArray[np.int64]
    """Distinct, rising, each in [0, 2^BITS)."""
    values: NDArray[np.float32]
    """1 + ln(count) of each, scaled to length 1 together."""
    counts: NDArray[np.float32]
    """len(NAMES) values, all finite; mostly ln(1 + count)."""
    kind: int
    """Place in KINDS."""


def _hash(text: str) -> int:
    value = 0
    for place, byte in enumerate(text.encode()):
        value += (byte + 1) * int(_POWER[place])
    value = value * int(_MIX) % (1 << 64)
    return value ^ (value >> 32)


_LISTED = sorted((_hash(word), group) for group, words in enumerate(GROUPS.values()) for word in words.split())
_KNOWN = np.array([value for value, _ in _LISTED], np.uint64)
_GROUP = np.array([group for _, group in _LISTED], np.int64)


def _pair(first: str, second: str) -> np.uint64:
    return np.uint64((_hash(first) * int(_PAIR) + _hash(second)) % (1 << 64))


_HOW_MANY, _HOW_MUCH = _pair("how", "many"), _pair("how", "much")


def clip(text: str) -> bytes:
    """The bytes that are looked at; any text, lone surrogates too."""
    if len(text) > _LONGEST:  # before encoding, so that a megabyte costs no more
        text = text[:HEAD] + text[-TAIL:]
    data = text.encode("utf-8", "replace")
    return data if len(data) <= _LONGEST else data[:HEAD] + data[-TAIL:]


def features(text: str, characters: bool = True) -> Features:
    """The features of one text. `characters`: also n-grams of four bytes within and across words."""
    data = clip(text)
    raw = np.frombuffer(data, np.uint8)
    size = len(raw)
    low = _LOWER[raw]
    prefix = np.zeros(size + 1, np.uint64)
    np.cumsum(_CODE[raw] * _POWER[:size], out=prefix[1:])
    edges = np.zeros(size + 2, np.int8)
    edges[1:-1] = _WORD[low]
    turns = (edges[1:] != edges[:-1]).nonzero()[0]
    starts, ends = turns[::2], turns[1::2]
    words = _stretch(prefix, starts, ends)
    signs = _SIGN[low].nonzero()[0]
    # words and signs in their order
    all_starts = np.concatenate((starts, signs))
    order = all_starts.argsort(kind="stable")
    tokens = np.concatenate((words, _stretch(prefix, signs, signs + 1)))[order]
    pairs = tokens[:-1] * _PAIR + tokens[1:]
    parts = [tokens * _MIX, pairs * _MIX]
    if characters and size >= 4:
        four = (prefix[4:] - prefix[:-4]) * _INVERSE[: size - 3] * _PAIR
        parts.append((four ^ (four >> np.uint64(29))) * _MIX)
    hashed = (np.concatenate(parts) >> np.uint64(64 - BITS)).astype(np.int64)
    hashed.sort()
    ends_of = np.concatenate((hashed[1:] != hashed[:-1], _LAST[: len(hashed)])).nonzero()[0]
    buckets = hashed[ends_of]
    times = ends_of + 1
    times[1:] -= ends_of[:-1] + 1
    values = _LOGGED.take(times)
    if len(values):
        values /= math.sqrt(float(values @ values))
    counts = _counts(data, raw, low, starts, ends, words, pairs)
    return Features(buckets, values, counts, _kind(counts))


_OPTIONS, _NUMBERS = _COUNTS.index("lettered options"), _COUNTS.index("numbers")


def _kind(counts: NDArray[np.float32]) -> int:
    if counts[_OPTIONS] > 1.0:  # two or more
        return 0
    return 1 if counts[_NUMBERS] > 1.0 else 2


def _stretch(prefix: NDArray[np.uint64], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.uint64]:
    value = (prefix[ends] - prefix[starts]) * _INVERSE[starts] * _MIX
    return value ^ (value >> np.uint64(32))


def _counts(
    data: bytes,
    raw: NDArray[np.uint8],
    low: NDArray[np.uint8],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    words: NDArray[np.uint64],
    pairs: NDArray[np.uint64],
) -> NDArray[np.float32]:
    of = np.bincount(low, minlength=256).tolist()
    size, count = len(low), len(words)
    lengths = ends - starts
    numeric = _IS_DIGIT[low[starts]] & _IS_DIGIT[low[ends - 1]]
    digits = lengths[numeric]
    numbers = len(digits)
    sentences = len(_SENTENCE_END.findall(data))
    options = len(_OPTION.findall(data))
    decimals = len(_DECIMAL.findall(data)) if of[46] and numbers else 0
    where = np.minimum(_KNOWN.searchsorted(words), len(_KNOWN) - 1)
    grouped = np.bincount(_GROUP[where[_KNOWN[where] == words]], minlength=len(GROUPS))
    capitals = int(np.count_nonzero(_IS_CAPITAL[raw[starts]]))
    logged = np.log1p(
        np.array(
            [
                size, count, sentences, numbers, len(set(words[numeric].tolist())), of[36], of[37], of[47], decimals,
                of[10], of[92], capitals, of[44], of[63], of[40] + of[91], of[61], of[34], of[95], of[124],
                sum(of[128:]), options, int(np.count_nonzero(lengths > 8)), int(np.count_nonzero(pairs == _HOW_MANY)),
                int(np.count_nonzero(pairs == _HOW_MUCH)), int(np.count_nonzero(digits > 2)), of[123] + of[59],
                *grouped.tolist(),
            ],
            np.float32,
        )
    )  # fmt: skip
    v = logged.tolist()
    per = sentences + 1
    return np.array(
        [
            v[0], v[1], v[2], min(count / per / 20, 5.0), v[3], v[4], min(int(digits.max() if numbers else 0), 12) / 5,
            v[5], v[6], v[7], v[8], v[9], v[10], min(int(lengths.sum()) / count if count else 0.0, 20.0), v[11],
            len(set(words.tolist())) / (count + 1), v[12], v[13], v[14], v[15], v[16], v[17], v[18], v[19], v[20],
            v[21], min(numbers / per, 8.0), v[22], v[23], v[24], v[25], float(count < 8), *v[26:],
        ],
        np.float32,
    )  # fmt: skip
