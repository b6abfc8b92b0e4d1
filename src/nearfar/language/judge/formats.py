"""Whether an answer has the form that was asked for: JSON, a JSON schema, one letter, yes or no, a list, code.

A form that the request states (`response_format`, `json_schema`) is certain; one that is read out of the prompt's
English words is a guess, and said to be one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from nearfar.language.answer import Answer
from nearfar.language.judge.schema import misfit
from nearfar.language.prompt import Asked

_JSON = re.compile(r"\b(?:in|as|valid|return|output|only|a)\s+(?:\w+\s+)?JSON\b")
_LETTER = re.compile(
    r"\b(?:only|just|single|with) (?:with )?(?:the |a |one )?(?:single )?(?:capital )?letter\b", re.IGNORECASE
)
_CHOICES = (re.compile(r"^[ \t]*\(?A[.):]", re.MULTILINE), re.compile(r"^[ \t]*\(?B[.):]", re.MULTILINE))
_ANSWER = re.compile(r"\banswer:?$", re.IGNORECASE)
_YES_NO = re.compile(r"\b(?:answer|reply|respond)\b[^.\n]{0,40}\byes\b[^.\n]{0,10}\bno\b", re.IGNORECASE)
_LIST = re.compile(
    r"\b(?:bullet(?:ed)?(?: points?| list)?|numbered list|as a list|in a list|make a list|list of \d+|list \d+)\b", re.I
)
_CODE = re.compile(
    r"\b(?:write|implement|create|complete|give me)\b[^.\n]{0,60}"
    r"\b(?:function|program|script|code|class|SQL|query|regex)\b",
    re.IGNORECASE,
)
_FENCE = re.compile(r"```[\w+-]*\n(.*?)```", re.DOTALL)
_ITEM = re.compile(r"^\s*(?:[-*•+]|\(?\d{1,3}[.)])\s+\S", re.MULTILINE)
_CODE_LINE = re.compile(
    r"^\s*(?:def |class |import |from \w+ import|return\b|for \w|while |if .*[:{]$|#include|function |const |let |var "
    r"|public |SELECT |INSERT |CREATE |fn |func |package |<\w+|\w[\w.\[\]]* ?[-+*/]?= ?\S|}\s*$)",
    re.MULTILINE | re.IGNORECASE,
)


class Form(msgspec.Struct, frozen=True):
    """One form that was asked for and whether the answer has it."""

    name: str
    """`schema`, `json`, `letter`, `yes-no`, `list`, `code` or `tools`"""
    fulfilled: bool
    certain: bool
    """The request states it; else it was read out of the prompt's words."""
    reason: str = ""
    """What is wrong; empty when nothing is."""


def forms(asked: Asked, answer: Answer) -> tuple[Form, ...]:
    """Every form that was asked for; empty when none was. An answer that calls a tool owes no text."""
    if answer.calls:
        unknown = [name for name in answer.calls if name not in asked.tools]
        reason = f"calls {unknown[0][:40]!r}, which was not offered" if unknown else ""
        return (Form("tools", not unknown, True, reason),)
    text = answer.text.strip()
    if asked.wants_json:
        return (_json(text, asked.schema),)
    wish = asked.prompt[-4000:]
    if _JSON.search(wish):
        whole, _ = _decoded(text)
        fenced = whole or any(_decoded(block.strip())[0] for block in _FENCE.findall(text))
        return (Form("json", fenced, False, "" if fenced else "no JSON in it"),)
    found = []
    choices = _ANSWER.search(wish.rstrip()[-20:]) and all(choice.search(wish) for choice in _CHOICES)
    if choices or _LETTER.search(wish):
        good = bool(re.fullmatch(r"(?:[^\n]{0,40}\b)?\(?[A-Ja-j]\)?[.:)]?(?:\s[^\n]{0,200})?", text))
        found.append(Form("letter", good, False, "" if good else "does not begin with one letter"))
    if _YES_NO.search(wish):
        good = bool(re.match(r"\W*(?:yes|no)\b", text, re.IGNORECASE))
        found.append(Form("yes-no", good, False, "" if good else "begins with neither yes nor no"))
    if _LIST.search(wish):
        items = len(_ITEM.findall(text))
        good = items >= 2 or text.count(",") >= 2
        found.append(Form("list", good, False, "" if good else f"{items} items"))
    if _CODE.search(wish):
        good = bool(_FENCE.search(text)) or len(_CODE_LINE.findall(text)) >= 2
        found.append(Form("code", good, False, "" if good else "no code in it"))
    return tuple(found)


def _json(text: str, schema: Mapping[str, Any] | None) -> Form:
    """Whole and bare: whoever states `response_format` hands the text to a parser."""
    parsed, value = _decoded(text)
    if not parsed:
        return Form("json" if schema is None else "schema", False, True, "it is not JSON")
    if schema is None:
        return Form("json", True, True)
    reason = misfit(value, schema)
    return Form("schema", not reason, True, reason)


def _decoded(text: str) -> tuple[bool, Any]:
    if text[:1] not in '{["-0123456789tfn' or not text:
        return False, None
    try:
        return True, msgspec.json.decode(text.encode("utf-8", "surrogatepass"))
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return False, None


def format_features(found: tuple[Form, ...]) -> dict[str, float]:
    """`form_kept`: share of the asked forms that the answer has; NaN when none was asked for."""
    return {"form_kept": sum(form.fulfilled for form in found) / len(found) if found else float("nan")}
