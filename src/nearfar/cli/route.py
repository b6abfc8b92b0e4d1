"""`nearfar route`: why a prompt would go where, what was routed until now, and a router of one's own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.cli.common import (
    Config,
    Fleet,
    Home,
    Join,
    Json,
    asking,
    console,
    escape,
    home_and_config,
    in_loop,
    print_json,
    settings,
)
from nearfar.errors import InputError

if TYPE_CHECKING:
    from nearfar.language.outcomereport import Report
    from nearfar.settings import Settings

app = typer.Typer(help="Explain, report and train the routing of prompts.", no_args_is_help=True)
SETTLE = 1.5
"""Seconds in which the fleet is found."""


@app.callback()
def _before(context: typer.Context, home: Home = None, config: Config = None) -> None:
    context.obj = (home, config)


@app.command()
def explain(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What would be asked.")],
    system: Annotated[str, typer.Option("--system", help="What would stand before it.")] = "",
    private: Annotated[bool, typer.Option("--private", help="As if nothing may leave the fleet.")] = False,
    route: Annotated[str, typer.Option("--route", help="auto, near or far.")] = "auto",
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens of the answer.")] = 512,
    json: Json = False,
    home: Home = None,
    fleet: Fleet = None,
    join: Join = None,
    config: Config = None,
) -> None:
    """Say where a prompt would go and why, what it would cost and how good it would be. Nothing is sent."""
    home, config = home_and_config(context, home, config)
    chosen = asking(home, fleet, join, config)
    told = in_loop(_explained(chosen, prompt, system, private, route, max_tokens))
    if json:
        print_json(told)
        return
    out = console()
    out.print(f"[bold]{escape(told['where'])}[/]: {escape(told['model'] or 'nobody')}")
    for line in told["why"]:
        out.print(f"  {escape(line)}")
    if told["score"] is not None:
        out.print(f"  score {told['score']:.2f}, threshold {told['threshold']:.2f}")
    out.print(f"  expected cost {told['expected_cost']:g}, expected quality {_share(told['expected_quality'])}")
    for line in told["refused"]:
        out.print(f"[dim]  not {escape(line)}[/]")


async def _explained(
    chosen: Settings, prompt: str, system: str, private: bool, route: str, max_tokens: int
) -> dict[str, Any]:
    import msgspec

    from nearfar.client.connect import connect
    from nearfar.errors import NoCandidate
    from nearfar.language.call import read_call
    from nearfar.language.director import Director
    from nearfar.language.keeping import Keeping, score
    from nearfar.language.privacy.policy import Keyring
    from nearfar.language.talker import Talker
    from nearfar.types.request import Privacy, Qos
    from nearfar.types.wire import Operation

    said = [{"role": "system", "content": system}] if system else []
    said.append({"role": "user", "content": prompt})
    body = msgspec.json.encode({"model": "auto", "messages": said, "max_tokens": max_tokens})
    qos = Qos(privacy=Privacy.FLEET if private else Privacy.ANY)
    call = read_call(Operation.CHAT, body, qos, Keyring(chosen).nobody(), route)
    async with connect(chosen, wait=SETTLE) as client:
        keeping = Keeping(chosen.routing, chosen.home)
        try:
            talker = Talker(client, Director(client, chosen.routing, chosen.cache, keeping=keeping))
            try:
                ruling, made = await talker.explain(call)
            except NoCandidate as error:
                scored = score(talker.director.router, prompt, system)
                return {
                    "where": "nowhere", "model": "", "why": [error.message, error.hint], "score": scored.probability,
                    "threshold": talker.director.rules().threshold, "expected_cost": 0.0, "expected_quality": None,
                    "privacy": qos.privacy.value, "refused": [],
                }  # fmt: skip
        finally:
            keeping.close()
    return {
        "where": made.where.value,
        "model": made.model,
        "why": [*made.why, *ruling.reasons],
        "score": made.score,
        "threshold": made.threshold,
        "expected_cost": made.expected_cost,
        "expected_quality": made.expected_quality,
        "privacy": ruling.privacy.value,
        "refused": list(made.refused),
    }


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0%}"


@app.command()
def report(
    context: typer.Context,
    days: Annotated[float, typer.Option("--days", min=0, help="Of the last so many days.")] = 7.0,
    json: Json = False,
    home: Home = None,
    config: Config = None,
) -> None:
    """Say what was routed where, what it saved, and what other ways would have brought."""
    import msgspec

    from nearfar.language.keeping import target_of
    from nearfar.language.outcomereport import report as summed
    from nearfar.language.outcomes import FILE, OutcomeStore

    home, config = home_and_config(context, home, config)
    chosen = settings({"home": str(home) if home else None, "config": str(config) if config else None})
    if not (chosen.home / FILE).is_file():
        raise InputError(f"No prompt was routed in {chosen.home} yet.", "Ask something: nearfar chat --auto.")
    store = OutcomeStore(chosen.home / FILE)
    try:
        made = summed(store.records(time.time() - days * 86400), _prices(chosen))
    finally:
        store.close()
    target = target_of(chosen.routing)
    if json:
        budget = None if target is None else {"goal": target.goal.value, "amount": target.amount}
        print_json({**msgspec.to_builtins(made), "days": days, "budget": budget})
        return
    _show(made, days)
    if target is not None:
        routed = made.ways["routed"]
        words = {
            "money": f"{routed.cost:.4f} spent in {days:g} days",
            "share": f"{routed.far_share:.1%} went far",
            "quality": f"{_share(routed.quality)} expected",
        }
        console().print(f"budget: {target.goal.value} {target.amount:g}; {words[target.goal.value]}")


def _prices(chosen: Settings) -> Any:
    """Of the far end that prompts go to: the one that is set, else the cheapest that was added here."""
    from nearfar.language.far import get, names
    from nearfar.language.outcomereport import Prices
    from nearfar.models.store import Store

    store = Store(chosen.home / "models")
    ends = [get(store, name) for name in names(store) if chosen.routing.far in ("", name)]
    if not ends:
        return Prices(0.0, 0.0)
    cheapest = min(ends, key=lambda end: end.price_in + end.price_out)
    return Prices(cheapest.price_in / 1e6, cheapest.price_out / 1e6)


def _show(made: Report, days: float) -> None:
    from rich.table import Table

    out = console()
    if not made.prompts:
        out.print(f"No prompt was routed in the last {days:g} days.")
        return
    decided = ", ".join(f"{count} {name}" for name, count in made.decisions.items() if count)
    out.print(f"[bold]{made.prompts}[/] prompts in {days:g} days: {decided}; {made.private} of them private")
    out.print(
        f"  escalated {made.escalated}, held back by the budget {made.refused}, split saved {made.tokens_saved} tokens"
    )
    out.print(f"  saved against always-far: {made.saved:.4f}; feedback on {made.feedback}, {made.good} of it good")
    table = Table(box=None, pad_edge=False)
    for name in ("way", "cost", "quality", "far"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for name, way in made.ways.items():
        mark = " (estimated)" if way.estimated else ""
        table.add_row(f"{name}{mark}", f"{way.cost:.4f}", _share(way.quality), f"{way.far_share:.0%}")
    out.print(table)


@app.command()
def train(
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Argument(help='Lines of JSON: {"prompt": ..., "near": 0 to 1, "far": 0 to 1}; else the log.')
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the weights go; else the home folder.")
    ] = None,
    embedding: Annotated[
        str, typer.Option("--embedding", help="Train the router over vectors, with this model of the fleet.")
    ] = "",
    json: Json = False,
    home: Home = None,
    fleet: Fleet = None,
    join: Join = None,
    config: Config = None,
) -> None:
    """Train the router on prompts of one's own, from a file or from the kept log with its feedback."""
    from nearfar.language.keeping import CALIBRATION, WEIGHTS
    from nearfar.language.routers.train import train as trained
    from nearfar.language.vectors import HEAD

    home, config = home_and_config(context, home, config)
    chosen = settings({"home": str(home) if home else None, "config": str(config) if config else None})
    rows = _from_file(data) if data is not None else _from_log(chosen)
    if embedding:
        data_, wrong = in_loop(_vectors(asking(home, fleet, join, config), embedding, rows))
        place, count = output or chosen.home / HEAD, len(rows)
    else:
        made = trained(rows)
        data_, wrong, count = made.weights.export(), made.error, made.rows
        place = output or chosen.home / WEIGHTS
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(place.name + ".partial")
        partial.write_bytes(data_)
        partial.replace(place)
        if output is None and not embedding:  # what feedback had taught the old weights does not hold for the new ones
            (chosen.home / CALIBRATION).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{place} cannot be written: {error.strerror}.", "Give another --output.") from None
    if json:
        print_json({"rows": count, "calibration_error": wrong, "weights": str(place)})
        return
    unseen = "" if embedding else " on rows that were not seen"
    console().print(
        f"Trained on {count} prompts, calibration error {wrong:.3f}{unseen}.\n"
        f"Written to [bold]{escape(str(place))}[/]; a node reads it at its next start."
    )


