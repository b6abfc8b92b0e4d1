"""What can be told of a model file from its first bytes. A store names files by their hash, so no suffix is trusted."""

from __future__ import annotations

from pathlib import Path

from nearfar.errors import ModelFileError

TFLITE_IDENTIFIER = b"TFL3"
"""File identifier at bytes 4 to 8 of a TensorFlow Lite flatbuffer (schema.fbs, `file_identifier`)."""
GGUF_MAGIC = b"GGUF"
"""First bytes of a GGUF file (its specification, "File structure")."""
FAR_MARK = b"nearfar-far"
"""In a file that describes a far end: the value of its `format`."""
IR_MARK = "nearfar-openvino-text"
"""Name of the first member of a tar that holds a language model as OpenVINO's folder."""
_HEAD = 4096


def format_of(path: Path) -> str:
    """`tflite`, `openvino` (IR), `gguf`, `openvino-text`, `far`, `fake`, `fake-text` or `onnx`, from the content.

    ONNX is protobuf without a magic number, so `onnx` means "none of the others, and starts like a protobuf message".
    Raises `ModelFileError` when the file is absent, unreadable, empty or of none of these.
    """
    head = read_head(path)
    if head[4:8] == TFLITE_IDENTIFIER:
        return "tflite"
    if head[:4] == GGUF_MAGIC:
        return "gguf"
    if head.startswith(IR_MARK.encode() + b"\0"):
        return "openvino-text"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith((b"<?xml", b"<net")):
        return "openvino"
    if FAR_MARK in head and b"\0" not in head:
        return "far"
    if b"nearfar-fake" in head and b"\0" not in head:
        return "fake-text" if b"nearfar-fake-text" in head else "fake"
    # ModelProto: a field number of 1 to 25 with wire type varint or length (onnx.proto); a text file may look so too.
    if head[0] & 0x07 in (0, 2) and 1 <= head[0] >> 3 <= 25 and not _is_text(head):
        return "onnx"
    raise ModelFileError(
        f"{path.name} is of no known model format.", "Give an .onnx, .tflite or .gguf file, or an OpenVINO .xml."
    )


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)


def read_head(path: Path) -> bytes:
    """The first 4 KiB. Raises `ModelFileError` when there is nothing to read."""
    try:
        if path.is_dir():
            raise ModelFileError(f"{path} is a folder.", "Give the model file itself.")
        if path.exists() and not path.is_file():  # a pipe would be waited for, and a device may have no end
            raise ModelFileError(f"{path} is a pipe or a device.", "Give the model file itself.")
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        why = error.strerror or str(error)
        raise ModelFileError(f"{path} cannot be read: {why}.", "Check the path and its permissions.") from error
    if not head:
        raise ModelFileError(f"{path} is empty.", "Fetch or export the model again.")
    return head


def check_tflite(path: Path) -> None:
    """Raise `ModelFileError` unless the file starts as a TensorFlow Lite flatbuffer whose root table lies inside it.

    The engine verifies the whole buffer; this refuses what is not one at all, with a better message.
    """
    head = read_head(path)
    if head[4:8] != TFLITE_IDENTIFIER:
        raise ModelFileError(f"{path.name} is not a TensorFlow Lite file.", "Give a .tflite file.")
    size = path.stat().st_size
    root = int.from_bytes(head[:4], "little")
    if not 8 <= root <= size - 4:
        raise ModelFileError(
            f"{path.name} is truncated: its root table is at byte {root} of {size}.", "Fetch or export it again."
        )
