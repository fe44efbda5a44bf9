"""Our node and our bag player as child processes that are always ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

import panoptic_mapper

STOP_TIMEOUT_S = 30.0  # the node finishes the frame in hand
LOG_TAIL_LINES = 40

PLAY = """
import sys
from panoptic_mapper.ros.bag_player import play
play(sys.argv[1], rate=float(sys.argv[2]), wait_for_subscribers_s=float(sys.argv[3]), needed_topics=sys.argv[4:])
"""


class ChildProcess:
    """A Python program with its output in a log file. Use as a context manager: leaving it ends the program.

    On Linux the kernel kills it with the thread that has started it, so that it outlives no program that is killed.
    """

    def __init__(self, name: str, arguments: Sequence[str], log_file: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log_file = log_file
        # The child runs the code that this process runs, installed or not.
        sources = str(Path(panoptic_mapper.__file__).resolve().parents[1])
        path = os.pathsep.join(p for p in (sources, os.environ.get("PYTHONPATH")) if p)
        with log_file.open("w") as log:
            self._process = subprocess.Popen(
                [*_with_parent(), sys.executable, *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C is ours to pass on
            )

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def returncode(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    def cpu_s(self) -> float:
        """Seconds of processors that the program has used, and those that it has started; it must run."""
        process = psutil.Process(self._process.pid)
        times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
        return sum(t.user + t.system for t in times)

    def check_alive(self) -> None:
        """Raises RuntimeError with the end of the log when the program has ended."""
        if self.returncode is not None:
            raise RuntimeError(f"{self.name} ended with status {self.returncode}; {self.log_tail()}")

    def wait(self, timeout_s: float) -> int:
        """The exit status.

        Raises:
            RuntimeError: it still runs after that time.
        """
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{self.name} still runs after {timeout_s:g} s; {self.log_tail()}") from None

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Interrupts the program as Ctrl-C does, kills it when that does not help, and returns the exit status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        return self._process.returncode

    def log_tail(self) -> str:
        lines = self.log_file.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join([f"the end of {self.log_file}:", *(f"    {line}" for line in lines)])


def _with_parent() -> list[str]:
    """Words before a command that let it end with the thread that starts it: a program of util-linux.

    Code of ours between fork and exec could do the same, but is not safe beside other threads.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


def start_node(
    log_file: Path,
    parameters: Mapping[str, object],
    params_file: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> ChildProcess:
    """Starts the mapping node; `parameters` (by dotted name) win over the file."""
    arguments = ["-m", "panoptic_mapper.ros.mapper_node", "--ros-args"]
    if params_file is not None:
        arguments += ["--params-file", str(params_file)]
    for name, value in parameters.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        arguments += ["-p", f"{name}:={text}"]
    return ChildProcess("the node", arguments, log_file, environment or {})


def start_player(
    bag: Path,
    log_file: Path,
    rate: float,
    wait_s: float = 60.0,
    environment: Mapping[str, str] | None = None,
    needed_topics: Sequence[str] = (),
) -> ChildProcess:
    """Starts playing a bag once the node subscribes, at the latest after `wait_s`.

    Where others listen to the bag too, `needed_topics` are those by which the node is known.
    """
    arguments = ["-c", PLAY, str(bag), str(rate), str(wait_s), *needed_topics]
    return ChildProcess("the player", arguments, log_file, environment or {})


@contextmanager
def own_domain() -> Iterator[None]:
    """A ROS domain of this machine and this run alone, so that no other node hears it or is heard."""
    domain_id = 40 + os.getpid() % 60  # below 102, where ports collide with those that Linux gives out
    ours = {"ROS_DOMAIN_ID": str(domain_id), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
