"""All parameters of the node: its own, and those of the parts that it runs."""

from __future__ import annotations

from dataclasses import dataclass

from panoptic_mapper.build import create_mapper
from panoptic_mapper.config import Config, param, section
from panoptic_mapper.frame_queue import FrameQueueConfig
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.mapper import MapperConfig, PanopticMapper
from panoptic_mapper.pose_buffer import PoseBufferConfig
from panoptic_mapper.segmenters import SegmenterConfig
from panoptic_mapper.text_query import TextQueryConfig
from panoptic_mapper.worker import WorkerConfig


@dataclass(frozen=True)
class TopicsConfig(Config):
    """Names of the input topics; a name without a slash in front is relative to the node's namespace."""

    color: str = param("/camera/color/image_raw", "Colour images, undistorted.")
    depth: str = param(
        "/camera/depth/image_raw", "Depth images registered to the colour camera: 16UC1 in mm or 32FC1 in m."
    )
    camera_info: str = param("/camera/color/camera_info", "Intrinsics of the colour camera (CameraInfo).")
    pose: str = param("/camera/pose", "Poses (PoseStamped or Odometry: see pose_source).")
    labels: str = param(
        "/camera/labels",
        "Label images (32SC1: class id in the high 16 bits, instance in the low 16), for the segmenters that take"
        " labels from outside.",
    )
    label_space: str = param(
        "/camera/label_space", "The classes of the label images (String, JSON as in labels.json, transient local)."
    )


@dataclass(frozen=True)
class QosConfig(Config):
    """Quality of service of the image and pose subscriptions."""

    reliability: str = param(
        "reliable",
        "best_effort also hears cameras that publish best effort, but loses images that do not fit into the shared"
        " memory of the publisher.",
        choices=("reliable", "best_effort"),
    )
    depth: int = param(10, "Messages that a subscription keeps until the node comes to them.", ge=1)


@dataclass(frozen=True)
class SyncConfig(Config):
    """Approximate time synchronisation of colour, depth and label images."""

    queue_size: int = param(20, "Messages kept of each topic while their partners have not come.", ge=1)
    slop_s: float = param(0.02, "Images of one frame may differ in their stamps by this much, s.", ge=0)


@dataclass(frozen=True)
class PublishConfig(Config):
    """Rates of what the node publishes; a topic without subscribers costs nothing."""

    map_rate_hz: float = param(1.0, "Clouds, objects and markers at most this often, Hz.", gt=0, le=100)
    status_rate_hz: float = param(2.0, "Status, Hz.", gt=0, le=100)


@dataclass(frozen=True)
class NodeConfig(Config):
    """Parameters of the node `panoptic_mapper`."""

    map_frame: str = param("map", "Frame in which the map is built; poses must be given in it.")
    camera_frame: str = param(
        "", "Optical frame of the colour camera, for pose_source=tf; empty = the frame that the images name."
    )
    pose_source: str = param(
        "pose",
        "Where poses come from: a PoseStamped topic, an Odometry topic, or TF.",
        choices=("pose", "odometry", "tf"),
    )
    body_to_camera: tuple[float, ...] = param(
        (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
        "Pose of the camera's optical frame in the body whose pose the topic gives: x y z in m, quaternion x y z w.",
    )
    color_transport: str = param(
        "raw", "Type of the colour topic: Image, or CompressedImage (JPEG, PNG).", choices=("raw", "compressed")
    )
    depth_transport: str = param(
        "raw", "Type of the depth topic: Image, or CompressedImage (16 bit PNG).", choices=("raw", "compressed")
    )
    labels_file: str = param(
        "", "Classes of the label images: a labels.json, a label space (name or YAML file); empty = topics.label_space."
    )
    device: str = param(
        "auto", "Where the map lives; auto = cuda where there is a GPU.", choices=("auto", "cpu", "cuda")
    )
    service_timeout_s: float = param(30.0, "A service that waits longer for the mapper answers with failure, s.", gt=0)
    topics: TopicsConfig = section(TopicsConfig)
    qos: QosConfig = section(QosConfig)
    sync: SyncConfig = section(SyncConfig)
    queue: FrameQueueConfig = section(FrameQueueConfig)
    poses: PoseBufferConfig = section(PoseBufferConfig)
    worker: WorkerConfig = section(WorkerConfig)
    publish: PublishConfig = section(PublishConfig)
    text_query: TextQueryConfig = section(TextQueryConfig)
    segmenter: SegmenterConfig = section(SegmenterConfig)
    mapper: MapperConfig = section(MapperConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.body_to_camera) != 7:
            raise ValueError(f"NodeConfig.body_to_camera: expected x y z qx qy qz qw, got {self.body_to_camera}")
        if not self.map_frame:
            raise ValueError("NodeConfig.map_frame: expected the name of a frame, got ''")


def mapper_of_node(config: NodeConfig, label_space: LabelSpace | None) -> PanopticMapper:
    """The mapper that a node has; called in a process without ROS, so it stands in a module without.

    Raises:
        ValueError: as `create_mapper`.
    """
    return create_mapper(config.mapper, config.segmenter, label_space, config.device, is_live=True)
