"""`nearfar models`: list, add, pull, show and remove models."""

from __future__ import annotations

import tempfile
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
    fleet_flags,
    home_and_config,
    in_loop,
    print_json,
    settings,
)

if TYPE_CHECKING:
    from nearfar.models.adding import AddOptions
    from nearfar.models.manifest import Manifest
    from nearfar.models.store import Store
    from nearfar.settings import Settings
    from nearfar.types.ids import NodeId

app = typer.Typer(help="List, add, pull, show and remove models.", invoke_without_command=True)


@app.callback()
def models(
    context: typer.Context,
    json: Json = False,
    home: Home = None,
    fleet: Fleet = None,
    join: Join = None,
    config: Config = None,
) -> None:
    """List the models in this machine's store and in the fleet, and who serves them."""
    if context.invoked_subcommand is not None:
        context.obj = home, config
        return
    from nearfar.cli.fleet import look, show
    from nearfar.gateway.fleet import models_as_json

    chosen = asking(home, fleet, join, config)
    rows = {row["model"]: row for row in models_as_json(*in_loop(look(chosen)))}
    store = _store(home, config)
    for name, reason in store.broken().items():
        console(error=True).print(f"[red]The manifest of {name} cannot be used[/]: {reason}")
    for manifest in store.list():
        row = rows.setdefault(manifest.name, {"model": manifest.name, "served_by": [], "stored_on": []})
        row |= {
            "task": manifest.task.value,
            "version": manifest.version,
            "variants": [v.id for v in manifest.variants],
            "licence": manifest.licence,
            "here": True,
        }
    if json:
        print_json([rows[name] for name in sorted(rows)])
        return
    show(
        [rows[name] for name in sorted(rows)],
        "No model was found.",
        {
            "model": lambda r: r["model"],
            "task": lambda r: r.get("task", ""),
            "variants": lambda r: escape(", ".join(r.get("variants", ()))),
            "licence": lambda r: escape(r.get("licence", "")),
            "here": lambda r: "yes" if r.get("here") else "no",
            "served by": lambda r: ", ".join(r["served_by"]) or "[dim]nobody[/]",
        },
        spare=("licence", "variants", "task"),
        wraps="served by",
    )


def _chosen(context: typer.Context, home: Path | None, config: Path | None) -> Settings:
    home, config = home_and_config(context, home, config)
    return settings(fleet_flags(home, None, None, config))


def _store(home: Path | None, config: Path | None = None) -> Store:
    from nearfar.models.store import Store

    return Store(settings(fleet_flags(home, None, None, config)).home / "models")


