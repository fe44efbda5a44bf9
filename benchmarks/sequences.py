"""Maps every sequence of a folder with the command line and writes what it reached as a table.

    python -m benchmarks.sequences FOLDER --work out/results --table docs/results.md

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
    parser.add_argument("folder", type=Path, help="folder with one sequence in each sub-folder")
    parser.add_argument("--work", type=Path, default=Path("out/results"), help="where the maps go")
    parser.add_argument("--jobs", type=int, default=1, help="how many sequences are mapped at a time")
    parser.add_argument("--table", type=Path, help="markdown file to write the table to; default: print it")
    parser.add_argument("settings", nargs="*", help="key=value for `panoptic-mapper build`")
    args = parser.parse_args()
    sequences = sorted(p for p in args.folder.iterdir() if (p / "color").is_dir())
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        reports = list(pool.map(lambda s: build(s, args.work / s.name, threads, args.settings), sequences))
    text = table(reports, f"{args.jobs} sequences at a time, {threads} threads each")
    print(text)
    if args.table:
        args.table.write_text(text)


def build(sequence: Path, out: Path, threads: int, settings: list[str]) -> dict[str, Any]:
    """The report of one `panoptic-mapper build`."""
    segmenter = "dataset" if (sequence / "labels.json").exists() else "tiny"
    command = [sys.executable, "-m", "panoptic_mapper", "build", str(sequence), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run([*command, "--segmenter", segmenter, *settings], check=True, env=environment)
    return json.loads((out / "report.json").read_text())


def table(reports: list[dict[str, Any]], how: str) -> str:
    """The reports as a markdown page with the hardware and the protocol."""
    head = ["sequence", "labels", "frames", "keyframes", "Gaussians", "objects", "frames/s", "peak RSS MB"]
    lines = [
        "# Results",
        "",
        *__doc__.splitlines()[:3],
        "",
        __doc__.split("\n\n", 2)[2].strip(),
        "",
        f"{hardware()} {how}.",
        "",
    ]
    names = [*head, *(name for name, _ in COLUMNS.values())]
    lines += ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for r in reports:
        counts = [r["sequence"], r["segmenter"], r["frames"], r["keyframes"], f"{r['gaussians']:,}", r["objects"]]
        speed = [f"{r['fps']:.2f}", f"{r['peak_rss_mb']:.0f}"]
        metrics = [cell(r["test"].get(key), form) for key, (_, form) in COLUMNS.items()]
        lines.append("| " + " | ".join(map(str, [*counts, *speed, *metrics])) + " |")
    protocol = {key: words for r in reports for key, words in r["protocol"].items()}
    return "\n".join([*lines, "", "## Protocol", "", *(f"- {key}: {words}" for key, words in protocol.items()), ""])


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
