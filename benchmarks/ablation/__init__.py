"""Ablations and sensitivities: `python -m benchmarks.ablation` measures what is missing and writes docs/accuracy.md.

An experiment is a module of this package with three functions; `EXPERIMENTS` lists them in the order of the report:

    def jobs(scenes: Sequence[str], seeds: Sequence[int]) -> list[Job]
        What is to be measured. A job may name another experiment: what two of them need is then measured once.
    def run(job: Job, context: Context) -> dict[str, Any]
        Measures one job, in a process of its own; ready for JSON. Most call `measure.held_out(job, context)`, which
        maps the job's scene with the job's method and evaluates held-out frames.
    def report(records: Sequence[Record], image_dir: Path) -> str
        A section of docs/accuracy.md from the records of its own jobs that are there, which may be few or none:
        markdown that begins with "## ", its plots written into `image_dir`, numbers that are missing shown as missing.

`job` defines Job and Record, `context` what a job finds around it, `measure` the methods, `tables` and `plots` help
reports. `store` keeps one line of JSON per finished job, so an interrupted run goes on where it was.
"""

EXPERIMENTS = (
    "noise",
    "parts",
    "recall",
    "over_time",
    "iterations",
    "settings",
    "lighting",
    "attention_memory",
    "query_saturation",
)
