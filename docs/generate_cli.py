"""Prints docs/reference-cli.md: every verb, argument and option, read from the program itself.

Run: python docs/generate_cli.py > docs/reference-cli.md
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer.main

from nearfar.cli import main

HEAD = """\
# Command line

Made by `python docs/generate_cli.py`; do not edit by hand.

Every verb takes `--help` (`-h`). What a program reads goes to standard output, everything else to standard error.
`--json` prints JSON, errors too: `{"error": {"code": ..., "message": ..., "hint": ..., "refusals": [...]}}`.
"""


def commands(group: Any, path: tuple[str, ...] = ("nearfar",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every verb with its words, the group's own call first, in the order of `--help`."""
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        if not command.hidden:
            yield from commands(command, (*path, name))


def page() -> str:
    """The page in Markdown."""
    lines = [HEAD, *_exit_codes()]
    for path, command in commands(typer.main.get_command(main.app)):
        lines += [f"## {' '.join(path)}", "", *_verb(path, command)]
    return "\n".join(lines).rstrip() + "\n"


def _exit_codes() -> list[str]:
    told = inspect.cleandoc(main.__doc__ or "").partition("Exit codes: ")[2].rstrip(".\n").replace("\n", " ")
    rows = [code.strip().partition(" ") for code in told.split(";")]
    return ["## Exit codes", "", "| code | meaning |", "|---|---|", *(f"| {n} | {m} |" for n, _, m in rows), ""]


def _verb(path: tuple[str, ...], command: Any) -> list[str]:
    params = [param for param in command.params if not getattr(param, "hidden", False)]
    arguments = [param for param in params if not param.opts[0].startswith("-")]
    options = [param for param in params if param.opts[0].startswith("-")]
    usage = [*path, *(f"{p.name.upper()}" if p.required else f"[{p.name.upper()}]" for p in arguments)]
    if options:
        usage.append("[OPTIONS]")
    if getattr(command, "commands", None):
        usage.append("[VERB ...]")
    lines = [f"    {' '.join(usage)}", "", inspect.cleandoc(command.help or "").replace("\n", " "), ""]
    if arguments:
        lines += [
            "| argument | meaning |",
            "|---|---|",
            *(f"| `{p.name.upper()}` | {_meaning(p)} |" for p in arguments),
        ]
        lines.append("")
    if options:
        lines += ["| option | meaning |", "|---|---|", *(f"| {_spelt(p)} | {_meaning(p)} |" for p in options), ""]
    return lines


def _spelt(option: Any) -> str:
    value = "" if option.is_flag else f" {option.opts[0].lstrip('-').upper().replace('-', '_')}"
    spellings = [f"`{name}{value}`" for name in option.opts] + [f"`{name}`" for name in option.secondary_opts]
    return ", ".join(spellings)


def _meaning(param: Any) -> str:
    told = str(param.help or "").replace("|", "\\|").replace("\n", " ")
    if param.multiple:
        told += " May be given more than once."
    if param.default not in (None, False, "", ()) and not callable(param.default):
        told += f" Default: `{param.default}`."
    return told


if __name__ == "__main__":
    print(page(), end="")
