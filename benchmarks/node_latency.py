"""Latency of the ROS node: from the stamp of an image to the cloud and the objects that show it, through DDS.

`python -m benchmarks.node_latency --data FOLDER` writes a bag of the sequence, starts mapper node and bag player
as processes of their own, and listens to what the node publishes as a third. The first frames are played before, to a
map that is then emptied: libraries are loaded and kernels compiled.

A latency is from the time at which the player publishes the first message of a frame (camera_info) to the time at which
the message that is the first to show this frame has come to the listener. Frames that are no keyframes are shown by no
message of their own, and have none.
"""

from __future__ import annotations

import argparse
import json
import struct
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from panoptic_mapper.msg import MapStatus, PanopticObjectArray
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, PointCloud2
from std_srvs.srv import Trigger

from benchmarks.gpu_parts.context import PresetConfig, hardware, markdown, percentile
from panoptic_mapper.build import resolved_device
from panoptic_mapper.config import iter_parameters, load_config, to_dict
from panoptic_mapper.datasets import open_dataset
from panoptic_mapper.datasets.rosbag_writer import write_rosbag
from panoptic_mapper.datasets.subset import Subset
from panoptic_mapper.ros.client import MapperClient
from panoptic_mapper.ros.node_config import NodeConfig
from panoptic_mapper.ros.processes import own_domain, start_node, start_player

CONFIG = Path(__file__).resolve().parents[1] / "config"
START_TIMEOUT_S = 120.0
LAST_TIMEOUT_S = 120.0  # after the bag's end
SETTLE_S = 2.0  # after the last frame was mapped, for the last messages


@dataclass
class Arrivals:
    """When frames were played and what came of the node, ns of the system's clock by the stamp of the header, ns."""

    played: dict[int, int] = field(default_factory=dict)
    first: dict[str, dict[int, int]] = field(default_factory=dict)  # topic -> stamp -> first arrival
    all: dict[str, list[int]] = field(default_factory=dict)  # topic -> arrivals of all its messages
    num_bytes: dict[str, int] = field(default_factory=dict)  # topic -> size of the last message

    def on_camera_info(self, data: bytes, info: dict[str, Any]) -> None:
        self.played.setdefault(stamp_of(data), info["source_timestamp"])

    def on_message(self, topic: str, data: bytes, info: dict[str, Any]) -> None:
        self.first.setdefault(topic, {}).setdefault(stamp_of(data), info["received_timestamp"])
        self.all.setdefault(topic, []).append(info["received_timestamp"])
        self.num_bytes[topic] = len(data)

    def latencies_ms(self, topic: str) -> list[float]:
        """Of every frame that was the newest in some message."""
        return [
            1e-6 * (arrival - self.played[stamp])
            for stamp, arrival in self.first.get(topic, {}).items()
            if stamp in self.played
        ]

    def clear(self) -> None:
        for part in (self.played, self.first, self.all, self.num_bytes):
            part.clear()


def stamp_of(data: bytes) -> int:
    """The header's stamp, ns, of a serialized message that begins with a header: 4 bytes say how it is encoded."""
    seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return seconds * 10**9 + nanoseconds


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a sequence with labels: a folder, or synthetic:key=value,...")
    parser.add_argument("--frames", type=int, default=0, help="at most so many frames, 0 = all")
    parser.add_argument("--warm-up", type=int, default=20, help="frames that are played before")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the sequence's own rate")
    parser.add_argument("--config", type=Path, default=CONFIG / "latency.yaml", help="settings of the mapper")
    parser.add_argument("--publish-hz", type=float, default=10.0, help="clouds and objects at most this often")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another parameter of the node")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=Path("out/node_latency"), help="folder of the results and logs")
    return parser.parse_args(arguments)


