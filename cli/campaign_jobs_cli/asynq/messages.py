"""Asynq's protobuf messages, as far as the move needs them.

Source: internal/proto/asynq.proto of github.com/hibiken/asynq v0.26. Read by hand: two flat messages are read and one
number is added to one of them, for which the protobuf library would bring generated code that must match its version.
The tests read what the Go library has written, and have it read what is written here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from campaign_jobs_cli.asynq.errors import UnreadableMessage

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_COMPLETED_AT: Final = 13


@dataclass(frozen=True)
class TaskMessage:
    """One task, as the client enqueued it and Asynq has kept its books on it since."""

    type: str = ""
    payload: bytes = b""
    id: str = ""
    queue: str = ""
    retry: int = 0
    """How many retries it has at most."""
    retried: int = 0
    error_msg: str = ""
    unique_key: str = ""
    """The key of its lock, empty where it was not enqueued as unique."""
    retention: int = 0
    """Seconds for which it is kept after its completion; 0 deletes it then."""
    group_key: str = ""


@dataclass(frozen=True)
class ServerInfo:
    """A process of old workers, as it reports every few seconds."""

    host: str = ""
    pid: int = 0
    status: str = ""
    queues: tuple[str, ...] = ()
    active_workers: int = 0


def read_task(data: bytes) -> TaskMessage:
    """Raises UnreadableMessage."""
    found = dict(_fields(data))
    return TaskMessage(
        type=_text(found, 1),
        payload=_bytes(found, 2),
        id=_text(found, 3),
        queue=_text(found, 4),
        retry=_number(found, 5),
        retried=_number(found, 6),
        error_msg=_text(found, 7),
        unique_key=_text(found, 10),
        retention=_number(found, 12),
        group_key=_text(found, 14),
    )


def read_server(data: bytes) -> ServerInfo:
    """Raises UnreadableMessage."""
    fields = list(_fields(data))
    found = dict(fields)
    # A map is a repeated message of a key and a value.
    entries = [dict(_fields(value)) for number, value in fields if number == 5 and isinstance(value, bytes)]
    return ServerInfo(
        host=_text(found, 1),
        pid=_number(found, 2),
        status=_text(found, 7),
        queues=tuple(sorted(_text(entry, 1) for entry in entries)),
        active_workers=_number(found, 9),
    )


def completed(data: bytes, at: int) -> bytes:
    """The message of a task with the time of its completion in it, in seconds since 1970."""
    # Of a field that comes twice the last one counts, so nothing of the message has to be understood to add one.
    return data + _varint(_COMPLETED_AT << 3 | _VARINT) + _varint(at)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, position = _read_varint(data, position)
            yield number, value
            continue
        if wire_type == _BYTES:
            length, position = _read_varint(data, position)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise UnreadableMessage(f"not a message of Asynq's: wire type {wire_type} at byte {position}")
        if position + length > len(data):
            raise UnreadableMessage("not a message of Asynq's: it is cut off")
        yield number, data[position : position + length]
        position += length


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise UnreadableMessage("not a message of Asynq's: it is cut off")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), position
    raise UnreadableMessage("not a message of Asynq's: a number has no end")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _bytes(found: dict[int, int | bytes], number: int) -> bytes:
    value = found.get(number, b"")
    if not isinstance(value, bytes):
        raise UnreadableMessage(f"not a message of Asynq's: field {number} is a number")
    return value


def _text(found: dict[int, int | bytes], number: int) -> str:
    try:
        return _bytes(found, number).decode()
    except UnicodeDecodeError:
        raise UnreadableMessage(f"not a message of Asynq's: field {number} is not UTF-8") from None


def _number(found: dict[int, int | bytes], number: int) -> int:
    value = found.get(number, 0)
    if not isinstance(value, int):
        raise UnreadableMessage(f"not a message of Asynq's: field {number} is not a number")
    return value - 2**64 if value >= 2**63 else value
