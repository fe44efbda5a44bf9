"""Our operators against dense torch and the memory-traffic floor: `benchmarks.kernels_gpu`."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import groupby
from typing import Any

from benchmarks.gpu_parts.context import Context, markdown


def measure(context: Context) -> dict[str, Any]:
    """The figures that that program prints, in a process of its own: it measures peak memory. Or why there are none."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.kernels_gpu"], capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip()[-2000:]}
    return {"figures": [json.loads(line) for line in done.stdout.splitlines()]}


def table(result: dict[str, Any]) -> str:
    """A table for each kind of figures: those of one kind have the same names."""
    if "error" in result:
        return f"Not measured: {result['error']}"
    tables = []
    for _, group in groupby(result["figures"], key=lambda figures: next(iter(figures.items()))):
        kind = list(group)
        names = list(dict.fromkeys(name for figures in kind for name in figures))
        tables.append(markdown(names, [[_rounded(figures.get(name)) for name in names] for figures in kind]))
    return "\n\n".join(tables)


def _rounded(value: Any) -> Any:
    return f"{value:.3g}" if isinstance(value, float) else value
