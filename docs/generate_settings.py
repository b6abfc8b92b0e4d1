"""Prints docs/reference-settings.md from the settings themselves.

Run: python docs/generate_settings.py > docs/reference-settings.md
"""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import msgspec

from nearfar.settings import SECTIONS, Key, catalogue
from nearfar.settings_privacy import KeySettings


def reference() -> str:
    """The page `docs/reference-settings.md`, in Markdown."""
    lines = [_PAGE]
    by_section: dict[str, list[Key]] = {}
    for key in catalogue():
        section, _, _ = key.key.rpartition(".")
        by_section.setdefault(section, []).append(key)
    for section, members in by_section.items():
        doc = (SECTIONS[section].__doc__ or "").strip() if section else "At the top of the file."
        lines += [f"## {f'[{section}]' if section else 'home'}", "", doc, ""]
        lines += ["| key | variable | default | allowed | meaning |", "|---|---|---|---|---|"]
        for key in members:
            name = key.key.rpartition(".")[2]
            default = "" if key.default is None else f"`{_shown(key.default)}`"
            lines.append(f"| `{name}` | `{key.variable}` | {default} | {key.allowed} | {key.description} |")
        lines.append("")
    return "\n".join([*lines, *_keys()])


def _keys() -> list[str]:
    """The table of `[[keys]]`: entries of a list, which have neither flags nor variables."""
    lines = ["## [[keys]]", "", KeySettings.__doc__ or "", "", _KEYS, "| key | default | meaning |", "|---|---|---|"]
    hints = get_type_hints(KeySettings, include_extras=True)
    for field in msgspec.structs.fields(KeySettings):
        default = "" if field.required else "unset" if field.default is None else f"`{_shown(field.default)}`"
        lines.append(f"| `{field.name}` | {default} | {get_args(hints[field.name])[1].description} |")
    return [*lines, ""]


def _shown(value: Any) -> str:
    """A default as TOML writes it."""
    return msgspec.json.encode(value).decode()


_PAGE = """\
# Settings

Made by `python docs/generate_settings.py`; do not edit by hand.

A value comes from the first of these that states it:

1. a flag on the command line;
2. an environment variable;
3. `nearfar.toml` in the working directory, or the file that `--config` or `NEARFAR_CONFIG` names instead of it;
4. `nearfar.toml` in the home folder;
5. the default.

Every value remembers its source (`Settings.sources`), and a message about it says where it came from. In the
environment a list is written with commas, and truth as `true` or `false`. A relative path in a file is relative to that
file's folder, elsewhere to the working directory. An unknown name is an error, not a no-op.

```toml
[node]
id = "gate"
models = ["yard"]

[gateway]
port = 8080
max_body = "64MiB"
```
"""

_KEYS = """\
Only in a file, once for each key; the working directory's list replaces that of the home folder. What `[privacy] level`
forbids no key can allow.

```toml
[[keys]]
name = "kitchen"
key_env = "KITCHEN_KEY"
privacy = "fleet"

[[keys]]
name = "office"
sha256 = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"
on_personal_data = "redact"
max_cost = 0.02
models = ["auto"]
```
"""

if __name__ == "__main__":
    print(reference(), end="")
