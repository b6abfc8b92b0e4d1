"""Settings: what is stated wins in one order, and what cannot be meant is refused with what to write instead."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar import settings
from nearfar.errors import SettingsError

PAGE = Path(__file__).parents[1] / "docs" / "reference-settings.md"


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def test_everything_has_a_default_a_source_and_words() -> None:
    loaded = settings.load({}, {}, Path("/"))
    for key in settings.catalogue():
        assert key.description.strip()
        assert key.allowed
        assert loaded.sources[key.key].startswith("default")
        if key.default is not None and key.key != "node.threads":
            assert loaded.value(key.key) == key.default
    assert loaded.home.name == "nearfar"
    assert loaded.node.threads >= 1
    assert "less one" in loaded.sources["node.threads"]


def test_precedence_from_weakest_to_strongest(cwd: Path, home: Path) -> None:
    env = {"NEARFAR_HOME": str(home)}
    assert settings.load({}, env, cwd).gateway.port == 8080
    (home / "nearfar.toml").write_text("[gateway]\nport = 1\n")
    first = settings.load({}, env, cwd)
    assert (first.gateway.port, first.sources["gateway.port"]) == (1, f"from {home}/nearfar.toml [gateway] port")
    (cwd / "nearfar.toml").write_text("[gateway]\nport = 2\n")
    second = settings.load({}, env, cwd)
    assert (second.gateway.port, second.sources["gateway.port"]) == (2, f"from {cwd}/nearfar.toml [gateway] port")
    env["NEARFAR_GATEWAY_PORT"] = "3"
    third = settings.load({}, env, cwd)
    assert (third.gateway.port, third.sources["gateway.port"]) == (3, "from NEARFAR_GATEWAY_PORT")
    fourth = settings.load({"gateway.port": 4}, env, cwd)
    assert (fourth.gateway.port, fourth.sources["gateway.port"]) == (4, "from flag --port")
    assert settings.load({"gateway.port": None}, env, cwd).gateway.port == 3


def test_home_may_come_from_flag_environment_and_working_file(cwd: Path, home: Path) -> None:
    (cwd / "nearfar.toml").write_text('home = "state"\n')
    assert settings.load({}, {}, cwd).home == cwd / "state"
    assert settings.load({}, {"NEARFAR_HOME": str(home)}, cwd).home == home
    assert settings.load({"home": "there"}, {"NEARFAR_HOME": str(home)}, cwd).home == cwd / "there"


def test_a_home_file_that_sets_home_is_refused(cwd: Path, home: Path) -> None:
    (home / "nearfar.toml").write_text('home = "elsewhere"\n')
    with pytest.raises(SettingsError, match="sets home"):
        settings.load({"home": home}, {}, cwd)


def test_config_names_another_file_which_must_exist(cwd: Path) -> None:
    (cwd / "nearfar.toml").write_text("[gateway]\nport = 1\n")
    (cwd / "other.toml").write_text("[gateway]\nport = 2\n")
    assert settings.load({"config": "other.toml"}, {}, cwd).gateway.port == 2
    assert settings.load({}, {"NEARFAR_CONFIG": "other.toml"}, cwd).gateway.port == 2
    with pytest.raises(SettingsError, match=r"no file .*absent\.toml \(NEARFAR_CONFIG\)"):
        settings.load({}, {"NEARFAR_CONFIG": "absent.toml"}, cwd)


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("NEARFAR_MESH_DISCOVER", "no", "mesh.discover", False),
        ("NEARFAR_MESH_DISCOVER", "TRUE", "mesh.discover", True),
        ("NEARFAR_MESH_JOIN", "tcp/a:1, tcp/b:2", "mesh.join", ("tcp/a:1", "tcp/b:2")),
        ("NEARFAR_MESH_JOIN", "", "mesh.join", ()),
        ("NEARFAR_GATEWAY_MAX_BODY", "1MiB", "gateway.max_body", 1048576),
        ("NEARFAR_MESH_LEASE_MS", "3s", "mesh.lease_ms", 3000),
        ("NEARFAR_EMULATE_DELAY_MS", "1.5", "emulate.delay_ms", 1.5),
        ("NEARFAR_EMULATE_COMPUTE", "4", "emulate.compute", 4.0),
        ("NEARFAR_NODE_ID", "gate-1", "node.id", "gate-1"),
        ("NEARFAR_NODE_THREADS", "3", "node.threads", 3),
        ("NEARFAR_GATEWAY_API_KEY_FILE", "", "gateway.api_key_file", ""),
    ],
)
def test_text_becomes_the_type_of_its_key(cwd: Path, variable: str, text: str, key: str, value: object) -> None:
    loaded = settings.load({}, {variable: text}, cwd)
    assert loaded.value(key) == value
    assert type(loaded.value(key)) is type(value)
    assert loaded.sources[key] == f"from {variable}"


def test_a_size_and_a_duration_may_be_written_in_a_file(cwd: Path) -> None:
    (cwd / "nearfar.toml").write_text('[gateway]\nmax_body = "2MiB"\ndefault_deadline_ms = "0.5s"\n')
    loaded = settings.load({}, {}, cwd).gateway
    assert (loaded.max_body, loaded.default_deadline_ms) == (2 * 1024**2, 500)


def test_a_relative_path_is_relative_to_who_states_it(cwd: Path, home: Path) -> None:
    (home / "nearfar.toml").write_text('[gateway]\napi_key_file = "keys"\ntls_cert = "/etc/cert.pem"\n')
    loaded = settings.load({"gateway.tls_key": "key.pem"}, {"NEARFAR_HOME": str(home)}, cwd).gateway
    assert loaded.api_key_file == str(home / "keys")
    assert loaded.tls_cert == "/etc/cert.pem"
    assert loaded.tls_key == str(cwd / "key.pem")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[gatway]\nport = 1", r"unknown section \[gatway\]. Did you mean \[gateway\]\?"),
        ("[gateway]\nprot = 1", r"gateway\.prot, which is no setting\. Did you mean gateway\.port\?"),
        ("[gateway]\nzzzzzz = 1", r"reference-settings"),
        ("port = 1", r"unknown section \[port\]"),
        ("gateway = 1", r"not a section\. Write \[gateway\]"),
        ('[gateway]\nport = "x"', r"gateway\.port = 'x' \(from .*nearfar\.toml \[gateway\] port\).*0 to 65535"),
        ("[gateway]\nport = 65536", r"65536 .*whole number from 0 to 65535"),
        ("[gateway]\nport = true", r"True .*whole number"),
        ("[gateway]\nport = 1.5", r"1\.5 .*whole number"),
        ("[mesh]\ndiscover = 1", r"discover = 1 .*true or false"),
        ('[mesh]\njoin = "tcp/a:1"', r"a list of strings"),
        ("[mesh]\njoin = [1]", r"a list of strings"),
        ('[mesh]\nlease_ms = "soon"', r"or a duration such as 2s"),
        ('[gateway]\nmax_body = "big"', r"or a size such as 64MiB"),
        ("[emulate]\ncompute = 0.5", r"a number from 1"),
        ("[emulate]\ncompute = nan", r"a number from 1"),
        ("[emulate]\nloss = 1.01", r"a number from 0 to 1"),
        ("[placement]\nalpha = inf", r"a number from 0"),
        ('[node]\nid = "../etc"', r"lower-case letters"),
        ("home = 3", r"home = 3"),
        ('home = ""', r"home = ''"),
        ("[gateway\nport", r"cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_place_and_remedy(cwd: Path, text: str, says: str) -> None:
    (cwd / "nearfar.toml").write_text(text)
    with pytest.raises(SettingsError, match=says) as caught:
        settings.load({}, {}, cwd)
    assert caught.value.hint


def test_a_file_that_is_not_text_is_refused(cwd: Path) -> None:
    (cwd / "nearfar.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="cannot be read"):
        settings.load({}, {}, cwd)


def test_misspelt_variables_are_refused_and_foreign_ones_left_alone(cwd: Path) -> None:
    with pytest.raises(SettingsError, match="Did you mean NEARFAR_GATEWAY_PORT"):
        settings.load({}, {"NEARFAR_GATEWAY_PRT": "1"}, cwd)
    with pytest.raises(SettingsError, match="Did you mean NEARFAR_GATEWAY_PORT"):
        settings.load({}, {"NEARFAR_GATWAY_PORT": "1"}, cwd)
    with pytest.raises(SettingsError, match="no setting"):
        settings.load({}, {"NEARFAR_MESH_QQQQQQ": "1"}, cwd)
    settings.load({}, {"NEARFAR_TEST_DATA": "/data", "PATH": "/bin", "NEARFAR": "1"}, cwd)


def test_an_unknown_flag_is_refused(cwd: Path) -> None:
    with pytest.raises(SettingsError, match=r"Did you mean mesh\.listen"):
        settings.load({"mesh.listn": []}, {}, cwd)


@given(
    st.sampled_from(sorted(k.variable for k in settings.catalogue())), st.text(alphabet=st.characters(codec="utf-8"))
)
def test_no_text_in_the_environment_raises_anything_else(variable: str, text: str) -> None:
    try:
        loaded = settings.load({}, {variable: text.replace("\0", "")}, Path("/nowhere"))
    except SettingsError as error:
        assert error.hint
    else:
        for section in settings.SECTIONS:  # what got through is of its declared type and range
            part = getattr(loaded, section)
            assert msgspec.convert(msgspec.to_builtins(part), type(part)) == part


def test_every_setting_is_documented() -> None:
    made = runpy.run_path(str(PAGE.with_name("generate_settings.py")))["reference"]()
    assert PAGE.read_text() == made, "run: make docs"
    for key in settings.catalogue():
        assert f"`{key.variable}`" in PAGE.read_text()


def test_loading_writes_nothing(cwd: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    settings.load({"home": tmp_path / "not-there"}, {}, cwd)
    assert sorted(tmp_path.rglob("*")) == before


def test_importing_settings_loads_nothing_heavy() -> None:
    heavy = ("numpy", "onnxruntime", "zenoh", "cv2", "av", "fastapi", "platformdirs", "asyncio", "psutil", "typer")
    code = f"import sys, nearfar.settings; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_are_values(cwd: Path) -> None:
    loaded = settings.load({}, {}, cwd)
    assert loaded == settings.load({}, {}, cwd)
    target: Any = loaded.gateway
    with pytest.raises(AttributeError):
        target.port = 1