async def _vectors(chosen: Settings, model: str, rows: list[Any]) -> tuple[bytes, float]:
    """The head of a router over vectors, and its calibration error on the rows themselves."""
    import msgspec

    from nearfar.client.connect import connect
    from nearfar.language.calibration import expected_error
    from nearfar.language.routers.embedding import train_head
    from nearfar.language.vectors import vector_of

    async with connect(chosen, wait=SETTLE) as client:
        vectors = [await vector_of(client, model, row.prompt) for row in rows]
    good = [row.good for row in rows]
    head = train_head(vectors, good)
    return msgspec.json.encode(head), expected_error([head.probability(vector) for vector in vectors], good)


def _from_file(path: Path) -> list[Any]:
    import msgspec

    from nearfar.language.routers.train import Row

    rows = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        rows.append(msgspec.json.decode(line, type=Row))
                    except (msgspec.DecodeError, UnicodeDecodeError) as error:
                        raise InputError(
                            f"{path}, line {number}: {error}.",
                            'Write {"prompt": "...", "near": 1, "far": 1} on each line.',
                        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Give a file of JSON lines.") from None
    return rows


def _from_log(chosen: Settings) -> list[Any]:
    """Kept prompts whose near answer was judged by somebody or something; far is taken as good."""
    from nearfar.language.outcomes import FILE, OutcomeStore
    from nearfar.language.routers.train import Row

    if not (chosen.home / FILE).is_file():
        raise InputError(f"There is no log in {chosen.home}.", "Give a file: nearfar route train DATA.")
    store = OutcomeStore(chosen.home / FILE)
    try:
        prompts = store.prompts()
        rows = []
        for record in store.records():
            prompt = prompts.get(record.id)
            if prompt is None:
                continue
            if record.feedback is not None and record.answered == "near":
                rows.append(Row(prompt, (record.feedback + 1) / 2, 1.0))
            elif record.judged is not None:
                rows.append(Row(prompt, record.judged, 1.0, weight=0.5))
    finally:
        store.close()
    if not rows:
        raise InputError(
            "The log holds no prompt with feedback or a judgement.",
            "Set [routing] keep_prompts = true and send feedback, or give a file.",
        )
    return rows
