"""Maps recorded sequences with the command line and prints what they reached as a table.

    python -m benchmarks.sequences SEQUENCE... [--config FILE] [--jobs N]

A sequence with labels is mapped with these (instance ids permuted in every frame), one without with `tiny`. Figures are
of held-out frames.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

COLUMNS = {
    "pq": ("PQ^scene@0.5", ".1f"),
    "sq": ("SQ", ".1f"),
    "rq": ("RQ", ".1f"),
    "miou": ("mIoU", ".1f"),
    "mcov": ("mCov", ".1f"),
    "pq_frame": ("PQ frame", ".1f"),
    "id_switches": ("id switches", "d"),
    "psnr": ("PSNR dB", ".2f"),
    "ssim": ("SSIM", ".3f"),
    "depth_l1_m": ("depth L1 m", ".4f"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sequences", nargs="+", type=Path, help="folders in ScanNet style")
    parser.add_argument("--config", type=Path, help="settings for `panoptic-mapper build`")
    parser.add_argument("--work", type=Path, default=Path("out/results"), help="where the maps go")
    parser.add_argument("--jobs", type=int, default=1, help="how many sequences are mapped at a time")
    args = parser.parse_args()
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [pool.submit(build, s, args.work / s.name, threads, args.config) for s in args.sequences]
    reports = [run.result() for run in runs]
    print(hardware(), f"Settings: {args.config or 'default'}; {args.jobs} at a time, {threads} threads each.\n")
    print(table(reports))


def build(sequence: Path, out: Path, threads: int, config: Path | None) -> dict[str, Any]:
    """The report of one `panoptic-mapper build`."""
    segmenter = "dataset" if (sequence / "labels.json").exists() else "tiny"
    command = [sys.executable, "-m", "panoptic_mapper", "build", str(sequence), "--out", str(out)]
    command += ["--segmenter", segmenter, *([] if config is None else ["--config", str(config)])]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    return json.loads((out / "report.json").read_text())


def table(reports: list[dict[str, Any]]) -> str:
    """The reports as a markdown table."""
    head = ["sequence", "labels", "frames", "keyframes", "Gaussians", "objects", "frames/s", "peak RSS MB"]
    names = [*head, *(name for name, _ in COLUMNS.values())]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for r in reports:
        counts = [r["sequence"], r["segmenter"], r["frames"], r["keyframes"], f"{r['gaussians']:,}", r["objects"]]
        speed = [f"{r['fps']:.2f}", f"{r['peak_rss_mb']:.0f}"]
        metrics = [cell(r["test"].get(key), form) for key, (_, form) in COLUMNS.items()]
        lines.append("| " + " | ".join(map(str, [*counts, *speed, *metrics])) + " |")
    return "\n".join(lines)


def cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def hardware() -> str:
    """What the figures were made on."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"Hardware: {cpu}, {os.cpu_count()} CPUs, {gpu}; torch {torch.__version__}."


if __name__ == "__main__":
    main()
