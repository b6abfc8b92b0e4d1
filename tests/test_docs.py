"""What the documentation says exists: verbs, options, settings, links, dependencies, files of the tree."""

from __future__ import annotations

import re
import runpy
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main

from nearfar import settings
from nearfar.cli.main import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *ROOT.glob("recipes/**/*.md")])
PROGRAM: Any = typer.main.get_command(app)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# -- the command line --------------------------------------------------------------------------------------------------


def test_the_reference_of_the_command_line_is_what_the_program_takes() -> None:
    made = runpy.run_path(str(DOCS / "generate_cli.py"))["page"]()
    assert (DOCS / "reference-cli.md").read_text() == made, "run: make docs"


def verbs(command: Any = PROGRAM, path: tuple[str, ...] = ("nearfar",)) -> dict[tuple[str, ...], Any]:
    found = {path: command}
    for name, member in getattr(command, "commands", {}).items():
        found |= verbs(member, (*path, name))
    return found


def test_every_verb_and_option_is_in_the_reference_and_has_a_sentence() -> None:
    page = (DOCS / "reference-cli.md").read_text()
    sections = {part.partition("\n")[0]: part for part in page.split("\n## ")[1:]}
    for path, command in verbs().items():
        section = sections[" ".join(path)]
        assert command.help, path
        for param in command.params:
            assert param.help, (path, param.name)
            spellings = [*param.opts, *param.secondary_opts] if param.opts[0].startswith("-") else [param.name.upper()]
            for spelling in spellings:
                assert f"`{spelling}" in section, (path, spelling)


def test_every_exit_code_of_an_error_is_documented() -> None:
    from nearfar.errors import NearfarError

    page = (DOCS / "reference-cli.md").read_text()
    pending: list[type[NearfarError]] = [NearfarError]
    while pending:
        error = pending.pop()
        assert f"| {error.exit_code} |" in page, error
        pending.extend(error.__subclasses__())


def typed(page: Path) -> list[str]:
    """The lines of a page that a reader would type: `nearfar ...` in console and sh blocks, and in indented ones."""
    text = page.read_text()
    blocks = re.findall(r"^```(?:console|sh)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    blocks.append("\n".join(line[4:] for line in rest.splitlines() if line.startswith("    ")))
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [found[1] for line in lines if (found := re.match(r"(?:\w*\$ +)?(nearfar(?: .*)?)$", line))]


def parse(words: list[str]) -> None:
    """Raises what the program raises for arguments that it does not take. Runs nothing."""
    command, path = PROGRAM, ["nearfar"]
    while words and words[0] in getattr(command, "commands", {}):
        path.append(words[0])
        command = command.commands[words.pop(0)]
    assert command is not PROGRAM or words in (["--help"], ["--version"]), f"no verb: {words}"
    if words != ["--help"]:
        command.make_context(" ".join(path), words)


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "reference-cli.md"], ids=name_of)
def test_what_a_page_tells_to_type_is_taken(page: Path) -> None:
    for line in typed(page):
        words = shlex.split(line, comments=True)[1:]
        try:
            parse(words.copy())
        except Exception as error:
            raise AssertionError(f"{name_of(page)}: {line!r} is not taken: {error!r}") from error


def test_readme_and_tutorial_have_commands_that_are_checked() -> None:
    assert len(typed(ROOT / "README.md")) >= 6
    assert len(typed(DOCS / "tutorial.md")) >= 6
    with pytest.raises(Exception, match=r"(?i)no such option|nosuch"):
        parse(["up", "--nosuch"])
    with pytest.raises(AssertionError):
        parse(["teach"])


@pytest.mark.parametrize("folder", ["src", "docs", "examples", "recipes"])
def test_every_verb_that_is_spoken_of_exists(folder: str) -> None:
    """In messages, docstrings and pages: `nearfar VERB` or 'nearfar VERB', where the reader is told what to type."""
    known = {path[1] for path in verbs() if len(path) > 1}
    wrong = []
    for file in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.md")]:
        for verb in re.findall(r"[`'\"(: ]nearfar ([a-z]+)[`' ]", file.read_text()):
            sentence = re.search(rf"[`':] ?nearfar {verb}\b", file.read_text())
            if sentence and verb not in known:
                wrong.append(f"{name_of(file)}: nearfar {verb}")
    assert wrong == []


# -- settings, links, dependencies, the tree ---------------------------------------------------------------------------


def test_every_setting_is_in_the_reference() -> None:
    page = (DOCS / "reference-settings.md").read_text()
    for key in settings.catalogue():
        assert f"`{key.variable}`" in page, key.key
        assert key.description.rstrip(".") in page, key.key


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name_of(page)} links to {target}"
        assert file.is_relative_to(ROOT), f"{name_of(page)} links out of the repository: {target}"
        if anchor:
            assert anchor in anchors(file), f"{name_of(page)} links to {target}"


def test_every_page_is_listed() -> None:
    index = (DOCS / "README.md").read_text()
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    """`docs/...`, `src/...`, `tests/...` and the like in a page or beside it."""
    if page.name == "CHANGELOG.md":
        return  # speaks of the past
    for name in re.findall(r"`((?:docs|src|tests|benchmarks|examples|recipes)/[\w./-]+\.\w+)`", page.read_text()):
        assert (ROOT / name).exists(), f"{name_of(page)} names {name}"


def test_every_dependency_is_explained() -> None:
    page = (DOCS / "explanation-dependencies.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {re.split(r"[\[<>=!~; ]", text)[0].lower() for text in wanted} - {"nearfar"}
    listed = {name.lower() for name in re.findall(r"^\| `([\w.-]+)`", page, re.MULTILINE)}
    assert names - listed == set(), "not explained"
    assert listed - names == set(), "explained, but not a dependency"


def test_every_room_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for room in sorted((ROOT / "src" / "nearfar").iterdir()):
        if (room / "__init__.py").exists():
            assert re.search(rf"^ *{room.name}/ +\S", readme, re.MULTILINE), room.name
    for room in re.findall(r"^ +(\w+)/ +", readme.partition("src/nearfar/")[2].partition("```")[0], re.MULTILINE):
        assert (ROOT / "src" / "nearfar" / room).is_dir(), f"README.md names {room}/"


def test_no_help_text_loses_its_brackets() -> None:
    """Help is read as rich's markup: [hub] would vanish from it."""
    for path, command in verbs().items():
        for text in (command.help, *(param.help for param in command.params)):
            assert not re.search(r"\[[a-z]+\]", text or ""), (path, text)
