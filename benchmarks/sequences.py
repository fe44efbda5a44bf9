"""Maps every sequence of a folder with the command line and writes what it reached as a table.

    python -m benchmarks.sequences FOLDER --work out/results --table docs/results.md

A labelled sequence is mapped with its own labels (instance ids permuted in every frame) and with `tiny`, one without
labels with `tiny` alone. Figures are of held-out frames.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
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
    parser.add_argument("--table", type=Path, help="markdown file to write the table to; default: print it")
    parser.add_argument("settings", nargs="*", help="key=value for `panoptic-mapper build`")
    args = parser.parse_args()
    reports = []
    for sequence in sorted(p for p in args.folder.iterdir() if (p / "color").is_dir()):
        for segmenter in ["dataset", "tiny"] if (sequence / "labels.json").exists() else ["tiny"]:
            reports.append(build(sequence, segmenter, args.work / f"{sequence.name}_{segmenter}", args.settings))
    text = table(reports)
    print(text)
    if args.table:
        args.table.write_text(text)


def build(sequence: Path, segmenter: str, out: Path, settings: list[str]) -> dict[str, Any]:
    """The report of one `panoptic-mapper build`."""
    command = [sys.executable, "-m", "panoptic_mapper", "build", str(sequence), "--out", str(out)]
    subprocess.run([*command, "--segmenter", segmenter, *settings], check=True)
    return json.loads((out / "report.json").read_text())


def table(reports: list[dict[str, Any]]) -> str:
    """The reports as a markdown page with the hardware and the protocol."""
    head = ["sequence", "labels", "frames", "keyframes", "Gaussians", "objects", "frames/s", "peak RSS MB"]
    lines = ["# Results", "", *__doc__.splitlines()[:3], "", __doc__.split("\n\n", 2)[2].strip(), "", hardware(), ""]
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
