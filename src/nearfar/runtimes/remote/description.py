"""What a far end is: the small TOML file that stands for it in the store, and the key that never stands there.

format = "nearfar-far"                      # always; it is how the file is recognised
base_url = "https://api.example.com/v1"     # what /chat/completions is added to
model = "large-1"                           # the far end's own name of the model
price_in = 2.5                              # per million tokens of prompt, in `currency`
price_out = 10.0                            # per million tokens of answer
currency = "USD"
key_env = "EXAMPLE_API_KEY"                 # the environment variable that holds the key; or
key_file = ""                               # a file that holds it; neither: a far end without a key
key_header = "authorization"                # where the key goes; there as "Bearer KEY", elsewhere as it is
timeout_s = 60.0                            # seconds of silence after which an attempt is given up
max_retries = 2                             # attempts after the first
context = 128000                            # tokens of prompt and answer together
slots = 16                                  # calls at the same time
max_answer = 67108864                       # bytes of one answer; more is refused
stream_usage = true                         # it understands stream_options.include_usage
insecure = false                            # allow http:// beyond this machine
ca_file = ""                                # PEM file of an authority of one's own
proxy = ""                                  # http:// proxy; the environment's is not looked at

[headers]                                   # more headers of every request; no secrets, the file is not one
openai-organization = "org-1"
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from nearfar.errors import ModelFileError, RuntimeUnavailable
from nearfar.runtimes.modelfile import FAR_MARK

FORMAT = FAR_MARK.decode()
TYPICAL = (500, 250)
"""Tokens in and out of a call that nothing is known of, for its expected price."""
_LONGEST_FILE = 1 << 16
_HEADER = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
"""A header's name (RFC 9110, 5.6.2)."""
_OURS = frozenset({"host", "content-length", "transfer-encoding", "connection", "content-type", "accept",
                   "accept-encoding", "idempotency-key", "user-agent"})  # fmt: skip
_SECRET = re.compile(r"(?i)authorization|api-?key|cookie|token|secret|password")

Text = Annotated[str, Meta(max_length=500)]
Price = Annotated[float, Meta(ge=0, le=1e9)]


class FarEnd(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A far end; the fields stand at the top of this file. `url` is checked by `check`."""

    format: str = FORMAT
    base_url: Annotated[str, Meta(min_length=1, max_length=500)]
    model: Annotated[str, Meta(min_length=1, max_length=200)]
    price_in: Price
    price_out: Price
    currency: Annotated[str, Meta(pattern=r"^[A-Z]{3}$")] = "USD"
    key_env: Annotated[str, Meta(pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")] = ""
    key_file: Text = ""
    key_header: Annotated[str, Meta(pattern=rf"^{_HEADER}$", max_length=64)] = "authorization"
    timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 60.0
    max_retries: Annotated[int, Meta(ge=0, le=10)] = 2
    context: Annotated[int, Meta(ge=1, le=1 << 24)] = 128_000
    slots: Annotated[int, Meta(ge=1, le=256)] = 16
    max_answer: Annotated[int, Meta(ge=1024, le=1 << 31)] = 64 * 1024 * 1024
    stream_usage: bool = True
    insecure: bool = False
    ca_file: Text = ""
    proxy: Text = ""
    headers: Mapping[str, Text] = {}

    @property
    def host(self) -> str:
        """Where the data goes, for people: host and port."""
        return urlsplit(self.base_url).netloc

    def expected_price(self) -> float:
        """Of one call, in `currency`, before any was made."""
        return (TYPICAL[0] * self.price_in + TYPICAL[1] * self.price_out) / 1e6


class Key:
    """A secret: shown as `***` wherever it is printed."""

    def __init__(self, value: str) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "Key(***)"


def check(far: FarEnd) -> FarEnd:
    """Raises `ModelFileError` for an address that will not do, naming the field and what to write."""
    if far.format != FORMAT:
        raise ModelFileError(f"format is {far.format!r}.", f"Write format = {FORMAT!r}.")
    if not far.model.isprintable():
        raise ModelFileError(f"model is {far.model!r}.", "Write the name that the far end gives it.")
    url = _split("base_url", far.base_url)
    if url.scheme == "http" and not far.insecure and not loopback(url.hostname or ""):
        raise ModelFileError(
            f"base_url is {far.base_url!r}: prompts and the key would travel unencrypted.",
            "Use https://, or --insecure on a network you trust.",
        )
    if url.path.rstrip("/").endswith(("/completions", "/embeddings", "/models")):
        raise ModelFileError(
            f"base_url is {far.base_url!r}, which is one of its functions.", "Leave away what comes behind /v1."
        )
    if far.proxy and _split("proxy", far.proxy).scheme != "http":
        raise ModelFileError("proxy is no http:// address.", "Write http://HOST:PORT.")
    if far.key_env and far.key_file:
        raise ModelFileError("Both key_env and key_file are set.", "Leave one of them away.")
    for name, value in far.headers.items():
        if not re.fullmatch(_HEADER, name) or not value.isprintable() or not value.isascii():
            raise ModelFileError(f"headers.{name[:40]} is no header.", "Use printable ASCII.")
        if name.lower() in _OURS:
            raise ModelFileError(f"headers.{name} is set by nearfar itself.", "Leave it away.")
        if _SECRET.search(name) or name.lower() == far.key_header.lower():
            raise ModelFileError(
                f"headers.{name} looks like a secret, and this file is no place for one.",
                "Put it into an environment variable: key_env = NAME, and key_header = the header's name.",
            )
    return far


def parse(text: str, where: str) -> FarEnd:
    """A far end from TOML; `where` names the file in messages. Raises `ModelFileError` naming the field."""
    try:
        return check(msgspec.convert(tomllib.loads(text), FarEnd))
    except tomllib.TOMLDecodeError as error:
        raise ModelFileError(f"{where} is not TOML: {error}.", "See docs/how-to-far.md for an example.") from None
    except msgspec.ValidationError as error:
        told = str(error).replace("`$.", "`").replace("Object", "It")
        raise ModelFileError(f"{where}: {told}.", "See docs/how-to-far.md for its fields.") from None
    except ModelFileError as error:
        raise ModelFileError(f"{where}: {error.message}", error.hint) from None


def read(path: Path) -> FarEnd:
    """Raises `ModelFileError` when the file cannot be read or is no far end."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LONGEST_FILE + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}.", "Check the path and its permissions.") from None
    if len(text) > _LONGEST_FILE:
        raise ModelFileError(f"{path.name} is too large for a far end.", "See docs/how-to-far.md for an example.")
    return parse(text, path.name)


