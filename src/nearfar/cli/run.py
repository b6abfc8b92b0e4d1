"""`nearfar run`: one inference on one image, wherever it is best."""

from __future__ import annotations

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
    in_loop,
    print_json,
)

if TYPE_CHECKING:
    from nearfar.settings import Settings
    from nearfar.types.request import Answer, Qos


def qos_of(
    deadline: str | None,
    privacy: str,
    node: str | None,
    max_cost: float | None = None,
    degrade: str | None = None,
    percentile: float | None = None,
    *,
    stream: bool = False,
) -> Qos:
    """QoS from flags; `stream` may give up more than a single request. Raises `InputError` naming the flag."""
    from nearfar.errors import InputError
    from nearfar.types.request import FOR_ONE, Degrade, Privacy, Qos, parse_degrade
    from nearfar.types.units import parse_milliseconds

    if privacy not in set(Privacy):
        raise InputError(f"--privacy is {privacy!r}.", f"Use one of {', '.join(Privacy)}.")
    try:
        steps = parse_degrade(degrade or "", tuple(Degrade) if stream else FOR_ONE)
    except InputError as error:
        raise InputError(f"--degrade: {error.message}", error.hint) from None
    for flag, given in (("--degrade", bool(steps)), ("--percentile", percentile is not None)):
        if given and not deadline:
            raise InputError(f"{flag} needs a promise to be kept.", "Add --deadline, such as --deadline 100ms.")
    if max_cost is not None and not 0 <= max_cost < float("inf"):
        raise InputError(f"--max-cost is {max_cost:g}.", "Use a number from 0, such as 0.02.")
    if percentile is not None and not 50 <= percentile <= 99.9:
        raise InputError(f"--percentile is {percentile:g}.", "Use a number from 50 to 99.9.")
    within = parse_milliseconds(deadline) if deadline else None
    return Qos(within, Privacy(privacy), node, 95.0 if percentile is None else percentile, max_cost, steps)


def run(
    model: Annotated[str, typer.Argument(help="Name of a model that the fleet serves.")],
    image: Annotated[Path, typer.Argument(help="Image file.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the image with its boxes.")] = None,
    deadline: Annotated[str | None, typer.Option("--deadline", help="Answer within, such as 100ms.")] = None,
    privacy: Annotated[str, typer.Option("--privacy", help="local, fleet or any.")] = "any",
    node: Annotated[str | None, typer.Option("--node", help="Only this node may answer.")] = None,
    max_cost: Annotated[float | None, typer.Option("--max-cost", help="Most that the request may cost.")] = None,
    degrade: Annotated[
        str | None, typer.Option("--degrade", help="When nobody near is in time: far, refuse or far,refuse.")
    ] = None,
    json: Json = False,
    home: Home = None,
    fleet: Fleet = None,
    join: Join = None,
    config: Config = None,
) -> None:
    """Run a model on one image, on the node where it is best."""
    from nearfar.errors import InputError, NearfarError

    data = read_picture(image)
    if output is not None:
        check_target(output)
    chosen = asking(home, fleet, join, config)
    answer, told, labels = in_loop(_ask(chosen, model, data, qos_of(deadline, privacy, node, max_cost, degrade)))
    drawn = output if "detections" in told else None
    try:
        if drawn is not None:
            _draw(data, answer, labels, drawn)
    except NearfarError:  # such as a full disk: the answer is there, and is told all the same
        drawn = None
        raise
    finally:
        if json:
            print_json(told)
        else:
            _print(told, drawn)
    if output is not None and drawn is None:
        raise InputError(f"{model} finds no boxes to draw; its task is {told['task']}.", "Leave -o away.")


LARGEST_FILE = 256 * 1024 * 1024
"""Bytes of a picture's file: more than 64 megapixels need without compression."""


def read_picture(image: Path) -> bytes:
    """The bytes of a file. Raises `InputError` when it cannot be read, or has no end, as a device."""
    from nearfar.errors import InputError, TooLarge
    from nearfar.types.units import Bytes, show_bytes

    try:
        with image.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise InputError(f"{image} cannot be read: {error.strerror}.", "Check the path.") from None
    if len(data) > LARGEST_FILE:
        most = show_bytes(Bytes(LARGEST_FILE))
        raise TooLarge(f"{image} has more than {most}, which is too much for a picture.", "Give a smaller one.")
    return data


def check_target(output: Path) -> None:
    """Raise `InputError` for a picture that could not be written, before an answer is asked for that would be lost."""
    from nearfar.errors import InputError

    kinds = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
    if output.suffix.lower() not in kinds:
        raise InputError(f"{output} is no kind of picture.", f"Let its name end in {', '.join(kinds)}.")
    if not output.parent.is_dir():
        raise InputError(f"There is no folder {output.parent}.", "Make it first.")


async def _ask(chosen: Settings, model: str, data: bytes, qos: Qos) -> tuple[Answer, dict[str, Any], tuple[str, ...]]:
    from nearfar.cli.starting import connected, until_service
    from nearfar.gateway.answers import answer_as_json, labels_in
    from nearfar.types.ids import ModelName
    from nearfar.types.image import Image

    async with connected(chosen) as client:
        await until_service(client, model, qos)
        answer = await client.see(ModelName(model), Image.encoded(data), qos)
        described = await client.described(answer)
        manifest = described.manifest if described else None
        return answer, answer_as_json(answer, manifest), labels_in(manifest) if manifest else ()


def _draw(data: bytes, answer: Answer, labels: tuple[str, ...], output: Path) -> None:
    from nearfar.models.images import pixels_of
    from nearfar.types.image import Image
    from nearfar.vision.draw import draw, footer_of
    from nearfar.vision.record import write_image

    write_image(output, draw(pixels_of(Image.encoded(data)), answer.detections(), labels, footer=footer_of(answer)))


def _print(told: dict[str, Any], output: Path | None) -> None:
    out = console()
    rows = told.get("detections", told.get("classes", []))
    for row in rows:
        box = "  ".join(f"{v:7.1f}" for v in row["box"]) if "box" in row else ""
        out.print(f"  {escape(row['label']):<16} {row['score']:.2f}  [dim]{box}[/]")
    if not rows:
        out.print("  nothing was found above the model's threshold")
    stages = ", ".join(f"{name} {ms:.1f}" for name, ms in told["stages_ms"].items())
    out.print(f"[dim]{told['served_by']} ({told['variant']}) answered in {told['total_ms']:.1f} ms: {stages}[/]")
    for attempt in told["attempts"]:
        out.print(f"[yellow]before: {escape(attempt)}[/]")
    if output is not None:
        out.print(f"[dim]boxes drawn in {output}[/]")
