"""A Python module of ours as a child process: how it is started, spoken to and ended, and how it begins.

It is no fork, so that threads and CUDA of the parent do not matter, and it outlives its parent by nothing: the end of
their connection ends it, however the parent ended. Importing this module takes no torch.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from panoptic_mapper.shared_memory import SharedMemory

END_S = 2.0  # in which a process that is told to end must have done so


def start_module(
    module: str, fds: Sequence[int], arguments: Iterable[object] = ()
) -> tuple[subprocess.Popen[bytes], Connection]:
    """Starts `python -m module CONNECTION_FD FDS... ARGUMENTS...`, and returns the process and our end.

    Args:
        fds: of memory that the child shares; it inherits no others.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        inherited = (theirs.fileno(), *fds)
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # it finds the modules that we find
        process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, (*inherited, *arguments))],
            stdin=subprocess.DEVNULL,
            pass_fds=inherited,
            env={**os.environ, "PYTHONPATH": path},
        )
    return process, Connection(ours.detach())


def end(process: subprocess.Popen[bytes], timeout_s: float = END_S) -> None:
    """Waits for the end of a process whose connection is closed or that was told to end; then kills it."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout_s)
        return
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_S)


def how_it_ended(process: subprocess.Popen[bytes]) -> str:
    """Words for the end of a process that has closed its connection: "ended with status 1", "was ended by SIGSEGV"."""
    try:
        code = process.wait(END_S)
    except subprocess.TimeoutExpired:
        return "no longer answers"
    if code >= 0:
        return f"ended with status {code}"
    hint = "; the kernel does that where memory runs out" if -code == signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{hint}"


def begin(connection_fd: int, fds: Sequence[int]) -> tuple[Connection, list[SharedMemory]]:
    """In the child: the connection to the parent, and the memory that they share.

    Ctrl-C and a service manager's SIGTERM go to all processes at once; the parent then ends this one in its own time.
    """
    faulthandler.enable()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, stack: None)  # not SIG_IGN, which children of this process would inherit
    for fd in (connection_fd, *fds):
        os.set_inheritable(fd, False)  # or a child of this process would keep the connection open
    return Connection(connection_fd), [SharedMemory(fd) for fd in fds]


def receive_until_the_end(connection: Connection, take: Callable[[Any], object]) -> NoReturn:
    """In the child: gives every message to `take`. The end of the connection ends the process, whatever it does."""
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        take(message)


def unpickled(function: bytes) -> Callable[[], Any]:
    """In the child: the function that the parent has pickled.

    Raises:
        ValueError: it is none that can be imported here.
    """
    try:
        return pickle.loads(function)
    except (AttributeError, ImportError) as error:
        raise ValueError(
            f"make: expected a function that this process can import, not one of a script ({error})"
        ) from None
