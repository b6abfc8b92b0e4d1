"""`nearfar`: the verbs, the exit codes, and one way in which every error is told.

Exit codes: 0 done; 1 unexpected error; 2 wrong input, setting or port; 3 model or runtime; 4 inference; 5 video source;
6 mesh; 7 no candidate, overload or deadline; 8 cancelled; 130 interrupted.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import Annotated

import typer

from nearfar import __version__
from nearfar.cli import chat, devices, far, fleet, models, route, run, simulate, streams, up, watch
from nearfar.errors import InputError, NearfarError

app = typer.Typer(
    name="nearfar",
    help="AI inference where it should run: on the board, the gateway or the far end.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("up")(up.up)
app.command("nodes")(fleet.nodes)
app.command("services")(fleet.services)
app.add_typer(models.app, name="models")
app.add_typer(far.app, name="far")
app.add_typer(route.app, name="route")
app.command("run")(run.run)
app.command("watch")(watch.watch)
app.command("chat")(chat.chat)
app.command("streams")(streams.streams)
app.command("explain")(streams.explain)
app.command("devices")(devices.devices)
app.command("simulate")(simulate.simulate)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """AI inference where it should run: on the board, the gateway or the far end."""
    if version:
        print(f"nearfar {__version__}")
        raise typer.Exit


def tell(error: NearfarError, *, as_json: bool) -> None:
    """Print an error as a person or a program wants it, on standard error; with --json also what a program reads."""
    refusals = getattr(error, "refusals", ())
    if as_json:
        told = {"code": error.code, "message": error.message, "hint": error.hint, "refusals": list(refusals)}
        print(json.dumps({"error": told}))
        return
    print(f"nearfar: {error}", file=sys.stderr)
    for refusal in refusals:
        print(f"  {refusal['subject']}: {refusal['reason']} [{refusal['code']}]", file=sys.stderr)


def start(*, as_json: bool) -> None:
    """Run the verb of the command line; with --json an error of use, too, is one that a program can read."""
    if not as_json:
        app()
        return
    try:
        code = app(standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's exceptions; typer has its own copy of them
            raise
        verb = getattr(getattr(error, "ctx", None), "command_path", "nearfar")
        raise InputError(error.format_message(), f"See '{verb} --help'.") from None
    sys.exit(code or 0)


def main() -> None:
    """The console script."""
    as_json = "--json" in sys.argv
    try:
        try:
            start(as_json=as_json)
        except NearfarError as error:
            tell(error, as_json=as_json)
            sys.exit(error.exit_code)
        finally:
            sys.stdout.flush()  # a full disk is met here, where it can still be told
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer has nowhere to go
        print(f"nearfar: The output cannot be written: {error.strerror}. Make room on the disk.", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
