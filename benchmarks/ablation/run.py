"""Measures one job in a process of its own: `python -m benchmarks.ablation.run '{"job": ..., "context": ...}'`.

The record is the last line that it prints.
"""

from __future__ import annotations

import importlib
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablation.context import Context
from benchmarks.ablation.job import Job, Record


def measured(job: Job, context: Context) -> Record:
    """The record of a job, measured by the experiment that it names."""
    experiment = importlib.import_module(f"benchmarks.ablation.{job.experiment}")
    start = time.perf_counter()
    result = experiment.run(job, context)
    return Record(job.key(context.width_px), job, result, machine(context.device), time.perf_counter() - start)


def machine(device: str) -> dict[str, Any]:
    """What the measurement was made on and with."""
    is_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return {
        "device": torch.cuda.get_device_name() if is_cuda else cpu_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


def commit() -> str:
    """What the code is, as git says it; "unknown" outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    where = task["context"] | {"data": Path(task["context"]["data"])}
    print(measured(Job.from_dict(task["job"]), Context(**where)).to_json())
