"""The repository itself: what every file must be, and what none may hold."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SKIPPED = {".git", ".venv", ".venvs", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis",
           ".import_linter_cache", "build", "dist", "out"}  # fmt: skip
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def repository_files() -> list[Path]:
    """What git holds or would add; without git, all but what is made here."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"], capture_output=True
    )
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if not SKIPPED & set(path.relative_to(ROOT).parts)]
    return [path for path in found if path.is_file()]


def texts() -> list[tuple[Path, str]]:
    found = []
    for path in repository_files():
        try:
            found.append((path, path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue  # a model or a picture
    return found


def offenders(pattern: str, *, but: tuple[str, ...] = ()) -> list[str]:
    """Places where the pattern stands, as `file:line`."""
    return [
        f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, hit.start()) + 1}: {hit[0]}"
        for path, text in texts()
        if str(path.relative_to(ROOT)) not in but
        for hit in re.finditer(pattern, text)
    ]


THIS = str(Path(__file__).relative_to(ROOT))


def test_no_index_and_no_registry_is_named() -> None:
    """Where packages come from is the business of who installs."""
    assert offenders(r"--(?:extra-)?index-url|PIP_INDEX_URL|find-links|pypi\.|//[\w.-]*registry", but=(THIS,)) == []


def test_no_path_of_one_machine() -> None:
    assert offenders(r"(?<![\w.])/(?:home|Users|work|root)/[\w.]+", but=(THIS,)) == []


def test_no_secret() -> None:
    assert offenders(r"-----BEGIN (?:\w+ )?PRIVATE KEY|\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9]{20,}", but=(THIS,)) == []


def test_nothing_large_is_in_the_repository() -> None:
    large = {str(path.relative_to(ROOT)) for path in repository_files() if path.stat().st_size > 500_000}
    near = {f"src/nearfar/models/embedded/facts/facts-{name}" for name in ("q8_0.gguf", "q80.bin")}
    assert large <= near, "data and weights stay outside, but for the embedded models"
    assert all((ROOT / name).stat().st_size < 1_500_000 for name in large)


def pinned() -> dict[str, str]:
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9][\w.-]*)==([\w.!+]+)( ; .*)?", line)
            assert match, f"constraints.txt: {line!r} is not name==version"
            name = canonical(match[1])
            assert name not in found, f"{name} stands twice in constraints.txt"
            found[name] = match[2]
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(*extras: str) -> dict[str, str]:
    """Requirements of the package and these extras, by canonical name."""
    texts = [*PROJECT["dependencies"], *(one for extra in extras for one in PROJECT["optional-dependencies"][extra])]
    found = {}
    for text in texts:
        match = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?([^;]*)", text)
        assert match
        found[canonical(match[1])] = match[2].strip()
    return found


def test_everything_that_make_installs_is_pinned_within_its_bounds() -> None:
    specifiers = pytest.importorskip("packaging.specifiers", reason="packaging is not installed; make test brings it")
    pins = pinned()
    for name, bounds in wanted("litert", "hub", "test", "lint").items():
        assert name in pins, f"{name} is not in constraints.txt"
        assert specifiers.SpecifierSet(bounds).contains(pins[name]), f"{name} {pins[name]} is not {bounds}"
    assert {"hatchling", "editables"} <= set(pins), "what builds the package is pinned too"
    assert not {"torch", "openvino", "nearfar"} & set(pins)


def test_what_an_installed_package_needs_is_pinned() -> None:
    """Dependencies of dependencies, as far as they are installed here."""
    import importlib.metadata

    requirements = pytest.importorskip(
        "packaging.requirements", reason="packaging is not installed; make test brings it"
    )
    pins = pinned()
    for name in pins:
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for text in needs:
            need = requirements.Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                assert canonical(need.name) in pins, f"{name} needs {need.name}, which constraints.txt does not pin"


def test_the_extras_are_complete() -> None:
    extras = {"language", "litert", "openvino", "openvino-genai", "hub", "plots", "track", "train", "test", "lint"}
    assert set(PROJECT["optional-dependencies"]) == extras
    makefile = (ROOT / "Makefile").read_text()
    for named in re.findall(r"\[([a-z,]+)\]'", makefile):
        assert set(named.split(",")) <= set(PROJECT["optional-dependencies"]), named
    for extra in ("litert", "openvino", "hub", "train"):
        readme = (ROOT / "README.md").read_text() + (ROOT / "docs" / "explanation-dependencies.md").read_text()
        assert f"`{extra}`" in readme, f"the extra {extra} is told nowhere"


def test_every_import_of_another_is_a_stated_dependency() -> None:
    """A package that is only there because another one needs it can vanish with the next version."""
    import sys

    stated = {canonical(name) for name in wanted(*PROJECT["optional-dependencies"])}
    provides = {
        "cv2": "opencv-python-headless", "zenoh": "eclipse-zenoh", "multipart": "python-multipart",
        "ai_edge_litert": "ai-edge-litert", "prometheus_client": "prometheus-client",
        "huggingface_hub": "huggingface-hub",
    }  # fmt: skip
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for top in {name.partition(".")[0] for name in names} - {"nearfar", *sys.stdlib_module_names}:
                assert canonical(provides.get(top, top)) in stated, f"{path.relative_to(ROOT)} imports {top}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_every_module_says_what_it_is_and_is_not_too_long(path: Path) -> None:
    text = path.read_text()
    assert (ast.get_docstring(ast.parse(text)) or "").strip(), "a module begins with a docstring"
    assert text.count("\n") <= 500, "no file is over 500 lines: cut it where its second subject begins"


def test_nothing_is_unpickled_or_evaluated() -> None:
    """What comes from a file or from the mesh must never become code."""
    bad = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                bad += [
                    f"{path.name}: {alias.name}"
                    for alias in node.names
                    if alias.name in ("pickle", "marshal", "shelve")
                ]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                bad.append(f"{path.name}:{node.lineno}: {node.func.id}")
            elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
                safe = isinstance(node.value, ast.Constant) and node.value.value is False
                bad += [] if safe else [f"{path.name}: {node.arg}"]
    assert bad == []


def test_the_stages_of_ci_are_the_targets_of_make() -> None:
    run = ROOT / ".ci" / "run"
    assert run.stat().st_mode & 0o111, ".ci/run can be executed"
    assert subprocess.run(["bash", "-n", str(run)], capture_output=True).returncode == 0
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test", "lint", "bench", "docs", "clean", "help"):
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target
    for target in re.findall(r"^make (\w+)", run.read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_version_stands_in_one_place_more_only() -> None:
    from nearfar import __version__

    assert PROJECT["version"] == __version__
    assert f"[{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
