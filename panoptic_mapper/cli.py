"""The command line: the mapper over recorded sequences without ROS, and the tools around bags and maps."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import panoptic_mapper
from panoptic_mapper.cli_models import labels_app, models_app

if TYPE_CHECKING:
    from panoptic_mapper.label_space import LabelSpace

app = typer.Typer(
    help="Panoptic 3D Gaussian mapping of posed RGB-D.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(models_app, name="models")
app.add_typer(labels_app, name="labels")
console = Console(stderr=True)  # for people; stdout is for what a command gives

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else.")]
DatasetSpec = Annotated[
    str, typer.Argument(help="ScanNet-style folder, rosbag, or synthetic[:seed=0,num_frames=60,...].")
]
VersionFlag = Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)]
LABEL_METRICS = ("pq", "sq", "rq", "pq_0.3", "pq_frame", "prq", "miou", "macc", "mcov", "mw_cov", "id_switches")
OTHER_RULES = ("pq_pr_0.1", "pq_pr_0.3")  # printed apart: they stand beside published numbers, never beside pq
IMAGE_METRICS = ("psnr", "ssim", "depth_l1_m", "depth_coverage", "floaters", "floater_share")


def main() -> None:
    """Runs the command; bad input ends with one clear line and status 1."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        app()
    except (ValueError, RuntimeError) as error:
        console.print("[bold red]error:[/]", escape(str(error)), highlight=False, soft_wrap=True)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _options(context: typer.Context, version: VersionFlag = False) -> None:
    if version:
        print(f"panoptic_mapper {panoptic_mapper.__version__}")
        raise typer.Exit()


