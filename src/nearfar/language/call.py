"""One call of a language model as it came in, and what goes back: the JSON, and where it came from at which price."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

import msgspec

from nearfar.errors import InputError
from nearfar.language.privacy.policy import KeyPolicy
from nearfar.types.request import Qos, Stages
from nearfar.types.telemetry import Reading
from nearfar.types.wire import Operation

T = TypeVar("T")
AUTO = "auto"
"""The name of no model: nearfar decides, prompt by prompt."""


class Route(StrEnum):
    """Who may answer, as the caller wants it."""

    AUTO = "auto"
    NEAR = "near"
    FAR = "far"


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class Wishes(msgspec.Struct, frozen=True):
    """The field `nearfar` of a request's body: what the OpenAI form has no word for."""

    privacy: str = ""
    """`local`, `fleet` or `any`; the strictest of this, the header and the key's policy holds."""
    route: str = "auto"
    """`auto`, `near` or `far`."""
    cache: bool | None = None
    """Whether a kept answer will do; None: when the same request is to have the same answer anyway."""


class View(msgspec.Struct, frozen=True):
    """The fields of a body that nearfar itself reads; the rest travels unread."""

    model: str = AUTO
    messages: list[dict[str, Any]] = []
    prompt: Any = None
    input: Any = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    n: int | None = None
    best_of: int | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    json_schema: Any = None
    grammar: str | None = None
    logprobs: Any = None
    stop: Any = None
    echo: bool | None = False
    user: str | None = None
    nearfar: Wishes = Wishes()

    @property
    def constrained(self) -> bool:
        """Whether a grammar's state grows with the answer."""
        kind = (self.response_format or {}).get("type", "text")
        return bool(self.grammar or self.json_schema or kind != "text" or self.tools or self.functions)


class TextCall(msgspec.Struct, frozen=True):
    """`body` is the JSON as it came."""

    operation: Operation
    body: bytes
    view: View
    qos: Qos = Qos()
    route: Route = Route.AUTO
    policy: KeyPolicy = KeyPolicy()
    """Of the key that it came with."""
    conversation: str = ""
    id: str = ""
    """Of this request; all attempts and the ledger name it."""

    @property
    def model(self) -> str:
        return self.view.model


class Times(msgspec.Struct, frozen=True):
    """Where the time of an answer went, in milliseconds: `Stages` with its names, as people read them. Reading the
    prompt counts as preprocessing, writing the answer as inference."""

    link: float = 0.0
    queue: float = 0.0
    preprocess: float = 0.0
    inference: float = 0.0
    postprocess: float = 0.0

    @classmethod
    def of(cls, stages: Stages) -> Times:
        return cls(stages.link, stages.queue, stages.preprocess, stages.inference, stages.postprocess)


class About(msgspec.Struct, frozen=True, omit_defaults=False):
    """Where an answer came from, what it cost, and why. Goes out as the field `nearfar` of an answer."""

    request: str
    where: str
    """`near`, `far`, `split`, `cascade` or `cache`."""
    model: str
    served_by: str
    variant: str = ""
    why: tuple[str, ...] = ()
    cost: float = 0.0
    currency: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    ms: float = 0.0
    first_token_ms: float | None = None
    energy: Reading = Reading(None, "no power sensor is read for language services")
    score: float | None = None
    """Probability that the near answer would be good enough, as the router had it."""
    privacy: str = ""
    """How far the prompt was allowed to travel."""
    saved: int = 0
    """Tokens that a split spared the far end."""
    moved: int = 0
    """How often the answer was carried on elsewhere."""
    state_moved: int = 0
    """Tokens of prompt and answer that moved along at the last move, and were not computed again."""
    attempts: tuple[str, ...] = ()
    stages: Times = Times()


class TextAnswer(NamedTuple):
    """A whole answer: its JSON, unchanged, and what is to be said about it."""

    body: bytes
    about: About


class TextEvent(NamedTuple):
    """Chunks of a streamed answer, a JSON object a line; `about` comes with the last event, whose lines may be none."""

    lines: bytes
    about: About | None = None


_view = msgspec.json.Decoder(View)


def read_call(
    operation: Operation,
    body: bytes,
    qos: Qos,
    policy: KeyPolicy = KeyPolicy(),  # noqa: B008
    route: str = "",
) -> TextCall:
    """The call in a body. Raises `InputError` naming the field."""
    view = fitting(_view.decode, body, '{"model": ..., "messages": [...]}')
    wanted = route or view.nearfar.route
    chosen = _ROUTES.get(wanted)
    if chosen is None:
        raise InputError(f"The route is {wanted[:40]!r}.", f"Use one of {', '.join(Route)}.")
    return TextCall(operation, body, view, qos, chosen, policy, id=f"req-{os.urandom(8).hex()}")


_ROUTES: Mapping[str, Route] = {route.value: route for route in Route}


def fitting(read: Callable[[bytes], T], body: bytes, example: str) -> T:
    """What `read` makes of a body with msgspec. Raises `InputError` naming the field."""
    try:
        return read(body)
    except UnicodeDecodeError:
        raise InputError("The body is not UTF-8.", "Send JSON.") from None
    except msgspec.ValidationError as error:
        raise InputError(f"The body does not fit: {error}.", "See /openapi.json.") from None
    except msgspec.DecodeError as error:
        raise InputError(f"The body is not JSON: {error}.", f"Send {example}.") from None


def with_fields(body: bytes, changes: Mapping[str, Any]) -> bytes:
    """The body with some fields set; None removes one. Numbers and texts in the rest stay as they were."""
    raw: dict[str, msgspec.Raw | Any] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    for name, value in changes.items():
        if value is None:
            raw.pop(name, None)
        else:
            raw[name] = value
    return msgspec.json.encode(raw)