class Look:
    """Looks at model files in a process of its own, as they may be hostile, and keeps what each answered when it was
    asked the question of the self-test, until `keep` writes that beside the manifest."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.home = store.root.parent
        self._answers: dict[str, str] = {}
        self.unanswered = ""
        """Why the last file has no answer; "" when it has one."""

    def __call__(self, file: Path) -> Any:
        """The file's runtime, inputs and outputs; of a language model what the file says of it.

        Raises `InputError` for a file that is added in another way.
        """
        from nearfar.errors import InputError
        from nearfar.models.blobs import sha256_of
        from nearfar.runtimes.inspect import learn_isolated

        seen, learned = learn_isolated(file)
        self.unanswered = learned.reason
        if learned.answer:
            self._answers[sha256_of(file)] = learned.answer
        if seen.runtime == "remote":
            raise InputError(f"{file.name} describes a far end.", "Add it with `nearfar far add`.")
        if seen.text is not None:
            return seen.runtime, seen.text, ()
        return seen.runtime, seen.inputs, seen.outputs

    def keep(self, manifest: Manifest) -> Manifest:
        for variant in manifest.variants:
            if variant.sha256 in self._answers:
                self._store.keep_answer(variant.sha256, self._answers[variant.sha256])
        return manifest


def add_model(store: Store, path: Path, options: AddOptions | None = None, look: Look | None = None) -> Manifest:
    """Take a model file into the store, its family recognised from its outputs; or a folder that holds a language model
    as OpenVINO wrote it, which is packed into one file."""
    from nearfar.models.adding import AddOptions, add_file
    from nearfar.runtimes import irfolder

    look = look or Look(store)
    if not irfolder.is_folder(path):
        return look.keep(add_file(store, path, look, options or AddOptions()))
    with tempfile.TemporaryDirectory(prefix="nearfar-") as folder:
        packed = Path(folder) / f"{path.resolve().name}.tar"
        irfolder.pack(path, packed)
        return look.keep(add_file(store, packed, look, options or AddOptions()))


def _options(
    name: str,
    task: str | None,
    labels: str | None,
    decoder: str | None,
    size: str | None,
    precision: str | None,
    variant: str,
    licence: str,
) -> AddOptions:
    from nearfar.errors import InputError
    from nearfar.models.adding import AddOptions
    from nearfar.models.labels import read_labels

    pair: tuple[int, int] | None = None
    if size:
        width, _, height = size.lower().partition("x")
        if not (width.isdigit() and height.isdigit()):
            raise InputError(f"--size is {size!r}.", "Write WIDTHxHEIGHT, such as 320x240.")
        pair = (int(width), int(height))
    return AddOptions(
        name=name,
        task=task,
        labels=read_labels(labels) if labels else (),
        decoder=decoder,
        size=pair,
        precision=precision,
        variant=variant,
        licence=licence,
    )


Task = Annotated[str | None, typer.Option("--task", help="object-detection, classification, tensors, chat, ...")]
Labels = Annotated[str | None, typer.Option("--labels", help="coco80, coco90, or a file with a label a line.")]
Name = Annotated[str, typer.Option("--name", help="Name in the store; else made from the file's name.")]
Decoder = Annotated[str | None, typer.Option("--decoder", help="Family of the outputs, when it is not recognised.")]
Size = Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT of the input, when the file leaves it open.")]
Precision = Annotated[str | None, typer.Option("--precision", help="int8, fp16, fp32, ...; else as the file looks.")]
VariantName = Annotated[str, typer.Option("--variant", help="Id of this variant; else format and precision.")]
Licence = Annotated[str, typer.Option("--licence", help="Licence of the weights.")]


@app.command()
def add(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Model file: .onnx, .tflite, .gguf; a folder of OpenVINO's.")],
    task: Task = None,
    labels: Labels = None,
    name: Name = "",
    decoder: Decoder = None,
    size: Size = None,
    precision: Precision = None,
    variant: VariantName = "",
    licence: Licence = "",
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="Manifest (TOML) of the file, instead of recognising it.")
    ] = None,
    json: Json = False,
    home: Home = None,
    config: Config = None,
) -> None:
    """Add a model file; its family is recognised from its outputs. A known name gets one more variant."""
    from nearfar.models.adding import add_with_manifest

    store = _store(*home_and_config(context, home, config))
    look = Look(store)
    if manifest is not None:
        _tell(look.keep(add_with_manifest(store, file, manifest, look)), json, look)
        return
    options = _options(name, task, labels, decoder, size, precision, variant, licence)
    _tell(add_model(store, file, options, look), json, look)


@app.command()
def pull(
    context: typer.Context,
    reference: Annotated[str, typer.Argument(help="hf:owner/repo/path/file.onnx, with @revision if needed.")],
    sha256: Annotated[str | None, typer.Option("--sha256", help="What the file must be; else the hub's own.")] = None,
    task: Task = None,
    labels: Labels = None,
    name: Name = "",
    decoder: Decoder = None,
    size: Size = None,
    precision: Precision = None,
    variant: VariantName = "",
    licence: Licence = "",
    json: Json = False,
    home: Home = None,
    config: Config = None,
) -> None:
    """Pull a model from a hub, check it, and add it. Needs the extra hub of the package."""
    from nearfar.models.pull import pull as fetch

    options = _options(name, task, labels, decoder, size, precision, variant, licence)
    store = _store(*home_and_config(context, home, config))
    look = Look(store)
    _tell(look.keep(fetch(reference, store, look, sha256, options)), json, look)


@app.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of a model.")],
    json: Json = False,
    home: Home = None,
    config: Config = None,
) -> None:
    """Print the manifest of a model, as TOML."""
    import msgspec

    from nearfar.models.manifest_toml import to_toml

    manifest = _store(*home_and_config(context, home, config)).get(name).manifest
    if json:
        print_json(msgspec.to_builtins(manifest))
        return
    print(to_toml(manifest), end="")


@app.command()
def remove(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of a model.")],
    json: Json = False,
    home: Home = None,
    config: Config = None,
) -> None:
    """Remove a model from this machine's store."""
    _store(*home_and_config(context, home, config)).remove(name)
    if json:
        print_json({"removed": name})
        return
    console().print(f"Removed [bold]{name}[/].")


