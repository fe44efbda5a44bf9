"""Opening rosbag2 recordings, finding topics in them, and errors that name the bag."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

# The common message types, which have not changed between the ROS 2 releases that are in use.
TYPES = get_typestore(Stores.ROS2_JAZZY)


@contextmanager
def naming(path: Path, what: str = "") -> Iterator[None]:
    """Turns any failure into a ValueError that names the bag."""
    try:
        yield
    except Exception as error:  # a damaged bag fails in many ways, deep inside the storage formats
        text = str(error) or type(error).__name__
        if text.startswith(f"{path}: "):  # named already, further inside
            raise
        raise ValueError(f"{path}: {what}{text}") from error


def open_bag(path: Path) -> Reader:
    """An open reader of a bag folder, or of a single .mcap or .db3 file.

    Raises:
        ValueError: naming the bag that is missing, damaged or no bag.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    with naming(path, "cannot be read as a rosbag: "):
        reader = Reader(path)
        reader.open()
        return reader


def find_topic(reader: Reader, topic: str, types: tuple[str, ...]) -> Connection | None:
    """The connection of a topic that has messages, None where there is none.

    Raises:
        ValueError: the topic has another type than those in `types`.
    """
    connection = next((c for c in reader.connections if c.topic == topic and c.msgcount), None)
    if connection is not None and connection.msgtype not in types:
        raise ValueError(
            f"{reader.path}: topic '{topic}' has the type {connection.msgtype}, expected {' or '.join(types)}"
        )
    return connection


def require_topic(
    reader: Reader, topic: str, what: str, types: tuple[str, ...], suffixes: tuple[str, ...] = ("",)
) -> Connection:
    """The connection of `topic`, or of the topic with the first of `suffixes` that is there.

    Raises:
        ValueError: no such topic has messages (those of the bag are listed), or its type is not one of `types`.
    """
    for suffix in suffixes:
        connection = find_topic(reader, topic + suffix, types)
        if connection is not None:
            return connection
    found = ", ".join(f"{c.topic} ({c.msgtype.split('/')[-1]})" for c in reader.connections) or "none"
    raise ValueError(f"{reader.path}: no topic '{topic}' with {what}; topics of the bag: {found}")


def read_messages(
    reader: Reader, connections: list[Connection], start_ns: int | None = None, stop_ns: int | None = None
) -> Iterator[tuple[Connection, int, Any]]:
    """Connection, time in the bag (ns) and message of what lies in start_ns <= time < stop_ns, in the order of time.

    Raises:
        ValueError: naming the bag that is damaged there.
    """
    messages = reader.messages(connections, start_ns, stop_ns)
    while True:
        with naming(Path(str(reader.path)), "damaged: "):
            item = next(messages, None)
            if item is None:
                return
            connection, time_ns, raw = item
            message = TYPES.deserialize_cdr(raw, connection.msgtype)
        yield connection, time_ns, message


def header_stamp_ns(header: Any) -> int:
    """Nanoseconds of a std_msgs/Header."""
    return int(header.stamp.sec) * 10**9 + int(header.stamp.nanosec)
