"""Mutual TLS between nodes, with certificates made by the very commands that the documentation gives."""

from __future__ import annotations

import asyncio
import re
import shutil
import ssl
import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nearfar.mesh.base import Call
from nearfar.mesh.zenoh import ZenohMesh
from nearfar.mesh.zenoh_options import TlsFiles, ZenohOptions
from tests.waiting import until

PAGE = Path(__file__).parents[2] / "docs" / "how-to-connect-machines.md"
TLS = ("tls/127.0.0.1:0",)


def shell_blocks() -> list[str]:
    """What the page tells to type: the authority, then a node."""
    return re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def make_fleet(folder: Path, nodes: tuple[str, ...]) -> dict[str, TlsFiles]:
    """Certificates of one authority, by name of the node."""
    authority, node = shell_blocks()
    folder.mkdir()

    def run(script: str) -> None:
        done = subprocess.run(["bash", "-euc", script], cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    run(authority)
    for name in nodes:
        run(node.replace("NODE=gate", f"NODE={name}"))
    return {
        n: TlsFiles(str(folder / "fleet-ca.pem"), str(folder / f"{n}.pem"), str(folder / f"{n}.key")) for n in nodes
    }


@pytest.fixture(scope="module")
def fleets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TlsFiles]:
    """`a` and `b` have certificates of one authority, `stranger` has one of another."""
    if shutil.which("openssl") is None or shutil.which("bash") is None:
        pytest.skip("the commands openssl and bash are needed to make certificates")
    if not subprocess.run(["openssl", "version"], capture_output=True, text=True).stdout.startswith("OpenSSL 3"):
        pytest.skip("openssl is older than version 3")
    folder = tmp_path_factory.mktemp("tls")
    return make_fleet(folder / "ours", ("a", "b")) | make_fleet(folder / "theirs", ("stranger",))


@asynccontextmanager
async def meshes(*options: ZenohOptions) -> AsyncIterator[list[ZenohMesh]]:
    """Opened in order; an option's join of `first` becomes the endpoints of the first."""
    opened: list[ZenohMesh] = []
    loop = asyncio.get_running_loop()
    try:
        for option in options:
            join = opened[0].endpoints if option.join == ("first",) else option.join
            known = ZenohOptions(option.fleet, option.listen, join, option.discover, 1000, option.tls)
            opened.append(await loop.run_in_executor(None, ZenohMesh, known))
        async with asyncio.timeout(60):
            yield opened
    finally:
        for mesh in reversed(opened):
            await mesh.close()


def echo(call: Call) -> None:
    call.reply(call.head, [call.body])


def test_the_files_are_private_and_of_the_authority(fleets: dict[str, TlsFiles]) -> None:
    files = fleets["a"]
    assert Path(files.key).stat().st_mode & 0o077 == 0
    check = ["openssl", "verify", "-CAfile", files.authority]
    assert subprocess.run([*check, files.certificate], capture_output=True).returncode == 0
    assert subprocess.run([*check, fleets["stranger"].certificate], capture_output=True).returncode != 0


def test_two_nodes_of_one_authority_talk(fleets: dict[str, TlsFiles]) -> None:
    async def main() -> None:
        fleet = f"tls-{uuid.uuid4().hex[:8]}"
        a = ZenohOptions(fleet, TLS, discover=False, tls=fleets["a"])
        b = ZenohOptions(fleet, TLS, ("first",), discover=False, tls=fleets["b"])
        async with meshes(a, b) as (first, second):
            assert first.endpoints[0].startswith("tls/127.0.0.1:")
            said: list[bytes] = []
            first.subscribe("report", lambda _, payload: said.append(payload))
            served = first.serve("service/a/echo", echo)
            await until(lambda: second.alive("service/a/echo"), "b sees a's service")
            answer = await second.request("service/a/echo", b"head", [b"body"], 10)
            assert (answer.head, bytes(answer.body)) == (b"head", b"body")
            while not said:  # a publication is soft: said again until it is heard
                second.publish("report", b"over TLS")
                await asyncio.sleep(0.02)
            assert set(said) == {b"over TLS"}
            served.close()

    asyncio.run(main())