OnNode = Annotated[str, typer.Option("--node", help="The node of this home folder, where several run.")]


@app.command()
def serve(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of a model in this machine's store.")],
    node: OnNode = "",
    json: Json = False,
    home: Home = None,
    config: Config = None,
) -> None:
    """Serve one more model on a node that runs in this home folder, until it ends."""
    from nearfar.cli import served
    from nearfar.errors import InputError
    from nearfar.language.far import is_far
    from nearfar.models.store import Store
    from nearfar.node.identity import asked_later, read_later, write_later

    chosen = _chosen(context, home, config)
    if is_far(Store(chosen.home / "models").get(name).manifest):
        raise InputError(f"{name} is a far end, which every node of its home folder serves.", "See `nearfar services`.")
    one = _running(chosen, node, f"nearfar up --model {name}")
    file = asked_later(chosen.home, one)
    write_later(file, tuple(dict.fromkeys((*read_later(file), name))))
    taken = served.added(chosen, name, node=one)
    if json:
        print_json({"model": name, "nodes": served.as_json(taken)})
        return
    served.tell(taken, f"serves {name} now, until it ends", f"does not serve {name}")


@app.command()
def unserve(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of a model that 'models serve' was used for.")],
    node: OnNode = "",
    json: Json = False,
    home: Home = None,
    config: Config = None,
) -> None:
    """Undo `models serve`; what is under way is answered."""
    from nearfar.cli import served
    from nearfar.errors import InputError
    from nearfar.node.identity import asked_later, read_later, write_later

    chosen = _chosen(context, home, config)
    one = _running(chosen, node, "nearfar up")
    file = asked_later(chosen.home, one)
    names = read_later(file)
    if name not in names:
        known = f"Asked for were: {', '.join(names)}." if names else "Start the node again without it."
        raise InputError(f"Node {one} was not asked for {name} by 'nearfar models serve'.", known)
    write_later(file, [each for each in names if each != name])
    taken = served.removed(chosen, name, one)
    if json:
        print_json({"model": name, "nodes": served.as_json(taken)})
        return
    served.tell(taken, f"does not serve {name} any more", f"may serve {name} still")


def _running(chosen: Settings, wanted: str, instead: str) -> NodeId:
    """The node of this home folder that is meant. Raises `InputError` when none, or more than one, may be."""
    from nearfar.errors import InputError
    from nearfar.node.identity import running

    names = [entry.node for entry in running(chosen.home)]
    if wanted:
        names = [name for name in names if name == wanted]
    if not names:
        raise InputError(f"No node {wanted or 'of any name'} runs in {chosen.home}.", f"Start one: {instead}")
    if len(names) > 1:
        raise InputError(f"Several nodes run here: {', '.join(names)}.", f"Say which: --node {names[0]}")
    return names[0]


def _tell(manifest: Manifest, json: bool, look: Look) -> None:
    import msgspec

    if json:
        print_json(msgspec.to_builtins(manifest))
        return
    from nearfar.models.manifest import LANGUAGE

    out = console()
    kind = manifest.decoder.kind if manifest.decoder else "none"
    read = "" if manifest.task in LANGUAGE else f" decoder {kind},"
    out.print(f"Added [bold]{manifest.name}[/]: {manifest.task.value},{read} {len(manifest.variants)} variant(s).")
    why = manifest.provenance.get("recognised")
    if why:
        out.print(f"[dim]  {escape(why)}[/]")
    if not manifest.labels and manifest.decoder is not None:
        out.print(
            "[yellow]  its classes are shown as numbers[/]; to name them, "
            f"[bold]nearfar models remove {manifest.name}[/] and add it with --labels"
        )
    if look.unanswered:
        told = f"No answer was recorded for its self-test ({look.unanswered}): services go by their own first one."
        out.print(f"[dim]  {escape(told)}[/]")
    from nearfar.node.identity import running

    verb = "models serve" if running(look.home) else "up --model"
    out.print(f"Serve it with: [bold]nearfar {verb} {manifest.name}[/]")
