"""The step of `make` that installs system packages, on machines that lack them; all programs are stand-ins."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts/install_system_packages.sh"
LIBRARIES = ("libusb-1.0.so.0", "libgomp.so.1", "libGL.so.1", "libEGL.so.1")


class Machine:
    """A PATH with the programs that were put there, each of which writes its call to a log."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder / "bin", folder / "log"
        self.folder.mkdir()
        self.log.touch()
        for name in ("bash", "env", "grep"):
            (self.folder / name).symlink_to(str(shutil.which(name)))

    def put(self, name: str, output: str = "", status: int = 0) -> None:
        file = self.folder / name
        file.write_text(f"#!/bin/sh\necho {name} \"$@\" >>'{self.log}'\necho '{output}'\nexit {status}\n")
        file.chmod(0o755)

    def run(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.folder / "bash"), str(SCRIPT), sys.executable],
            env={"PATH": str(self.folder)},
            capture_output=True,
            text=True,
        )

    def calls(self, *names: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.split()[0] in names]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Root on a Debian that lacks everything but the Python that runs this."""
    machine = Machine(tmp_path)
    machine.put("ldconfig")
    machine.put("id", "0")
    machine.put("apt-get")
    return machine


def test_root_gets_everything_by_one_call(machine: Machine) -> None:
    done = machine.run()
    assert done.returncode == 0, done.stderr
    update, install = machine.calls("apt-get")
    assert update == "apt-get update -q"
    assert install.startswith("apt-get install -qy --no-install-recommends ")
    assert set(install.split()[4:]) >= {"libusb-1.0-0", "libgomp1", "libgl1", "libegl1", "cmake", "g++"}


def test_only_what_is_missing_is_installed(machine: Machine) -> None:
    machine.put("ldconfig", "\n".join(f"\t{name} (libc6,x86-64) => /lib/{name}" for name in LIBRARIES[1:]))
    machine.put("cmake")
    machine.put("g++")
    assert machine.run().returncode == 0
    packages = machine.calls("apt-get")[1].split()[4:]
    assert "libusb-1.0-0" in packages
    assert not {"libgomp1", "libgl1", "libegl1", "cmake", "g++"} & set(packages)


def test_a_user_with_sudo_installs_through_it(machine: Machine) -> None:
    machine.put("id", "1000")
    machine.put("sudo")
    assert machine.run().returncode == 0
    assert machine.calls("sudo")[0] == "sudo -n true"
    assert [line.split()[:4] for line in machine.calls("sudo")[1:]] == [
        ["sudo", "-n", "apt-get", "update"],
        ["sudo", "-n", "env", "DEBIAN_FRONTEND=noninteractive"],
    ]
    assert machine.calls("apt-get") == []


@pytest.mark.parametrize("has_sudo_with_password", [False, True])
def test_a_user_without_the_right_is_told_the_command(machine: Machine, has_sudo_with_password: bool) -> None:
    machine.put("id", "1000")
    if has_sudo_with_password:
        machine.put("sudo", status=1)
    done = machine.run()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "run make again: sudo apt-get install libusb-1.0-0 libgomp1 libgl1 libegl1 cmake g++" in line
    assert machine.calls("apt-get") == []


def test_a_package_that_cannot_be_installed_fails(machine: Machine) -> None:
    machine.put("apt-get", status=100)
    assert machine.run().returncode == 100
