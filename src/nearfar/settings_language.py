"""The settings of language models: how they are served, and which prompt goes where. Read by `settings.py`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class LanguageSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How this node serves language models."""

    context: Annotated[
        int,
        Meta(ge=256, le=1 << 24, description="Most tokens of prompt and answer in one conversation; costs memory."),
    ] = 4096
    slots: Annotated[
        int, Meta(ge=1, le=256, description="Conversations that one service answers at the same time.")
    ] = 4
    prompt_cache: Annotated[
        int, Meta(ge=0, description="Most bytes kept of conversations that left their slot.", extra={"kind": "bytes"})
    ] = 64 * 1024 * 1024
    loras: Annotated[tuple[str, ...], Meta(description="Adapters for requests: NAME=FILE, MODEL/NAME=FILE.")] = ()
    drafts: Annotated[tuple[str, ...], Meta(description="Small models that guess tokens ahead: MODEL=FILE.")] = ()
    ngram: Annotated[bool, Meta(description="Guess tokens ahead by what was said before.")] = False
    draft_tokens: Annotated[int, Meta(ge=1, le=64, description="Tokens guessed ahead at once.")] = 8
    state_limit: Annotated[
        int,
        Meta(
            ge=0,
            le=512 * 1024 * 1024 - 4096,
            description="Largest state of a conversation that moves with it when a service ends; 0: none does.",
            extra={"kind": "bytes"},
        ),
    ] = 64 * 1024 * 1024


class RoutingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who answers a prompt whose model is `auto`: the near model, a far end, or both. At most one budget is kept."""

    router: Annotated[
        str,
        Meta(
            min_length=1,
            description="Who says how probably near is good enough: `ngram`, `embedding`, `length`, `random`, "
            "`always-near`, `always-far`, or `module:attr` of a router.",
        ),
    ] = "ngram"
    embedding: Annotated[
        str, Meta(description="Model of the fleet whose vectors the router `embedding` reads; train that router first.")
    ] = ""
    weights: Annotated[
        str,
        Meta(
            description="File of the router's weights. Empty: `router.npz` in the home folder, else the shipped ones.",
            extra={"kind": "path"},
        ),
    ] = ""
    strategy: Annotated[
        Literal["route", "cascade"],
        Meta(
            description="`route`: the router decides. `cascade`: near answers first, and what is judged poor goes far."
        ),
    ] = "route"
    threshold: Annotated[
        float, Meta(ge=0, le=1, description="Least probability of a good near answer; a budget moves it.")
    ] = 0.5
    near: Annotated[str, Meta(description="Model that answers near. Empty: the largest that the fleet serves.")] = ""
    far: Annotated[str, Meta(description="Model that answers far. Empty: the cheapest that there is.")] = ""
    split: Annotated[
        bool,
        Meta(description="In the grey area near condenses a long context and far gets only that."),
    ] = False
    samples: Annotated[
        int,
        Meta(ge=0, le=16, description="Further near answers to compare with in a cascade; each takes near's time."),
    ] = 0
    money_per_day: Annotated[
        float, Meta(ge=0, description="Most that far ends may cost in a day, in the fleet's currency. 0: no limit.")
    ] = 0.0
    far_share: Annotated[
        float, Meta(ge=0, le=1, description="Share of prompts that may go far; the threshold adapts. 0: no target.")
    ] = 0.0
    quality: Annotated[
        float, Meta(ge=0, le=1, description="Expected share of good answers to keep at least. 0: no target.")
    ] = 0.0
    keep_prompts: Annotated[
        bool, Meta(description="Keep prompts with their outcomes, so that `nearfar route train` can learn from them.")
    ] = False