def test_who_is_not_of_the_authority_is_refused(fleets: dict[str, TlsFiles]) -> None:
    """A stranger's certificate, none at all, and plain TCP; each asks and is asked, while a friend gets through."""

    async def main() -> None:
        fleet = f"tls-{uuid.uuid4().hex[:8]}"
        a = ZenohOptions(fleet, TLS, discover=False, tls=fleets["a"])
        stranger = ZenohOptions(fleet, TLS, ("first",), discover=False, tls=fleets["stranger"])
        plain = ZenohOptions(fleet, ("tcp/127.0.0.1:0",), discover=False)
        async with meshes(a, stranger, plain) as (first, other, open_one):
            first.announce("node/a/1")
            other.announce("node/stranger/1")
            open_one.announce("node/plain/1")
            joins = (*first.endpoints, *other.endpoints, *open_one.endpoints)
            friend = ZenohOptions(fleet, TLS, joins, discover=False, tls=fleets["b"])
            async with meshes(friend) as (second,):
                second.announce("node/b/1")
                await until(lambda: second.alive("node/a/1") and first.alive("node/b/1"), "the friends see each other")
                for _ in range(20):  # as long as ten leases of an honest start need at most
                    await asyncio.sleep(0.1)
                    assert not first.alive("node/stranger/1")
                    assert not first.alive("node/plain/1")
                    assert not second.alive("node/stranger/1")
                    assert not second.alive("node/plain/1"), "a node with TLS must not connect without it"
                    assert not other.alive("node/a/1")
                    assert not open_one.alive("node/a/1")

    asyncio.run(main())


def test_multicast_does_not_lead_around_tls(fleets: dict[str, TlsFiles]) -> None:
    """Anybody may answer a multicast and name a TCP endpoint: a node with TLS must not follow."""

    async def main() -> None:
        fleet = f"tls-{uuid.uuid4().hex[:8]}"
        plain = ZenohOptions(fleet, ("tcp/127.0.0.1:0",))
        plain_too = ZenohOptions(fleet, ("tcp/127.0.0.1:0",))
        secured = ZenohOptions(fleet, TLS, tls=fleets["a"])
        async with meshes(plain, secured, plain_too) as (rogue, node, witness):
            rogue.announce("node/rogue/1")
            node.announce("node/a/1")
            await until(lambda: witness.alive("node/rogue/1"), "multicast works between the plain ones")
            for _ in range(20):
                await asyncio.sleep(0.1)
                assert not rogue.alive("node/a/1")
                assert not witness.alive("node/a/1")
                assert not node.alive("node/rogue/1")

    asyncio.run(main())


def test_with_certificates_plain_endpoints_mean_tls(fleets: dict[str, TlsFiles]) -> None:
    """The default is to listen at `tcp/127.0.0.1:0`: with certificates that is not served in the clear."""

    async def main() -> None:
        fleet = f"tls-{uuid.uuid4().hex[:8]}"
        a = ZenohOptions(fleet, discover=False, tls=fleets["a"])
        async with meshes(a) as (first,):
            first.announce("node/a/1")
            port = first.endpoints[0].rpartition(":")[2]
            assert first.endpoints == (f"tls/127.0.0.1:{port}",)
            b = ZenohOptions(fleet, join=(f"tcp/127.0.0.1:{port}",), discover=False, tls=fleets["b"])
            async with meshes(b) as (second,):
                await until(lambda: second.alive("node/a/1"), "b joined over TLS")

    asyncio.run(main())


def test_a_client_without_a_certificate_is_cut_off(fleets: dict[str, TlsFiles]) -> None:
    async def main() -> None:
        options = ZenohOptions(f"tls-{uuid.uuid4().hex[:8]}", TLS, discover=False, tls=fleets["a"])
        async with meshes(options) as (node,):
            host, _, port = node.endpoints[0].removeprefix("tls/").partition(":")
            context = ssl.create_default_context(cafile=fleets["a"].authority)
            context.check_hostname = False
            with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required|handshake.failure|unknown"):
                reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
                try:
                    writer.write(b"\0" * 64)
                    await asyncio.wait_for(reader.read(1), 20)  # TLS 1.3 tells the refusal at the first read
                finally:
                    writer.close()

    asyncio.run(main())