def parameters(args: argparse.Namespace) -> dict[str, object]:
    """Parameters of the node, by dotted name."""
    preset = to_dict(load_config(PresetConfig, args.config))
    values: dict[str, object] = {}
    for parameter in iter_parameters(PresetConfig):
        value: Any = preset
        for part in parameter.name.split("."):
            value = value[part]
        if value != parameter.default:
            values[parameter.name] = value
    values |= {"device": args.device, "segmenter.name": "dataset", "publish.map_rate_hz": args.publish_hz}
    values |= {"publish.status_rate_hz": 5.0, "worker.idle_refine_steps": 1}  # a frame waits for a step at most
    return values | dict(word.split("=", 1) for word in args.set)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Plays the sequence into the node, and returns what came out, and when."""
    args.out.mkdir(parents=True, exist_ok=True)
    dataset = open_dataset(args.data)
    indices = range(min(args.frames or len(dataset), len(dataset)))
    arrivals = Arrivals()
    with tempfile.TemporaryDirectory() as folder, own_domain():
        bags = {"warm_up": indices[: args.warm_up], "bag": indices}
        for name, chosen in bags.items():
            write_rosbag(Subset(dataset, chosen), Path(folder) / name, storage="sqlite3")
        with (
            start_node(args.out / "node.log", parameters(args)) as node,
            MapperClient(node.check_alive) as client,
        ):
            listen(client, arrivals)
            client.wait_for_status(lambda s: True, START_TIMEOUT_S, "status of the node")
            play(client, Path(folder) / "warm_up", args, "warm_up", len(bags["warm_up"]), START_TIMEOUT_S)
            answer = client.call(Trigger, "reset")
            assert answer.success, answer.message
            arrivals.clear()
            cpu_s = node.cpu_s()
            seconds, status = play(client, Path(folder) / "bag", args, "player", len(indices), LAST_TIMEOUT_S)
            cpu_s = node.cpu_s() - cpu_s
    return result(args, arrivals, len(indices), seconds, status, cpu_s)


def listen(client: MapperClient, arrivals: Arrivals) -> None:
    """Notes when a frame is played, and when messages of the node come; none is converted, which would take long."""
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    topics = {"semantic_cloud": PointCloud2, "objects": PanopticObjectArray}
    for topic, message_type in topics.items():

        def on_message(data: bytes, info: dict[str, Any], topic: str = topic) -> None:
            arrivals.on_message(topic, data, info)

        client.node.create_subscription(message_type, f"/panoptic_mapper/{topic}", on_message, latched, raw=True)

    def on_camera_info(data: bytes, info: dict[str, Any]) -> None:
        arrivals.on_camera_info(data, info)

    client.node.create_subscription(CameraInfo, "/camera/color/camera_info", on_camera_info, 100, raw=True)


def play(
    client: MapperClient, bag: Path, args: argparse.Namespace, name: str, num_frames: int, timeout_s: float
) -> tuple[float, MapStatus]:
    """Plays a bag until the node has taken or dropped all of it; how long that took (s), and the last status."""
    topics = NodeConfig().topics  # of these, the node alone is a subscriber; of camera_info, so is the client
    needed = [topics.color, topics.depth, topics.pose, topics.labels]
    log_file = args.out / f"{name}.log"
    with start_player(bag, log_file, args.rate, START_TIMEOUT_S, needed_topics=needed) as player:
        client.wait_for_status(lambda s: s.frames_received > 0, START_TIMEOUT_S, "frame at the node")
        start = time.perf_counter()
        client.wait_until(lambda: player.returncode is not None, START_TIMEOUT_S + num_frames, "player's end")
        if player.returncode != 0:
            player.check_alive()

    def is_done(status: MapStatus) -> bool:
        return status.frames_integrated + sum(status.drop_counts) >= status.frames_received and status.queue_size == 0

    status = client.wait_for_status(is_done, timeout_s, "end of mapping")
    seconds = time.perf_counter() - start
    deadline = time.monotonic() + SETTLE_S
    client.wait_until(lambda: time.monotonic() > deadline, 2 * SETTLE_S, "last messages")
    return seconds, status


def result(
    args: argparse.Namespace, arrivals: Arrivals, num_frames: int, seconds: float, status: MapStatus, cpu_s: float
) -> dict[str, Any]:
    begin, end = min(arrivals.played.values()), max(arrivals.played.values())
    play_s = 1e-9 * (end - begin)
    drops = dict(zip(status.drop_reasons, map(int, status.drop_counts), strict=True))
    topics = {}
    for topic, received in sorted(arrivals.all.items()):
        latencies = arrivals.latencies_ms(topic)
        topics[topic] = {
            "frames_shown_first": len(latencies),
            "per_s": sum(begin <= t <= end for t in received) / play_s,
            "mb": 1e-6 * arrivals.num_bytes[topic],
            "latency_ms": {f"p{p}": percentile(latencies, p) if latencies else None for p in (50, 90, 99, 100)},
        }
    return {
        "hardware": hardware(resolved_device(args.device)),
        "data": Path(args.data).name,
        "rate": args.rate,
        "frames": num_frames,
        "frames_per_s_played": (len(arrivals.played) - 1) / play_s,
        "frames_received": status.frames_received,
        "frames_integrated": status.frames_integrated,
        "drops": drops,
        "keyframes": status.num_keyframes,
        "gaussians": status.num_gaussians,
        "objects": status.num_objects,
        "in_the_map_ms": {"p50": status.latency_p50_ms, "p90": status.latency_p90_ms, "p99": status.latency_p99_ms},
        "node_cpus": cpu_s / seconds,
        "topics": topics,
    }


def table(measured: dict[str, Any]) -> str:
    names = (
        "frames",
        "frames_per_s_played",
        "frames_received",
        "frames_integrated",
        "keyframes",
        "gaussians",
        "objects",
    )
    rows: list[list[Any]] = [[name, measured[name]] for name in names]
    rows += [["drops", ", ".join(f"{n} {reason}" for reason, n in measured["drops"].items()) or "none"]]
    rows += [["processors that the node keeps busy", measured["node_cpus"]]]
    rows += [[f"frame in the map after, {p}, ms", value] for p, value in measured["in_the_map_ms"].items()]
    for topic, values in measured["topics"].items():
        rows += [[f"{topic}: messages per s", values["per_s"]], [f"{topic}: size of the last, MB", values["mb"]]]
        rows += [[f"{topic}: frames that it was the first to show", values["frames_shown_first"]]]
        rows += [[f"{topic}: image stamp to message, {p}, ms", v] for p, v in values["latency_ms"].items()]
    return f"{measured['hardware']}\n\n" + markdown(["", measured["data"]], rows)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse(arguments)
    measured = measure(args)
    print(table(measured), flush=True)
    (args.out / "node_latency.md").write_text(table(measured) + "\n")
    (args.out / "node_latency.json").write_text(json.dumps(measured, indent=1))
    return measured


if __name__ == "__main__":
    main()
