"""Command line of the ablation; see `python -m benchmarks.ablation --help`."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path

from benchmarks.ablation import EXPERIMENTS
from benchmarks.ablation.context import SCENES, Context
from benchmarks.ablation.report import experiments, write_report
from benchmarks.ablation.schedule import Plan, describe, run_missing
from benchmarks.ablation.store import Store


def main(arguments: list[str] | None = None) -> int:
    """Runs what is missing and writes the report; 1 if a run failed."""
    args = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    context = Context(args.data, args.device, args.width)
    store = Store(args.store)
    jobs = {name: module.jobs(args.scenes, args.seeds) for name, module in experiments().items()}
    chosen = dict.fromkeys(job for name in args.only for job in jobs[name])
    todo = sorted(chosen, key=lambda job: job.seed)  # whatever stops a run, the first seed of all is there first
    if args.list:
        print("\n".join(describe(job) for job in todo if job.key(args.width) not in store.records))
        return 0
    failed = []
    if not args.report_only:
        plan = Plan(args.jobs, tuple(shlex.split(args.launcher)), args.gpus, args.stop_after_s)
        failed = run_missing(todo, context, store, plan)
    write_report(args.report, jobs, store.records, args.width)
    return 1 if failed else 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    add = made.add_argument
    add("--data", type=Path, default=Path("data"), help="folder with the ScanNet-style sequences")
    add("--store", type=Path, default=Path("benchmarks/accuracy.jsonl"), help="records; what is there is not run again")
    add("--report", type=Path, default=Path("docs/accuracy.md"), help="the report; plots go to images/ beside it")
    add("--only", type=words, default=list(EXPERIMENTS), help=f"experiments to run: {','.join(EXPERIMENTS)}")
    add("--scenes", type=words, default=list(SCENES), help="scenes, separated by commas")
    add("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=[0, 1, 2], help="e.g. 0,1,2")
    add("--width", type=int, default=320, help="width of the images, px")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--jobs", type=int, default=1, help="how many runs at a time")
    add("--gpus", type=int, default=0, help="deal the runs over so many GPUs; 0 = each run sees all")
    add("--stop-after-s", type=float, default=float("inf"), help="begin no run later than this")
    add("--launcher", default=shlex.quote(sys.executable), help="what runs `-m MODULE ARGUMENTS`, in place of python")
    add("--report-only", action="store_true", help="run nothing")
    add("--list", action="store_true", help="print what is missing, run nothing")
    return made


def words(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    sys.exit(main())
