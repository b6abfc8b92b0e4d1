"""What the wording of an answer shows: repetition, refusal, hedging, a cut-off end, another language, an echo."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter

MOST_CHARACTERS = 20_000

_WORDS = re.compile(r"[^\W_]+(?:'[a-z]+)?")
_REFUSAL = re.compile(
    r"\bI(?:'m| am)? (?:cannot|can't|can ?not|won't|will not|unable to|not able to|sorry, but I (?:cannot|can't))\b"
    r"|\bI(?:'m| am) (?:sorry|afraid),? (?:but )?I\b"
    r"|\bas an? (?:AI|artificial intelligence|(?:large )?language model)\b"
    r"|\bI(?:'m| am) (?:just )?an? (?:AI|language model)\b|\bI must decline\b",
    re.IGNORECASE,
)
_UNKNOWING = re.compile(
    r"\bI (?:do not|don't|really don't) (?:know|have (?:enough|access|any information))\b"
    r"|\bI(?:'m| am) not (?:sure|certain)\b"
    r"|\b(?:not |im)possible to (?:determine|answer|say|know|calculate)\b"
    r"|\bcannot be (?:determined|answered|calculated)\b"
    r"|\b(?:not enough|insufficient) information\b|\bno solution\b|\bit is unclear\b",
    re.IGNORECASE,
)
_HEDGE = re.compile(
    r"\b(?:perhaps|maybe|probably|possibly|presumably|assum(?:e|es|ed|ing)|I think|I believe|it seems|might be|could be"
    r"|not explicitly|not specified|not stated|approximately|however|actually|wait|but since|must be a whole)\b",
    re.IGNORECASE,
)
_END = re.compile(r"(?:[.!?…)\]}\"'”’`*|:;>]|\d[\w%°]*|####.*)\s*$")
_OPEN_END = re.compile(r"(?:<<[^<>]*|[-+*/×=,(]|\b(?:and|or|the|of|to|is|a|an|in|for|with|so))\s*$")
_SCRIPTS = (
    "LATIN",
    "CYRILLIC",
    "GREEK",
    "ARABIC",
    "HEBREW",
    "DEVANAGARI",
    "THAI",
    "HANGUL",
    "HIRAGANA",
    "KATAKANA",
    "CJK",
)
_COMMON = {
    "en": "the of and to is that in for with you was are this have not",
    "de": "der die das und ist nicht ein eine zu den mit auf für sie wie",
    "fr": "le la les et est une des que pour dans qui pas sur avec vous",
    "es": "el los las y es una que por para con del como más pero su",
    "it": "il lo gli di e è una che per con non del sono come più",
    "pt": "o os as e é uma que por para com não do da como mais",
    "nl": "de het een en is van niet dat op te zijn voor met die je",
}
_SEEN_IN = {
    word: {name for name, words in _COMMON.items() if word in words.split()}
    for words in _COMMON.values()
    for word in words.split()
}


def words_of(text: str) -> list[str]:
    return _WORDS.findall(text[:MOST_CHARACTERS].casefold())


def repetition(text: str) -> dict[str, float]:
    """`repeated_share`: of the answer's runs of four words, those that stood before (0 to 1; degenerate text nears 1);
    `loop_share`: of the text's lines, those that repeat an earlier one of 10 characters or more."""
    words = words_of(text)
    runs = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    repeated = 1 - len(set(runs)) / len(runs) if runs else 0.0
    lines = Counter(line.strip() for line in text[:MOST_CHARACTERS].splitlines() if len(line.strip()) >= 10)
    total = sum(lines.values())
    return {"repeated_share": repeated, "loop_share": 1 - len(lines) / total if total else 0.0}


def refusal(text: str) -> dict[str, float]:
    """`refuses` (0 or 1, looked for in the first 300 characters, where refusals stand), `unknowing` (0 or 1, "I don't
    know", "not possible to determine"; its end counts too) and `hedges` (log of 1 + how often it hedges).

    The wordings are English. A refusal in another language is not seen here.
    """
    text = text[:MOST_CHARACTERS].replace("’", "'")
    return {
        "refuses": float(bool(_REFUSAL.search(text[:300]))),
        "unknowing": float(bool(_UNKNOWING.search(text))),
        "hedges": math.log1p(len(_HEDGE.findall(text))),
    }


def truncation(text: str, finish_reason: str) -> dict[str, float]:
    """`cut_by_length`: 1 when the service says `length`, NaN when it says nothing; `ends_open`: 1 when the text itself
    ends in the middle: an operator, an open bracket, a word such as `and`; 0.5 without any closing sign."""
    stripped = text.rstrip()
    if not stripped or _OPEN_END.search(stripped[-200:]) or stripped.count("```") % 2:
        ends_open = 1.0
    else:
        ends_open = 0.0 if _END.search(stripped[-200:]) else 0.5
    cut = math.nan if not finish_reason else float(finish_reason == "length")
    return {"cut_by_length": cut, "ends_open": ends_open}


def language(prompt: str, answer: str) -> dict[str, float]:
    """`other_language`: 1 when the answer is written in another script or, within Latin script, by its commonest words
    in another of seven European languages than the prompt; NaN when either is too short to tell.

    A prompt that asks for a translation is a false alarm; the weight has to know that.
    """
    mine, its = _script(prompt), _script(answer)
    if not mine or not its:
        return {"other_language": math.nan}
    if mine != its:
        return {"other_language": 1.0}
    one, two = _tongue(prompt), _tongue(answer)
    return {"other_language": math.nan if not one or not two else float(one != two)}


def _script(text: str) -> str:
    letters = [c for c in text[:2000] if c.isalpha()]
    if len(letters) < 10:
        return ""
    found = Counter(_script_of(c) for c in letters[:500])
    return found.most_common(1)[0][0]


def _script_of(character: str) -> str:
    if character.isascii():
        return "LATIN"
    name = unicodedata.name(character, "OTHER").partition(" ")[0]
    return {"HIRAGANA": "CJK", "KATAKANA": "CJK"}.get(name, name if name in _SCRIPTS else "OTHER")


def _tongue(text: str) -> str:
    votes: Counter[str] = Counter()
    for word in words_of(text[:4000]):
        for name in _SEEN_IN.get(word, ()):
            votes[name] += 1
    first = votes.most_common(2)
    if not first or first[0][1] < 3 or (len(first) > 1 and first[0][1] < 1.5 * first[1][1]):
        return ""
    return first[0][0]


def overlap(prompt: str, answer: str) -> dict[str, float]:
    """`echo_share`: of the answer's runs of four words, those that stand in the prompt (1: it only repeats the
    question); `covered_share`: of the prompt's words of four letters or more, those that the answer takes up."""
    asked, said = words_of(prompt), words_of(answer)
    runs = set(zip(asked, asked[1:], asked[2:], asked[3:], strict=False))
    mine = list(zip(said, said[1:], said[2:], said[3:], strict=False))
    echo = sum(run in runs for run in mine) / len(mine) if mine else 0.0
    theme = {word for word in asked if len(word) >= 4}
    covered = len(theme & set(said)) / len(theme) if theme else math.nan
    return {"echo_share": echo, "covered_share": covered}
