"""`nearfar far`: the far ends of this machine, and what they cost."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.cli.common import Config, Home, Json, console, escape, home_and_config, print_json, settings

if TYPE_CHECKING:
    from nearfar.ledger import Ledger
    from nearfar.models.store import Store
    from nearfar.runtimes.remote.description import FarEnd
    from nearfar.settings import Settings

app = typer.Typer(help="Add, list, test and remove far ends, and see what they cost.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of a far end; requests name it as their model.")]
TEST = {"messages": [{"role": "user", "content": "Say ok."}], "max_tokens": 16}
TEST_TOKENS = (12, 16)
"""Tokens in and out that the test is expected to cost at most."""


@app.callback()
def far(context: typer.Context, home: Home = None, config: Config = None) -> None:
    """Add, list, test and remove far ends (OpenAI-compatible APIs), and see what they cost."""
    context.obj = home, config


def _chosen(context: typer.Context, home: Path | None, config: Path | None) -> Settings:
    home, config = home_and_config(context, home, config)
    return settings({"home": str(home) if home else None, "config": str(config) if config else None})


def _home(context: typer.Context, home: Path | None, config: Path | None) -> Path:
    return _chosen(context, home, config).home


def _store(home: Path) -> Store:
    from nearfar.models.store import Store

    return Store(home / "models")


def _ledger(home: Path) -> Ledger:
    from nearfar.ledger import FILE, Ledger

    return Ledger(home / FILE)


@app.command()
def add(
    context: typer.Context,
    name: Name,
    base_url: Annotated[str, typer.Option("--base-url", help="What /chat/completions is added to: https://HOST/v1.")],
    model: Annotated[str, typer.Option("--model", help="The far end's own name of the model.")],
    price_in: Annotated[float, typer.Option("--price-in", min=0, help="Price of a million tokens of prompt.")],
    price_out: Annotated[float, typer.Option("--price-out", min=0, help="Price of a million tokens of answer.")],
    key_env: Annotated[str, typer.Option("--key-env", help="Environment variable that holds the key.")] = "",
    key_file: Annotated[str, typer.Option("--key-file", help="File that holds the key, instead.")] = "",
    key_header: Annotated[
        str, typer.Option("--key-header", help="Header for the key, where it is not Authorization.")
    ] = "authorization",
    currency: Annotated[str, typer.Option("--currency", help="Of the prices: three capital letters.")] = "USD",
    timeout: Annotated[str, typer.Option("--timeout", help="Silence after which an attempt is given up.")] = "60s",
    retries: Annotated[int, typer.Option("--retries", min=0, max=10, help="Attempts after the first.")] = 2,
    tokens: Annotated[int, typer.Option("--context", min=1, help="Tokens of prompt and answer together.")] = 128_000,
    slots: Annotated[int, typer.Option("--slots", min=1, max=256, help="Calls at the same time.")] = 16,
    header: Annotated[
        list[str] | None, typer.Option("--header", help="NAME=VALUE for every request; no secrets.")
    ] = None,
    stream_usage: Annotated[
        bool, typer.Option("--stream-usage/--no-stream-usage", help="It understands stream_options.include_usage.")
    ] = True,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow http:// beyond this machine: prompts and key are readable.")
    ] = False,
    ca_file: Annotated[str, typer.Option("--ca-file", help="PEM file of an authority of your own.")] = "",
    proxy: Annotated[str, typer.Option("--proxy", help="Proxy, http://HOST:PORT; the environment's is not used.")] = "",
    json: Json = False,
    home: Home = None,
    config: Config = None,
) -> None:
    """Add a far end, or change the one of that name; a node that runs serves it at once. Nothing is sent, and the key
    is never stored."""
    from nearfar.cli import served
    from nearfar.language import far as far_ends

    chosen = _chosen(context, home, config)
    raw = {
        "base_url": base_url,
        "model": model,
        "price_in": price_in,
        "price_out": price_out,
        "currency": currency.upper(),
        "key_env": key_env,
        "key_file": str(Path(key_file).expanduser().absolute()) if key_file else "",
        "key_header": key_header,
        "timeout_s": _seconds(timeout),
        "max_retries": retries,
        "context": tokens,
        "slots": slots,
        "stream_usage": stream_usage,
        "insecure": insecure,
        "ca_file": str(Path(ca_file).expanduser().absolute()) if ca_file else "",
        "proxy": proxy,
        "headers": _headers(header or []),
    }
    store = _store(chosen.home)
    made = _described(raw)
    changed = name in far_ends.names(store)
    revision = far_ends.add(store, name, made).variant(far_ends.VARIANT).sha256
    if json:
        print_json(_shown(name, made) | {"nodes": served.as_json(served.added(chosen, name, revision))})
        return
    out = console()
    out.print(f"{'Changed' if changed else 'Added'} [bold]{name}[/]: {escape(made.model)} at {escape(made.host)}.")
    if nodes := served.added(chosen, name, revision):
        served.tell(nodes, "serves it now", "does not serve it")
        if any(node.done for node in nodes):
            out.print(f"Try it: [bold]nearfar chat --model {name} 'Hello'[/]")
        return
    if why := _key_state(made)[1]:
        out.print(f"[yellow]  {escape(why)}[/]")
    out.print(f"Try it: [bold]nearfar far test {name}[/]; [bold]nearfar up[/] serves it from its next start.")


@app.command("list")
def list_(context: typer.Context, json: Json = False, home: Home = None, config: Config = None) -> None:
    """List the far ends of this machine, whether their keys are at hand, and what they cost today (UTC)."""
    from nearfar.cli.fleet import show
    from nearfar.language import far as far_ends

    place = _home(context, home, config)
    store, ledger = _store(place), _ledger(place)
    today = {total.far_end: total for total in ledger.totals(_today())}
    rows: list[dict[str, Any]] = []
    for name in far_ends.names(store):
        row = _shown(name, far_ends.get(store, name))
        total = today.get(name)
        row |= {"spent_today": total.cost if total else 0.0, "uncertain_today": total.cost_maybe if total else 0.0}
        rows.append(row)
    if json:
        print_json(rows)
        return
    if not rows:
        console().print("There is no far end yet. Add one with [bold]nearfar far add[/] (--help says how).")
        return
    show(
        rows,
        "",
        {
            "name": lambda r: r["name"],
            "model": lambda r: escape(r["model"]),
            "at": lambda r: escape(r["base_url"]),
            "per million in / out": lambda r: f"{r['price_in']:g} / {r['price_out']:g} {r['currency']}",
            "key": lambda r: "[green]there[/]" if r["key_there"] else f"[yellow]no {escape(_place(r))}[/]",
            "today": lambda r: _money(r["spent_today"], r["currency"]),
        },
        spare=("at",),
        wraps="key",
    )


@app.command()
def remove(context: typer.Context, name: Name, json: Json = False, home: Home = None, config: Config = None) -> None:
    """Remove a far end from this machine; a node that runs answers what is under way. What it cost stays in the
    ledger."""
    from nearfar.cli import served
    from nearfar.language import far as far_ends

    chosen = _chosen(context, home, config)
    far_ends.remove(_store(chosen.home), name)
    if json:
        print_json({"removed": name, "nodes": served.as_json(served.removed(chosen, name))})
        return
    console().print(f"Removed [bold]{name}[/].")
    served.tell(served.removed(chosen, name), "does not serve it any more", "may serve it still")


@app.command()
def test(
    context: typer.Context,
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first: the call costs money.")] = False,
    json: Json = False,
    home: Home = None,
    config: Config = None,
) -> None:
    """Make one tiny call to a far end, and say what it answered and cost."""
    from nearfar.errors import Cancelled, InputError
    from nearfar.language import far as far_ends
    from nearfar.ledger import price

    place = _home(context, home, config)
    store = _store(place)
    described = far_ends.get(store, name)
    most = _money(price(*TEST_TOKENS, described.price_in, described.price_out), described.currency)
    if not yes:
        if json or not sys.stdin.isatty():
            raise InputError(f"The test of {name} costs about {most}.", f"Type: nearfar far test {name} --yes")
        if not typer.confirm(f"Ask {described.host} for a few words? It costs about {most}."):
            raise Cancelled("Nothing was sent.", "")
    answer = _ask(place, far_ends.file_of(store, name), name)
    if json:
        print_json(answer)
        return
    counts = f"{answer['tokens_in']} tokens in, {answer['tokens_out']} out ({answer['counted']})"
    said, cost = escape(repr(answer["text"])), _money(answer["cost"], answer["currency"])
    console().print(f"[bold]{name}[/] answered {said} in {answer['ms']:.0f} ms: {counts}, {cost}.")


@app.command()
def ledger(
    context: typer.Context,
    day: Annotated[str, typer.Option("--day", help="Only this day (UTC), YYYY-MM-DD, or today.")] = "",
    name: Annotated[str, typer.Option("--far", help="Only this far end.")] = "",
    rows: Annotated[int, typer.Option("--rows", min=0, help="Also show so many of the last attempts.")] = 0,
    json: Json = False,
    home: Home = None,
    config: Config = None,
) -> None:
    """Show what was sent to far ends from this machine and what it cost, by day. With --json also every attempt."""
    import msgspec

    from nearfar.cli.fleet import show

    book = _ledger(_home(context, home, config))
    day = _day(day)
    totals = msgspec.to_builtins(book.totals(day, name))
    attempts = msgspec.to_builtins(book.rows(day, name, rows or 1_000_000)) if json or rows else []
    if json:
        print_json({"totals": totals, "attempts": attempts})
        return
    if not totals:
        console().print(f"Nothing was sent to a far end{' then, or there' if day or name else ''}.")
        return
    show(
        totals,
        "",
        {
            "day": lambda r: r["day"],
            "far end": lambda r: r["far_end"],
            "attempts": lambda r: str(r["attempts"]),
            "ok": lambda r: str(r["ok"]),
            "failed": lambda r: str(r["failed"]),
            "tokens in / out": lambda r: f"{r['tokens_in']} / {r['tokens_out']}",
            "cost": lambda r: _money(r["cost"], r["currency"]),
            "perhaps also": _perhaps,
        },
        spare=("tokens in / out",),
    )
    if attempts:
        show(
            attempts,
            "",
            {
                "began": lambda r: r["began"][:19],
                "far end": lambda r: r["far_end"],
                "try": lambda r: str(r["attempt"]),
                "outcome": lambda r: r["outcome"],
                "tokens": lambda r: f"{r['tokens_in']} / {r['tokens_out']}",
                "cost": lambda r: _money(r["cost"], r["currency"]),
                "ms": lambda r: f"{r['milliseconds']:.0f}",
                "why it went or failed": lambda r: escape(r["failure"] or r["why"]),
            },
            spare=("tokens", "ms"),
            wraps="why it went or failed",
        )


def _ask(home: Path, file: Path, name: str) -> dict[str, Any]:
    import time

    import msgspec

    from nearfar.ledger import FILE
    from nearfar.runtimes.remote.bill import bill_in
    from nearfar.runtimes.remote.runtime import LEDGER, RemoteRuntime
    from nearfar.runtimes.text import TextOptions
    from nearfar.types.request import Privacy
    from nearfar.types.wire import Operation, TextContext

    pieces: list[bytes] = []

    def take(piece: bytes) -> bool:
        pieces.append(piece)
        return False

    loaded = RemoteRuntime().load_text(file, TextOptions(name=name, settings={LEDGER: str(home / FILE)}))
    start = time.monotonic()
    try:
        context = TextContext(privacy=Privacy.ANY, reason="nearfar far test")
        loaded.run(Operation.CHAT, msgspec.json.encode(TEST), take, context)
    finally:
        loaded.close()
    answer, bill = msgspec.json.decode(pieces[0]), bill_in(pieces[0])
    text = (answer["choices"][0].get("message") or {}).get("content") or ""
    told: dict[str, Any] = msgspec.to_builtins(bill)
    return {**told, "far": name, "text": text, "ms": (time.monotonic() - start) * 1000}


def _described(raw: dict[str, Any]) -> FarEnd:
    import msgspec

    from nearfar.errors import InputError, ModelFileError
    from nearfar.runtimes.remote.description import FarEnd, check

    try:
        return check(msgspec.convert(raw, FarEnd))
    except msgspec.ValidationError as error:
        raise InputError(f"{error}.".replace("`$.", "`"), "See 'nearfar far add --help'.") from None
    except ModelFileError as error:  # the same words, but it is the command line that is wrong
        raise InputError(error.message, error.hint) from None


def _headers(given: list[str]) -> dict[str, str]:
    from nearfar.errors import InputError

    for text in given:
        if "=" not in text:
            raise InputError(f"--header is {text!r}.", "Write NAME=VALUE.")
    return {name.strip(): value.strip() for name, _, value in (text.partition("=") for text in given)}


def _seconds(text: str) -> float:
    from nearfar.types.units import parse_milliseconds

    return parse_milliseconds(text) / 1000


def _shown(name: str, far: FarEnd) -> dict[str, Any]:
    """A far end as JSON; of its key only where it is, and whether."""
    import msgspec

    there, why = _key_state(far)
    every = {field: getattr(far, field) for field in far.__struct_fields__ if field != "format"}
    return {"name": name, **msgspec.to_builtins(every), "key_there": there, "key_state": why}


def _key_state(far: FarEnd) -> tuple[bool, str]:
    """Whether the key is at hand, and what to type when it is not."""
    from nearfar.errors import RuntimeUnavailable
    from nearfar.runtimes.remote.description import read_key

    try:
        read_key(far)
    except RuntimeUnavailable as error:
        return False, str(error)
    return True, ""


def _place(row: dict[str, Any]) -> str:
    """Where the key of a far end should be, in a word."""
    return str(row["key_env"] or row["key_file"])


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _day(text: str) -> str:
    from nearfar.errors import InputError

    if text in ("", "today"):
        return text and _today()
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).strftime("%Y-%m-%d")
    except ValueError:
        raise InputError(f"--day is {text!r}.", "Write YYYY-MM-DD, or today.") from None


def _perhaps(row: dict[str, Any]) -> str:
    """What uncertain attempts may add."""
    if not row["uncertain"]:
        return ""
    return f"{_money(row['cost_maybe'], row['currency'])} ({row['uncertain']} uncertain)"


def _money(value: float, currency: str) -> str:
    """
    >>> _money(0.0, "USD"), _money(0.0000321, "USD"), _money(12.3, "EUR")
    ('0 USD', '0.000032 USD', '12.30 EUR')
    """
    shown = "0" if not value else f"{value:.2f}" if value >= 1 else f"{value:.6f}"
    return f"{shown} {currency}"
