#!/usr/bin/env bash
# Installs the Debian/Ubuntu packages that pip cannot bring: run-time libraries of open3d and OpenCV, and a compiler.
# Does nothing where all of them are there; without the right to install, names them in one line and fails.
# Usage: install_system_packages.sh PYTHON
set -euo pipefail
python=$1

missing=()
libraries=$( (ldconfig -p || /sbin/ldconfig -p) 2>/dev/null)
need_library() { grep -q "$1" <<<"$libraries" || missing+=("$2"); }
need_program() { command -v "$1" >/dev/null || missing+=("$2"); }

need_library libusb-1.0.so.0 libusb-1.0-0 # open3d
need_library libgomp.so.1 libgomp1        # open3d, the kernels
need_library libGL.so.1 libgl1            # open3d
need_library libEGL.so.1 libegl1          # open3d
need_program cmake cmake
need_program g++ g++
version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
"$python" -c 'import ensurepip' 2>/dev/null || missing+=("$version-venv")
"$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
  missing+=("$version-dev")

if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  as_root=()
elif command -v apt-get >/dev/null && sudo -n true 2>/dev/null; then
  as_root=(sudo -n)
else
  echo "Missing system packages. Install them, then run make again: sudo apt-get install ${missing[*]}" >&2
  exit 1
fi
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
