"""Cameras for tests: small servers on the loopback that can be told to break off."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import cv2

from tests.vision.helpers import HEIGHT, WIDTH, scene


class Camera:
    """Listens on a free port; each connection is served by `serve(connection, number)` in a thread."""

    def __init__(self, serve: Callable[[socket.socket, int], object]) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.connections = 0
        self.failures: list[BaseException] = []
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            thread = threading.Thread(target=self._run, args=(connection, self.connections), daemon=True)
            self.connections += 1
            self._threads.append(thread)
            thread.start()

    def _run(self, connection: socket.socket, number: int) -> None:
        with connection:
            try:
                self._serve(connection, number)
            except (OSError, EOFError):
                pass  # the client went away
            except BaseException as error:
                self.failures.append(error)

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in (self._accepting, *self._threads):
            thread.join(10)
        assert self.failures == []


def read_head(connection: socket.socket) -> str:
    """One request up to its empty line."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = connection.recv(1)
        if not piece:
            raise EOFError
        head += piece
    return head.decode()


def jpeg(index: int) -> bytes:
    return bytes(cv2.imencode(".jpg", scene(index)[0], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())


def serve_mjpeg(frames: int, *, cut: bool = False, status: str = "200 OK") -> Callable[[socket.socket, int], None]:
    """`scene(0)` and on as multipart/x-mixed-replace; `cut` breaks off within the last picture."""

    def serve(connection: socket.socket, number: int) -> None:
        read_head(connection)
        connection.sendall(
            f"HTTP/1.0 {status}\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n".encode()
        )
        for index in range(frames):
            data = jpeg(index)
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            last = cut and index == frames - 1
            connection.sendall(head + (data[: len(data) // 2] if last else data + b"\r\n"))

    return serve


def h264(frames: int) -> list[list[bytes]]:
    """The NAL units of each frame of `scene(0)` and on; each frame can be decoded by itself."""
    context = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    context.time_base = Fraction(1, 25)
    context.options = {"tune": "zerolatency", "g": "1", "preset": "ultrafast", "crf": "18"}
    packets: list[Any] = []
    for index in range(frames):
        picture = av.VideoFrame.from_ndarray(scene(index)[0], format="bgr24")
        picture.pts = index
        packets += context.encode(picture)
    packets += context.encode(None)
    return [
        [unit for unit in bytes(packet).replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if unit] for packet in packets
    ]


def serve_rtsp(frames: int, *, user: str = "") -> Callable[[socket.socket, int], None]:
    """A minimal RTSP 1.0 server (RFC 2326) with one H.264 track interleaved on TCP (RFC 6184, FU-A for large units)."""
    units = h264(frames)

    def serve(connection: socket.socket, number: int) -> None:
        sdp = (
            "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\n"
            "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track0\r\n"
        )
        while True:
            head = read_head(connection)
            method = head.partition(" ")[0]
            sequence = next(line[5:].strip() for line in head.split("\r\n") if line.lower().startswith("cseq:"))
            extra, body = "", ""
            if method == "OPTIONS":
                extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            elif user and "Authorization" not in head:
                challenge = 'WWW-Authenticate: Basic realm="t"'
                connection.sendall(f"RTSP/1.0 401 Unauthorized\r\nCSeq: {sequence}\r\n{challenge}\r\n\r\n".encode())
                continue
            elif method == "DESCRIBE":
                extra, body = f"Content-Type: application/sdp\r\nContent-Length: {len(sdp)}\r\n", sdp
            elif method == "SETUP":
                assert "RTP/AVP/TCP" in head, "the client asked for UDP"
                extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
            connection.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {sequence}\r\nSession: 1\r\n{extra}\r\n{body}".encode())
            if method == "PLAY":
                break
        packet_number = 0
        for index, frame in enumerate(units):
            payloads = [payload for unit in frame for payload in fragments(unit)]
            for at, payload in enumerate(payloads):
                marker = 0x80 if at == len(payloads) - 1 else 0
                rtp = struct.pack(">BBHII", 0x80, 96 | marker, packet_number & 0xFFFF, index * 3600, 7) + payload
                connection.sendall(struct.pack(">BBH", 0x24, 0, len(rtp)) + rtp)
                packet_number += 1

    return serve


def fragments(unit: bytes, size: int = 1300) -> list[bytes]:
    """Payloads of one NAL unit: itself, or FU-A pieces (RFC 6184, section 5.8)."""
    if len(unit) <= size:
        return [unit]
    indicator = (unit[0] & 0xE0) | 28
    pieces = [unit[1:][at : at + size] for at in range(0, len(unit) - 1, size)]
    return [
        bytes([indicator, (unit[0] & 0x1F) | (0x80 if n == 0 else 0) | (0x40 if n == len(pieces) - 1 else 0)]) + piece
        for n, piece in enumerate(pieces)
    ]


def serve_file(data: bytes, *, cut: int | None = None) -> Callable[[socket.socket, int], None]:
    """A file over HTTP without ranges; `cut` breaks off after that many bytes."""

    def serve(connection: socket.socket, number: int) -> None:
        read_head(connection)
        head = f"HTTP/1.0 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data[:cut])

    return serve