def to_toml(far: FarEnd) -> str:
    """The file: `parse(to_toml(far), "")` equals `far`. Fields that hold their default are left away."""
    import json

    plain = {"format": FORMAT} | msgspec.to_builtins(far)
    headers = plain.pop("headers", {})

    def text(value: object) -> str:  # JSON's escapes are TOML's, but for those of pairs, and DEL is no printable text
        return json.dumps(value, ensure_ascii=False)

    lines = [f"{key} = {text(value)}" for key, value in plain.items()]
    if headers:
        lines += ["", "[headers]", *(f"{text(key)} = {text(value)}" for key, value in headers.items())]
    return "\n".join(lines) + "\n"


def read_key(far: FarEnd, environment: Mapping[str, str] | None = None) -> Key | None:
    """The key from where the far end says it is; None when it needs none.

    Raises `RuntimeUnavailable` that says what to type. The key itself is in no message.
    """
    environment = os.environ if environment is None else environment
    if far.key_env:
        value = environment.get(far.key_env, "").strip()
        place = f"the environment variable {far.key_env}"
        hint = f"Type: export {far.key_env}=... and start the node again."
    elif far.key_file:
        place, hint = f"the file {far.key_file}", "Write the key into it, on one line, readable by this user alone."
        try:
            value = Path(far.key_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise RuntimeUnavailable(f"The key of {far.host} is not in {place}: {why}.", hint) from None
    else:
        return None
    if not value:
        raise RuntimeUnavailable(f"The key of {far.host} is not in {place}: it is empty or not set.", hint)
    if not value.isascii() or not value.isprintable() or " " in value:
        raise RuntimeUnavailable(f"What is in {place} cannot be a key: it holds blanks or no plain ASCII.", hint)
    return Key(value)


def loopback(host: str) -> bool:
    """Whether the host is this very machine, by its address; `localhost` counts.

    >>> loopback("127.0.0.1"), loopback("::1"), loopback("localhost"), loopback("127.0.0.1.example.com")
    (True, True, True, False)
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Url(NamedTuple):
    scheme: str
    hostname: str | None
    path: str


def _split(field: str, text: str) -> _Url:
    try:
        url = urlsplit(text)
        _ = url.port  # checked when it is looked at
    except ValueError:
        raise ModelFileError(f"{field} is {text!r}.", "Write https://HOST/v1.") from None
    if url.username is not None or url.password is not None:
        raise ModelFileError(f"{field} holds a name or a password.", "Put the key into a variable: key_env.")
    plain = text.isascii() and text.isprintable() and " " not in text
    if url.scheme not in ("http", "https") or not url.hostname or url.fragment or not plain:
        raise ModelFileError(f"{field} is {text!r}.", "Write https://HOST/v1.")
    return _Url(url.scheme, url.hostname, url.path)
