"""The demonstration: a computed room is played into the node through DDS, queried, saved, and measured."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo

from panoptic_mapper.cli import print_report
from panoptic_mapper.datasets.rosbag_writer import write_rosbag
from panoptic_mapper.datasets.subset import Subset
from panoptic_mapper.datasets.synthetic import SyntheticConfig, SyntheticRoom
from panoptic_mapper.evaluation import split_indices
from panoptic_mapper.frame import Frame
from panoptic_mapper.msg import MapStatus, PanopticObject
from panoptic_mapper.results import MAP_FILE, load_mapper, make_report, writable_folder, write_results
from panoptic_mapper.ros.client import MapperClient
from panoptic_mapper.ros.processes import ChildProcess, own_domain, start_node, start_player
from panoptic_mapper.srv import QueryObjects, RenderView, SaveMap

TEST_EVERY = 8  # frames held out: they are not in the bag
TRAIN_EVERY = 4  # of the mapped frames, for their metrics; all of them would take a minute more
PLAY_RATE_HZ = 4.0  # frames per second of the played bag; what the mapper cannot take at once waits in its queue
START_TIMEOUT_S = 60.0
FRAME_TIMEOUT_S = 120.0  # a slow machine takes long for all frames, but not for one
PARAMETERS: dict[str, object] = {  # of the node
    "segmenter.name": "dataset",
    "device": "auto",
    "queue.capacity": 200,  # long enough that nothing is dropped: every frame counts in a short sequence
    "worker.idle_refine_steps": 0,
    "mapper.keyframes.translation_m": 0.10,  # two CPU cores finish within minutes
    "mapper.keyframes.rotation_deg": 6.0,
    "mapper.optimizer.steps_per_keyframe": 12,
}


def run_demo(
    out: Path, world: SyntheticConfig | None = None, parameters: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """Runs the demonstration and returns its report.

    Writes into `out`: the bag, the node's log, the map, objects.json, point clouds, report.json, overview.png, and a
    view that the node rendered.

    Args:
        world: the room; None = the default one.
        parameters: of the node, by dotted name; they win over those of the demonstration.

    Raises:
        RuntimeError, TimeoutError: a part failed; the message ends with what the node logged last.
        ValueError: `out` cannot be written.
    """
    console = Console()
    writable_folder(out)
    room = SyntheticRoom(world or SyntheticConfig())
    train, test = split_indices(len(room), TEST_EVERY)
    with _progress(console) as update:
        write_rosbag(Subset(room, train), out / "bag", overwrite=True, progress=lambda done, n: update("bag", done, n))
        with (
            own_domain(),
            start_node(out / "node.log", {**PARAMETERS, **(parameters or {})}) as node,
            MapperClient(node.check_alive) as client,
        ):
            try:
                wall_s, status = _play(client, out, len(train), room.config.fps, update)
                objects = _ask(client, console)
                _render(client, room[test[len(test) // 2]], out / "view_from_node.png")
                saved = _call(client, SaveMap, "save_map", SaveMap.Request(path=str(out / "node.pmap"), overwrite=True))
            except TimeoutError as error:
                raise RuntimeError(f"{error}; {node.log_tail()}") from error
            if node.stop() != 0:
                raise RuntimeError(f"the node ended with status {node.returncode}; {node.log_tail()}")
        update("measuring", 0, 1)
        mapper = load_mapper(Path(saved.path))
        about = {"segmenter": "dataset", "ros": _ros_report(status)}
        splits = {"train": train[::TRAIN_EVERY], "test": test}
        report = make_report(mapper, room, splits, wall_s, **about)
        write_results(out, mapper, room, test, report)
        Path(saved.path).replace(out / MAP_FILE)  # what the node itself wrote
        update("measuring", 1, 1)
    console.print(_object_table(objects))
    print_report(report)
    console.print(f"Look at [bold]{out / 'overview.png'}[/]; the map is {out / MAP_FILE}.")
    return report


def _play(client: MapperClient, out: Path, num_frames: int, fps: float, update: Any) -> tuple[float, MapStatus]:
    """Plays the bag and waits until all of it is mapped; returns how long that took, and the last status."""
    client.wait_for_status(lambda s: True, START_TIMEOUT_S, "status of the node")
    with start_player(out / "bag", out / "player.log", PLAY_RATE_HZ / fps, START_TIMEOUT_S) as player:
        client.wait_for_status(lambda s: s.frames_received > 0, START_TIMEOUT_S, "frame at the node")
        start = time.perf_counter()
        num_done = 0

        def is_further(status: MapStatus) -> bool:
            _check_player(player)
            return _num_done(status) > num_done

        while num_done < num_frames:
            status = client.wait_for_status(is_further, FRAME_TIMEOUT_S, f"end of frame {num_done + 1} of {num_frames}")
            num_done = _num_done(status)
            update("mapping", status.frames_integrated, num_frames)
        wall_s = time.perf_counter() - start
        if player.wait(START_TIMEOUT_S) != 0:
            _check_player(player)
    if status.frames_integrated == 0:
        raise TimeoutError(f"no frame was mapped: {dict(zip(status.drop_reasons, status.drop_counts, strict=True))}")
    return wall_s, status


def _num_done(status: MapStatus) -> int:
    """Frames that are in the map or were dropped."""
    return status.frames_integrated + sum(status.drop_counts)


def _check_player(player: ChildProcess) -> None:
    if player.returncode not in (None, 0):
        player.check_alive()


def _ask(client: MapperClient, console: Console) -> list[PanopticObject]:
    """Asks for all objects, and for the two chairs nearest to a table, where there are such."""
    objects = _call(client, QueryObjects, "query_objects").objects
    if not objects:
        raise RuntimeError("the node found no object in the room")
    tables = [o for o in objects if o.class_name == "table"]
    if tables:
        request = QueryObjects.Request(class_names=["chair"], nearest_k=2, nearest_to=tables[0].centroid)
        chairs = _call(client, QueryObjects, "query_objects", request).objects
        names = " and ".join(f"{o.class_name} {o.id}" for o in chairs) or "none"
        console.print(f"Asked the node: which two chairs are nearest to table {tables[0].id}? {names}")
    return list(objects)


def _render(client: MapperClient, frame: Frame, file: Path) -> None:
    """Lets the node render what a held-out frame saw, and writes the two side by side."""
    request = RenderView.Request(camera_info=CameraInfo(width=frame.camera.width, height=frame.camera.height))
    request.camera_info.k = frame.camera.matrix.reshape(-1).tolist()
    p, q = request.pose.position, request.pose.orientation
    p.x, p.y, p.z = frame.T_map_camera[:3, 3].tolist()
    q.x, q.y, q.z, q.w = Rotation.from_matrix(frame.T_map_camera[:3, :3]).as_quat().tolist()
    image = _call(client, RenderView, "render_view", request).color
    rendered = np.frombuffer(bytes(image.data), np.uint8).reshape(image.height, image.width, 3)
    if not cv2.imwrite(str(file), np.hstack([frame.color, rendered])[..., ::-1]):
        raise ValueError(f"cannot write {file}")


def _call(client: MapperClient, service_type: type, name: str, request: Any = None) -> Any:
    answer = client.call(service_type, name, request)
    if not answer.success:
        raise RuntimeError(f"the service {name} failed: {answer.message}")
    return answer


def _ros_report(status: MapStatus) -> dict[str, Any]:
    """How the node fared, for the report."""
    return {
        "frames_received": status.frames_received,
        "frames_integrated": status.frames_integrated,
        "drops": {r: int(n) for r, n in zip(status.drop_reasons, status.drop_counts, strict=True)},
        "latency_ms": {"p50": status.latency_p50_ms, "p90": status.latency_p90_ms, "p99": status.latency_p99_ms},
        "rss_mb": status.rss_bytes / 2**20,
    }


@contextmanager
def _progress(console: Console) -> Iterator[Any]:
    """Bars that `update(what, done, total)` moves."""
    bars = Progress(
        TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    tasks: dict[str, Any] = {}

    def update(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done)

    with bars:
        yield update


def _object_table(objects: list[PanopticObject]) -> Table:
    table = Table("id", "class", "score", "seen", "centre x y z, m", "size, m", title="objects that the node found")
    for o in objects:
        c, s = o.box_pose.position, o.box_size
        center, size = f"{c.x:.2f} {c.y:.2f} {c.z:.2f}", f"{s.x:.2f} {s.y:.2f} {s.z:.2f}"
        table.add_row(str(o.id), o.class_name, f"{o.score:.2f}", str(o.observations), center, size)
    return table