@app.command()
def build(
    dataset: DatasetSpec,
    out: Annotated[Path, typer.Option(help="Folder for the map, objects, point clouds, report and picture.")],
    settings: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. mapper.density.stride_px=3")] = None,
    mode: Annotated[str, typer.Option(help="online, or offline: optimise the whole map after the last frame.")] = "",
    iterations: Annotated[int | None, typer.Option(help="Steps of the whole map's optimisation (offline).")] = None,
    segmenter: Annotated[
        str, typer.Option(help="2D labels: dataset, huggingface, onnx, tiny, geometric or none.")
    ] = "",
    noise: Annotated[str, typer.Option(help="Noise put on the sequence's labels: clean, moderate or hard.")] = "",
    seed: Annotated[int | None, typer.Option(help="Seed of the mapper and of the label noise.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "",
    every: Annotated[int | None, typer.Option(help="Use every N-th frame only.")] = None,
    test_every: Annotated[int | None, typer.Option(help="Hold every K-th frame out for the test metrics.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    as_json: Json = False,
) -> None:
    """Map a recorded sequence and measure the result."""
    from panoptic_mapper.build import BuildConfig, build_map
    from panoptic_mapper.config import load_config
    from panoptic_mapper.datasets import open_dataset
    from panoptic_mapper.results import make_report, writable_folder, write_results

    given = {
        "mode": mode,
        "mapper.offline.iterations": iterations,
        "segmenter.name": segmenter,
        "segmenter.noise": noise,
        "segmenter.seed": seed,
        "mapper.seed": seed,
        "device": device,
        "every": every,
        "test_every": test_every,
    }
    words = [f"{key}={value}" for key, value in given.items() if value not in ("", None)]
    build_config = load_config(BuildConfig, config, [*words, *(settings or [])])
    sequence = open_dataset(dataset)
    writable_folder(out)
    with _progress("mapping", quiet=as_json) as progress:
        built = build_map(sequence, build_config, progress)
    about = {
        "mode": build_config.mode,
        "iterations": build_config.mapper.offline.iterations if build_config.mode == "offline" else 0,
        "segmenter": build_config.segmenter.name,
        "noise": build_config.segmenter.noise,
    }
    report = make_report(built.mapper, sequence, built.splits, built.wall_s, **about)
    write_results(out, built.mapper, sequence, built.splits["train"], report)
    if as_json:
        print(json.dumps(report))
        return
    print_objects(built.mapper)
    print_report(report)
    console.print(f"written to {out}/", markup=False, soft_wrap=True)


@app.command(name="eval")
def evaluate_map(
    map: Annotated[Path, typer.Argument(help="A saved map (.pmap); with --protocol the folder of the scenes.")],
    dataset: Annotated[str, typer.Argument(help="The sequence, as for build; none with --protocol.")] = "",
    test_every: Annotated[int, typer.Option(help="The K that the map was built with.")] = 8,
    every: Annotated[int, typer.Option(help="The N that the map was built with.", min=1)] = 1,
    protocol: Annotated[str, typer.Option(help="Map and measure the scenes of a published protocol: scannet-v2.")] = "",
    config: Annotated[Path | None, typer.Option(help="--protocol: YAML file with settings of build.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="--protocol: key=value, as for build.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a saved map on the mapped and on the held-out frames of a sequence, or run a published protocol."""
    if protocol:
        if dataset:
            raise ValueError(f"eval --protocol takes one folder, that of the scenes; got also '{dataset}'")
        _evaluate_protocol(protocol, map, config, settings or [], as_json)
        return
    if not dataset:
        raise ValueError("eval: expected a saved map and a DATASET, or --protocol NAME and a folder of scenes")
    from panoptic_mapper.datasets import open_dataset
    from panoptic_mapper.evaluation import evaluate, split_indices
    from panoptic_mapper.results import evaluation_frames, load_mapper

    mapper, sequence = load_mapper(map), open_dataset(dataset)
    used = range(0, len(sequence), every)
    splits = dict(zip(("train", "test"), split_indices(len(used), test_every), strict=True))
    result: dict[str, Any] = {"map": str(map), "sequence": sequence.name}
    for name, indices in splits.items():
        if indices:
            evaluated = [used[i] for i in indices]
            metrics = evaluate(mapper, evaluation_frames(sequence, evaluated, mapper), sequence.label_space)
            result["protocol"] = metrics.pop("protocol")
            result[name] = metrics | {"frame_indices": evaluated}
    print(json.dumps(result)) if as_json else print_report(result)


def _evaluate_protocol(name: str, root: Path, config: Path | None, settings: list[str], as_json: bool) -> None:
    from panoptic_mapper.benchmark_protocol import run_protocol
    from panoptic_mapper.build import BuildConfig
    from panoptic_mapper.config import load_config
    from panoptic_mapper.protocols import get_protocol

    protocol = get_protocol(name)
    with _progress("mapping", quiet=as_json) as progress:
        result = run_protocol(
            protocol,
            root,
            load_config(BuildConfig, config, settings),
            lambda scene, done, total: progress(done, total, scene),
        )
    if as_json:
        print(json.dumps(result))
    else:
        print_protocol(result, protocol.pr_metric, protocol.where)


@app.command()
def render(
    map: Annotated[Path, typer.Argument(help="A saved map (.pmap).")],
    out: Annotated[Path, typer.Option(help="Folder for color, depth (mm), semantic and instance PNGs.")],
    pose: Annotated[
        Path | None, typer.Option(help="Text file: 4x4 camera-to-map, metres, OpenCV axes; default: the last keyframe.")
    ] = None,
    size: Annotated[tuple[int, int] | None, typer.Option(help="Width and height, px; default: the keyframes'.")] = None,
) -> None:
    """Render colour, depth, semantic and instance images of a saved map from any pose.

    The field of view is that of the last keyframe's camera at every size. For any other camera, ask the node's service
    render_view, which takes a CameraInfo.
    """
    from panoptic_mapper.results import load_mapper, write_view

    mapper = load_mapper(map)
    write_view(out, mapper, pose, size)
    console.print(f"written to {out}/", markup=False, soft_wrap=True)


@app.command()
def mesh(
    map: Annotated[Path, typer.Argument(help="A saved map (.pmap).")],
    out: Annotated[Path, typer.Option(help="The PLY file to write.")],
    voxel_m: Annotated[float, typer.Option(help="Edge of a voxel, m: details below two of them are lost.")] = 0.025,
    color: Annotated[str, typer.Option(help="Colours of the vertices: instance, semantic or rgb.")] = "instance",
) -> None:
    """Make a labelled triangle mesh of a saved map, for planners and viewers."""
    from panoptic_mapper.mesh import fuse_mesh
    from panoptic_mapper.ply import save_mesh_ply
    from panoptic_mapper.results import load_mapper

    mapper = load_mapper(map)
    with _progress("fusing", quiet=False) as progress:
        made = fuse_mesh(
            mapper,
            voxel_m,
            color,  # type: ignore[arg-type]  # checked by fuse_mesh
            lambda done, total: progress(done, total, ""),
        )
    save_mesh_ply(out, made.vertices, made.triangles, made.colors, made.class_ids, made.instance_ids)
    console.print(
        f"{len(made.vertices):,} vertices and {len(made.triangles):,} triangles written to {out}",
        markup=False,
        soft_wrap=True,
    )


@app.command()
def query(
    map: Annotated[Path, typer.Argument(help="A saved map (.pmap).")],
    class_names: Annotated[list[str] | None, typer.Option("--class", help="Class name; may be given again.")] = None,
    ids: Annotated[list[int] | None, typer.Option("--id", help="Object id; may be given again.")] = None,
    near: Annotated[tuple[float, float, float] | None, typer.Option(help="A point x y z in the map frame, m.")] = None,
    radius: Annotated[float | None, typer.Option(help="Only objects within this distance of --near, m.")] = None,
    k: Annotated[int, typer.Option("-k", help="Only the k nearest to --near; 0 = all.")] = 0,
    min_score: Annotated[float, typer.Option(help="Least score, 0..1.")] = 0.0,
    text: Annotated[str | None, typer.Option(help="Words that name a class, or, with an encoder, mean one.")] = None,
    text_encoder: Annotated[str, typer.Option(help="Model that compares meanings: hub id or folder.")] = "",
    as_json: Json = False,
) -> None:
    """Find objects of a saved map by class, text, id, place and score."""
    import numpy as np

    from panoptic_mapper.query import ObjectQuery, SphereRegion, select_objects
    from panoptic_mapper.results import load_mapper, object_as_dict

    if (radius is not None or k > 0) and near is None:
        raise ValueError("--radius and -k need a point: --near X Y Z")
    point = None if near is None else np.array(near)
    asked = ObjectQuery(
        class_names=tuple(class_names or ()),
        ids=tuple(ids or ()),
        sphere=None if radius is None or point is None else SphereRegion(point, radius),
        min_score=min_score,
        nearest_k=k,
        nearest_to=point,
    )
    mapper = load_mapper(map)
    if text is not None:
        asked = replace(asked, class_indices=_classes_of_text(text, text_encoder, mapper.label_space))
    found = select_objects(mapper.objects(), asked, mapper.label_space)
    if as_json:
        print(json.dumps([object_as_dict(o, mapper.label_space) for o in found]))
    else:
        console.print(objects_table(found))


def _classes_of_text(text: str, encoder: str, label_space: LabelSpace) -> list[int]:
    from panoptic_mapper.text_query import TextQueryConfig, create_text_encoder, match_text

    config = TextQueryConfig(encoder=encoder)
    return [m.class_index for m in match_text(text, label_space, create_text_encoder(config), config)]


@app.command()
def convert(
    dataset: DatasetSpec,
    bag: Annotated[Path, typer.Argument(help="The rosbag2 folder to write.")],
    storage: Annotated[str, typer.Option(help="mcap or sqlite3.")] = "mcap",
    color: Annotated[str, typer.Option(help="raw or jpeg.")] = "raw",
    every: Annotated[int, typer.Option(help="Write every N-th frame only.")] = 1,
    overwrite: Annotated[bool, typer.Option(help="Replace a bag that is there.")] = False,
) -> None:
    """Write a sequence as a rosbag2 that `ros2 bag play` and `panoptic-mapper play` can play."""
    from panoptic_mapper.datasets import open_dataset
    from panoptic_mapper.datasets.rosbag_writer import write_rosbag

    sequence = open_dataset(dataset)
    with _progress("writing", quiet=False) as progress:
        written = write_rosbag(
            sequence,
            bag,
            storage=storage,  # type: ignore[arg-type]  # checked by write_rosbag
            color=color,  # type: ignore[arg-type]
            every=every,
            overwrite=overwrite,
            progress=lambda done, total: progress(done, total, ""),
        )
    console.print(f"{written} frames written to {bag}")


@app.command()
def play(
    bag: Annotated[Path, typer.Argument(help="A rosbag2.")],
    rate: Annotated[float, typer.Option(help="Speed factor.")] = 1.0,
    loop: Annotated[bool, typer.Option(help="Begin again at the end, until Ctrl-C.")] = False,
    clock: Annotated[bool, typer.Option(help="Publish /clock.")] = True,
    wait_s: Annotated[float, typer.Option(help="Wait this long for subscribers, s.")] = 0.0,
    topics: Annotated[list[str] | None, typer.Option("--topic", help="Only this topic; may be given again.")] = None,
) -> None:
    """Publish a bag on real ROS 2 topics, where `ros2 bag` is not installed."""
    from panoptic_mapper.ros.bag_player import play as play_bag

    report = play_bag(bag, rate, loop, clock, wait_s, topics)
    console.print(f"played {report.num_messages} messages in {report.wall_s:.1f} s")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this installation has, and the one command that brings each thing it lacks."""
    from panoptic_mapper import doctor as doctor_module

    results = doctor_module.checks()
    if as_json:
        print(json.dumps(doctor_module.as_dict(results)))
    else:
        print_checks(results)
    raise typer.Exit(0 if doctor_module.as_dict(results)["ok"] else 1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("out/demo"),
) -> None:
    """Run the node on a bag of a synthetic room through DDS, query it, save the map, and measure it."""
    from panoptic_mapper.ros.demo import run_demo

    run_demo(out)


@contextmanager
def _progress(what: str, quiet: bool) -> Iterator[Any]:
    """A progress bar; yields `update(done, total, words)`."""
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=console, disable=quiet) as bar:
        task = bar.add_task(what, total=None, words="")
        yield lambda done, total, words: bar.update(task, completed=done, total=total, words=words)


def objects_table(objects: Any) -> Table:
    """Objects with their place and size in the map frame, m."""
    table = Table("id", "class", "score", "seen", "centre x y z", "size", "Gaussians", title="objects")
    for o in objects:
        center, size = (" ".join(f"{v:.2f}" for v in values) for values in (o.box.center, o.box.size))
        table.add_row(
            str(o.id), o.class_name, f"{o.score:.2f}", str(o.observations), center, size, str(o.num_gaussians)
        )
    return table


def print_objects(mapper: Any) -> None:
    console.print(objects_table(mapper.objects()))


def print_checks(checks: Any) -> None:
    """What was found, and below it the commands, each in one piece to be copied."""
    table = Table("", "what", box=None)
    table.add_column("found", overflow="fold")
    for check in checks:
        mark = "[green]ok[/]" if check.ok else ("[red]missing[/]" if check.required else "[yellow]optional[/]")
        table.add_row(mark, check.name, escape(check.found))
    console.print(table)
    remedies = [(check.name, check.remedy) for check in checks if check.remedy]
    if remedies:
        console.print("\nto get what is not there:")
    for name, command in remedies:
        console.print(f"  {name}: {command}", markup=False, highlight=False, soft_wrap=True)


def print_protocol(result: dict[str, Any], pr_metric: str, where: str) -> None:
    """Metrics of each scene and their mean, the protocol in words, and the scenes that are missing."""
    columns = ("pq", pr_metric, "miou", "macc", "mcov", "mw_cov", "prq", "id_switches", "psnr", "depth_l1_m")
    table = Table("scene", "frames", *columns, title=f"{result['protocol']['name']} (train: mapped, test: held out)")
    for split in ("train", "test"):
        for scene, metrics in [
            *((s, m.get(split)) for s, m in result["scenes"].items()),
            ("mean", result["mean"][split]),
        ]:
            if metrics:
                values = (metrics.get(column) for column in columns)
                table.add_row(scene, split, *("-" if v is None else f"{v:.4g}" for v in values))
        table.add_section()
    console.print(table)
    for key, words in result["protocol"].items():
        console.print(f"[dim]{escape(key)}: {escape(str(words))}[/]", highlight=False, soft_wrap=True)
    for scene, what in result["missing"].items():
        console.print(f"[yellow]missing[/] {scene}: {escape(what)}", highlight=False, soft_wrap=True)
    if result["missing"]:
        console.print(escape(where), highlight=False, soft_wrap=True)


def print_report(report: dict[str, Any]) -> None:
    """The counts of a run, and its metrics by split, each with its protocol, on which frames of which sequence."""
    from panoptic_mapper.evaluation import describe_indices

    counts = [f"{k} {report[k]:,.6g}" for k in ("frames", "keyframes", "gaussians", "fps", "wall_s") if k in report]
    console.print(", ".join(counts), highlight=False)
    splits = [name for name in ("train", "test") if name in report]
    protocol = report.get("protocol", {})
    table = Table("metric", *splits, "protocol", title="metrics (train: mapped frames, test: held-out frames)")
    for group in (LABEL_METRICS, OTHER_RULES, IMAGE_METRICS):
        for metric in group:
            if any(metric in report[name] for name in splits):
                values = [report[name].get(metric) for name in splits]
                table.add_row(
                    metric, *("-" if v is None else f"{v:.4g}" for v in values), str(protocol.get(metric, ""))
                )
        table.add_section()
    console.print(table)
    for name in splits:
        indices = report[name].get("frame_indices", [])
        words = f"{name}: {len(indices)} frames of {report.get('sequence', '?')}: {describe_indices(indices)}"
        console.print(f"[dim]{escape(words)}[/]", highlight=False)
    for key, words in protocol.items():
        if key not in (*LABEL_METRICS, *OTHER_RULES, *IMAGE_METRICS):
            console.print(f"[dim]{key}: {escape(str(words))}[/]", highlight=False)
