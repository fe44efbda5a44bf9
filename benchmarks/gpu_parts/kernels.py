"""Our operators against dense torch and the memory-traffic floor: `benchmarks.kernels_gpu`."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from benchmarks.gpu_parts.context import Context


def measure(context: Context) -> dict[str, Any]:
    """What that program prints, in a process of its own: it measures peak memory."""
    command = [sys.executable, "-m", "benchmarks.kernels_gpu", "--device", context.device]
    done = subprocess.run(command, capture_output=True, text=True)
    return {"returncode": done.returncode, "text": done.stdout.strip() or done.stderr.strip()[-2000:]}


def table(result: dict[str, Any]) -> str:
    return result["text"]
