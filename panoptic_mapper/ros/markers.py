"""Boxes and names of the objects for RViz. A marker keeps its object's id; markers of vanished objects are deleted."""

from __future__ import annotations

from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from panoptic_mapper.ros.conversions import pose_message, vector_message
from panoptic_mapper.snapshot import MapObject, MapSnapshot

BOXES, NAMES = "boxes", "names"  # namespaces of the markers
NAME_HEIGHT_M = 0.12


class MarkerTracker:
    """Remembers which markers are shown."""

    def __init__(self) -> None:
        self._shown: set[int] = set()

    def message(self, snapshot: MapSnapshot, header: Header) -> MarkerArray:
        """Markers of all objects of the snapshot, and the deletion of those that were in the last message only."""
        markers = []
        for o in snapshot.objects:
            r, g, b = (c / 255 for c in snapshot.label_space.colors[o.class_index].tolist())
            markers += [_box(o, header, (r, g, b)), _name(o, header)]
        ids = {o.id for o in snapshot.objects}
        for vanished in sorted(self._shown - ids):
            markers += [
                Marker(header=header, ns=namespace, id=vanished, action=Marker.DELETE) for namespace in (BOXES, NAMES)
            ]
        self._shown = ids
        return MarkerArray(markers=markers)


def _box(o: MapObject, header: Header, rgb: tuple[float, float, float]) -> Marker:
    marker = Marker(header=header, ns=BOXES, id=o.id, type=Marker.CUBE, action=Marker.ADD)
    marker.pose = pose_message(o.box.center, o.box.quaternion)
    marker.scale = vector_message([max(float(s), 1e-3) for s in o.box.size])  # RViz refuses a zero scale
    marker.color = ColorRGBA(r=rgb[0], g=rgb[1], b=rgb[2], a=0.35)
    return marker


def _name(o: MapObject, header: Header) -> Marker:
    marker = Marker(header=header, ns=NAMES, id=o.id, type=Marker.TEXT_VIEW_FACING, action=Marker.ADD)
    marker.pose = pose_message(o.box.center, o.box.quaternion)
    marker.pose.position.z = float(o.aabb_max[2]) + NAME_HEIGHT_M
    marker.scale.z = NAME_HEIGHT_M
    marker.color = ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0)
    marker.text = f"{o.class_name} {o.id}"
    return marker
