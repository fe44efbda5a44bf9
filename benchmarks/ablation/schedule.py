"""Runs jobs in processes of their own, several at a time, and stores each record as soon as it is there."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from queue import SimpleQueue

from benchmarks.ablation.context import Context
from benchmarks.ablation.job import Job, Record
from benchmarks.ablation.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How jobs are run."""

    num_parallel: int = 1
    launcher: tuple[str, ...] = (sys.executable,)  # what stands before "-m benchmarks.ablation.run TASK"
    num_gpus: int = 0  # parallel jobs are dealt over so many GPUs; 0 = each sees all
    stop_after_s: float = float("inf")  # no job is begun later than this


def run_missing(jobs: Sequence[Job], context: Context, store: Store, plan: Plan) -> list[Job]:
    """Runs the jobs that have no record yet; returns those that failed, whose errors are logged."""
    missing = [job for job in dict.fromkeys(jobs) if job.key(context.width_px) not in store.records]
    started = time.monotonic()
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(plan.num_parallel):
        slots.put(slot)

    def run(job: Job) -> Record | None:
        slot = slots.get()
        try:
            if time.monotonic() - started > plan.stop_after_s:
                return None
            return run_job(job, context, plan, slot)
        finally:
            slots.put(slot)

    failed = []
    with ThreadPoolExecutor(plan.num_parallel) as pool:
        job_of = {pool.submit(run, job): job for job in missing}
        for number, outcome in enumerate(as_completed(job_of), start=1):
            job = job_of[outcome]
            try:
                record = outcome.result()
            except RuntimeError as error:
                logger.error("%s", error)
                failed.append(job)
                continue
            if record is not None:
                store.append(record)
                logger.info("%d/%d %s: %.0f s", number, len(missing), describe(job), record.wall_s)
    return failed


def run_job(job: Job, context: Context, plan: Plan, slot: int) -> Record:
    """Measures a job in a new process.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    task = json.dumps({"job": dataclasses.asdict(job), "context": dataclasses.asdict(context)}, default=str)
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // plan.num_parallel))}
    if plan.num_gpus:
        environment["CUDA_VISIBLE_DEVICES"] = str(slot % plan.num_gpus)
    command = [*plan.launcher, "-m", "benchmarks.ablation.run", task]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise RuntimeError(f"{describe(job)} failed with status {done.returncode}:\n{done.stderr[-2000:]}")
    return Record.from_json(lines[-1])


def describe(job: Job) -> str:
    return " ".join([job.experiment, job.scene, job.method, job.noise, f"seed {job.seed}", *job.overrides])
