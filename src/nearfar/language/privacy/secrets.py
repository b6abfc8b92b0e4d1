"""Secrets and keys that are known by their form: tokens of well-known services, private keys, JWT, passwords in URLs.

Tokens without such a form (a bare row of letters and digits) are found by the name of the field before them only; see
`fields.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from nearfar.language.privacy.findings import Finding, Kind

_MARKS = (
    "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "AKIA", "ASIA", "ABIA", "ACCA", "xox",
    "xapp-", "AIza", "ya29.", "GOCSPX-", "_live_", "_test_", "whsec_", "hf_", "npm_", "pypi-", "dckr_pat_", "gsk_",
    "xai-", "SG.", "key-", ":AA", "shpat_", "shpca_", "shppa_", "shpss_", "dop_v1_", "AGE-SECRET-KEY-",
)  # fmt: skip
"""What each token below holds. To look for these costs a tenth of the rule itself."""
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"sk-[\w-]{16,}"  # OpenAI, Anthropic, OpenRouter and who took after them
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])"  # Amazon
    r"|xox[abeoprs]-[\w-]{10,}|xapp-\d-[\w-]{10,}"  # Slack
    r"|AIza[\w-]{35}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}"  # Google
    r"|[rs]k_(?:live|test)_\w{10,}|whsec_\w{16,}"  # Stripe
    r"|hf_[A-Za-z0-9]{20,}|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{20,}|dckr_pat_[\w-]{20,}|gsk_\w{20,}|xai-\w{20,}"
    r"|SG\.[\w-]{16,64}\.[\w-]{16,}|key-[0-9a-f]{32}(?![0-9a-f])"
    r"|\d{8,10}:AA[\w-]{33}(?![\w-])"  # Telegram
    r"|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}|dop_v1_[0-9a-f]{64}|AGE-SECRET-KEY-1[A-Z0-9]{50,}"
    r")"
)
_JWT = re.compile(r"(?<![\w-])eyJ[\w-]{8,}+\.[\w-]{8,}+(?:\.[\w-]{0,})?+")
_BEARER = re.compile(r"\b(?:bearer|basic|token)[ \t]{1,4}(?=[\w.~+/=-]{0,64}\d)([\w.~+/=-]{12,}+)", re.I)
_IN_URL = re.compile(r"://(?:[^\s/:@]{0,128}):([^\s/@]{1,256})@")
_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_PEM_END = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")


def secrets(text: str) -> Iterator[Finding]:
    """Secrets in folded text. A private key without its end is taken to reach to the end of the text."""
    if any(mark in text for mark in _MARKS):
        for found in _TOKEN.finditer(text):
            yield Finding(found.start(), found.end(), Kind.SECRET, 0.95)
    if "eyJ" in text:
        for found in _JWT.finditer(text):
            yield Finding(found.start(), found.end(), Kind.SECRET, 0.95)
    low = text.lower()
    if "bearer" in low or "basic" in low or "token" in low:
        for found in _BEARER.finditer(text):
            yield Finding(found.start(1), found.end(1), Kind.SECRET, 0.8)
    if "://" in text:
        for found in _IN_URL.finditer(text):
            if not _masked(found[1]):
                yield Finding(found.start(1), found.end(1), Kind.SECRET, 0.9)
    at = 0 if "-----BEGIN" in text else len(text)
    while (begin := _PEM.search(text, at)) is not None:
        end = _PEM_END.search(text, begin.end())
        at = end.end() if end else len(text)
        yield Finding(begin.start(), at, Kind.SECRET, 0.99)


def _masked(value: str) -> bool:
    """`***`, `$PASSWORD`, `{password}`, `<SECRET_1>`: somebody has taken the value out already."""
    return not any(map(str.isalnum, value)) or value[0] in "$<{%" or value[-1] in ">}"
