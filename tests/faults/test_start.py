"""What keeps a node from starting is said in a sentence with what to type, and nothing else is left running."""

from __future__ import annotations

import os
import random
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.commands import nearfar
from tests.fleetlab import Lab, fake
from tests.fleetlab import lab as lab
from tests.models.zoo import DETECTORS
from tests.realdata import need_data


@pytest.mark.slow
def test_a_busy_port_ends_the_node_with_what_to_type_and_starts_nothing(lab: Lab, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        node = lab.node("one", [fake(tmp_path, "echo")], flags=["--port", port], wait=False)
        assert node.wait_ended(60) == 2
        assert f"Port {port} on 127.0.0.1 cannot be used" in node.stderr and "--port" in node.stderr
        mesh = lab.node("two", [fake(tmp_path, "echo")], flags=["--listen", f"tcp/127.0.0.1:{port}"], wait=False)
        assert mesh.wait_ended(60) == 2
        assert f"tcp/127.0.0.1:{port} is taken" in mesh.stderr and "--listen" in mesh.stderr
    assert "Traceback" not in node.stderr + mesh.stderr
    assert not lab.processes()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "random", "empty", "a text"])
@pytest.mark.parametrize("name", ["yolox-nano", "ssd"])
def test_a_damaged_model_file_is_refused_by_name_and_not_stored(tmp_path: Path, name: str, damage: str) -> None:
    source = need_data("detection_models", DETECTORS[name][0])
    whole = source.read_bytes()
    made = {
        "truncated": whole[: len(whole) // 2],
        "random": random.Random(7).randbytes(100_000),
        "empty": b"",
        "a text": b"not a model at all\n" * 50,
    }[damage]
    file = tmp_path / f"bad{source.suffix}"
    file.write_bytes(made)
    said = nearfar("models", "add", file, home=tmp_path / "home")
    assert said.code == 3, said.err
    assert file.name in said.sentence
    assert not list((tmp_path / "home").rglob("*.toml"))
    up = nearfar("up", "--port", "0", "--model", file, home=tmp_path / "home")
    assert up.code == 3 and file.name in up.sentence


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("a small file system can be mounted by root only")
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.slow
def test_a_full_disk_is_said_with_what_is_missing_and_nothing_half_written_stays(
    small_disk: Path, tmp_path: Path
) -> None:
    large = need_data("detection_models", DETECTORS["yolox-nano"][0])
    home = small_disk / "home"
    said = nearfar("models", "add", large, home=home)
    assert said.code == 3, said.err
    assert "full" in said.sentence and "MiB" in said.sentence
    assert not [path for path in home.rglob("*") if path.is_file() and path.stat().st_size > 0]

    (small_disk / "filler").write_bytes(bytes((1 << 20) - _used(small_disk)))
    up = nearfar("up", "--port", "0", home=home)
    assert up.code == 3, up.err
    assert "No space left" in up.sentence
    named = nearfar("up", "--port", "0", "--name", "pi", home=home)
    assert named.code == 3, named.err
    assert "No space left" in named.sentence and "NEARFAR_HOME" in named.sentence


def _used(place: Path) -> int:
    stat = os.statvfs(place)
    return (stat.f_blocks - stat.f_bavail) * stat.f_frsize
