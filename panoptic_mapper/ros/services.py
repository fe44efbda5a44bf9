"""The node's services: messages to and from the calls of `MapService`. None can harm the map by failing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from panoptic_mapper.map_service import MapperFailure, MapService
from panoptic_mapper.query import BoxRegion, ObjectQuery, SphereRegion, select_objects
from panoptic_mapper.ros.conversions import camera_from_message, image_message, object_message, stamp_message
from panoptic_mapper.ros.pose_source import FrameTransforms, matrix_from_pose
from panoptic_mapper.srv import LoadMap, QueryObjects, RenderView, SaveMap, SetVocabulary
from panoptic_mapper.text_query import TextEncoder, TextQueryConfig, match_text

logger = logging.getLogger(__name__)
MAX_RENDER_PIXELS = 4096 * 4096


class Refused(ValueError):
    """A request that cannot be fulfilled; the text is the answer's `message`."""


class MapServices:
    """Creates the services on `node`. `get_mapper` gives None until the mapper is up."""

    def __init__(
        self,
        node: Node,
        get_mapper: Callable[[], MapService | None],
        transforms: FrameTransforms,
        map_frame: str,
        on_reset: Callable[[], None] = lambda: None,
        text_config: TextQueryConfig | None = None,
        encoder: TextEncoder | None = None,
    ) -> None:
        self._get_mapper = get_mapper
        self._transforms = transforms
        self._map_frame = map_frame
        self._on_reset = on_reset
        self._text_config = text_config
        self._encoder = encoder
        for type_, name, handler in (
            (QueryObjects, "~/query_objects", self.query_objects),
            (RenderView, "~/render_view", self.render_view),
            (SaveMap, "~/save_map", self.save_map),
            (LoadMap, "~/load_map", self.load_map),
            (Trigger, "~/reset", self.reset),
            (SetVocabulary, "~/set_vocabulary", self.set_vocabulary),
            (SetBool, "~/pause", self.pause),
        ):
            group = MutuallyExclusiveCallbackGroup()  # its own, so that a long one does not hold up the others
            node.create_service(type_, name, _answering(handler), callback_group=group)

    def query_objects(self, request: QueryObjects.Request, response: QueryObjects.Response) -> str:
        query = self._object_query(request)
        objects, label_space, stamp_ns = self._mapper().objects()
        if request.text:
            matches = match_text(request.text, label_space, self._encoder, self._text_config)
            query = replace(query, class_indices=[m.class_index for m in matches])
            response.text_classes = [label_space.names[m.class_index] for m in matches]
            response.text_similarities = [m.similarity for m in matches]
        found = select_objects(objects, query, label_space)
        response.header = Header(stamp=stamp_message(stamp_ns), frame_id=self._map_frame)
        response.objects = [object_message(o, label_space) for o in found]
        return f"{len(found)} of {len(objects)} objects"

    def render_view(self, request: RenderView.Request, response: RenderView.Response) -> str:
        camera = camera_from_message(request.camera_info)
        if camera.width * camera.height > MAX_RENDER_PIXELS:
            raise Refused(f"camera_info: {camera.width}x{camera.height} is more than {MAX_RENDER_PIXELS} pixels")
        T_map_camera = self._transforms.T_map_frame(request.frame_id) @ matrix_from_pose(request.pose)
        view, label_space, stamp_ns = self._mapper().render(camera, T_map_camera)
        response.color = image_message(view.color, "rgb8", stamp_ns)
        response.depth = image_message(view.depth.astype(np.float32), "32FC1", stamp_ns)
        response.semantic = image_message(label_space.ids[view.semantic].astype(np.uint16), "16UC1", stamp_ns)
        response.instance = image_message(view.instance.astype(np.int32), "32SC1", stamp_ns)
        return f"{camera.width}x{camera.height}, {(view.alpha > 0.5).mean():.0%} of it filled"

    def save_map(self, request: SaveMap.Request, response: SaveMap.Response) -> str:
        path = _path(request.path)
        if path.exists() and not request.overwrite:
            raise Refused(f"path: {path} exists; set overwrite to replace it")
        response.path, response.bytes = str(path), self._mapper().save(path)
        return f"wrote {path}"

    def load_map(self, request: LoadMap.Request, response: LoadMap.Response) -> str:
        path = _path(request.path)
        stats, num_objects = self._mapper().load(path)
        response.num_gaussians = stats.num_gaussians
        response.num_objects = num_objects
        response.num_keyframes = stats.num_keyframes
        return f"loaded {path}: {stats.num_gaussians} Gaussians, {num_objects} objects"

    def reset(self, request: Trigger.Request, response: Trigger.Response) -> str:
        self._mapper().reset()
        self._on_reset()
        return "the map is empty"

    def set_vocabulary(self, request: SetVocabulary.Request, response: SetVocabulary.Response) -> str:
        label_space = self._mapper().set_vocabulary(request.things, request.stuff)
        response.class_names = list(label_space.names[1:])
        response.class_ids = label_space.ids[1:].tolist()
        return f"{len(request.things)} things and {len(request.stuff)} stuff words; the map has {len(label_space) - 1}"

    def pause(self, request: SetBool.Request, response: SetBool.Response) -> str:
        if request.data:
            self._mapper().pause()
            return "paused: frames are dropped until pause is called with false"
        self._mapper().resume()
        return "mapping"

    def _mapper(self) -> MapService:
        mapper = self._get_mapper()
        if mapper is None:
            raise Refused("the mapper has not started: the label space is not known yet (labels_file or its topic)")
        return mapper

    def _object_query(self, request: QueryObjects.Request) -> ObjectQuery:
        T = self._transforms.T_map_frame(request.frame_id)

        def in_map(point: Any) -> np.ndarray:
            return T[:3, :3] @ (point.x, point.y, point.z) + T[:3, 3]

        box = sphere = None
        if request.use_box:
            q, size = request.box_pose.orientation, request.box_size
            if (q.x, q.y, q.z, q.w) == (0, 0, 0, 0):
                q.w = 1.0
            box = BoxRegion(T @ matrix_from_pose(request.box_pose), np.array([size.x, size.y, size.z]))
        if request.use_sphere:
            sphere = SphereRegion(in_map(request.sphere_center), request.sphere_radius)
        return ObjectQuery(
            class_names=request.class_names,
            ids=tuple(request.ids),
            box=box,
            sphere=sphere,
            min_score=request.min_score,
            nearest_k=request.nearest_k,
            nearest_to=in_map(request.nearest_to),
        )


def _answering(handler: Callable[[Any, Any], str]) -> Callable[[Any, Any], Any]:
    """A service callback: what the handler returns is the message of a success, what it raises that of a failure."""

    def callback(request: Any, response: Any) -> Any:
        try:
            response.message = handler(request, response)
            response.success = True
        except (ValueError, OSError, MapperFailure) as error:
            response = type(response)(success=False, message=str(error))
        except Exception as error:
            logger.exception("the service failed")
            response = type(response)(success=False, message=f"internal error: {error!r}")
        return response

    return callback


def _path(text: str) -> Path:
    if not text:
        raise Refused("path: expected a file, got ''")
    return Path(text).expanduser().absolute()
