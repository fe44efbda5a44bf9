"""Published evaluation protocols as data, and where their scenes are on the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from panoptic_mapper.label_space import SemanticClass


@dataclass(frozen=True)
class ProtocolClass:
    """A class that is evaluated, and the raw ScanNet categories that it is made of."""

    name: str
    is_thing: bool
    raw_ids: tuple[int, ...]


@dataclass(frozen=True)
class Protocol:
    """What is mapped and how it is compared."""

    name: str
    source: str  # where scenes, classes and the rule of `pr_metric` come from
    classes: dict[str, tuple[ProtocolClass, ...]]  # of each scene; everything else is void
    every: int  # every so many-th frame of the recording is used
    test_every: int  # of these, every so many-th is held out
    pr_metric: str  # the metric by the source's own rule, beside the headline pq
    files: tuple[str, ...]  # that a scene needs, {scene} is its name
    where: str  # to get them
    caveats: tuple[str, ...]  # in which way numbers differ from published ones

    @property
    def scenes(self) -> tuple[str, ...]:
        return tuple(self.classes)

    def semantic_classes(self, scene: str) -> tuple[list[SemanticClass], dict[int, tuple[int, ...]]]:
        """Classes of a scene, and the raw ids of each class id."""
        classes = self.classes[scene]
        spaced = [SemanticClass(i, c.name, c.is_thing) for i, c in enumerate(classes, start=1)]
        return spaced, {i: c.raw_ids for i, c in enumerate(classes, start=1)}


@dataclass(frozen=True)
class SceneSearch:
    """Scenes of a protocol under a folder."""

    found: dict[str, Path]  # folders, in the protocol's order
    missing: dict[str, str]  # what is not there, in words


def get_protocol(name: str) -> Protocol:
    """Raises ValueError naming the known protocols."""
    if name not in PROTOCOLS:
        raise ValueError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got '{name}'")
    return PROTOCOLS[name]


def find_scenes(protocol: Protocol, root: Path) -> SceneSearch:
    """Looks for each scene's folder in `root`, and two folders down (root/scans/<scene>, ...), with all its files.

    Raises:
        ValueError: there is no such folder.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    found: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for scene in protocol.scenes:
        candidates = [root] if root.resolve().name == scene else []
        candidates += [p for depth in ("", "*/", "*/*/") for p in sorted(root.glob(depth + scene)) if p.is_dir()]
        lacking = [[f for f in _files(protocol, scene) if not (p / f).is_file()] for p in candidates]
        complete = next((p for p, files in zip(candidates, lacking, strict=True) if not files), None)
        if complete is not None:
            found[scene] = complete
        elif candidates:
            missing[scene] = f"{candidates[0]} lacks {', '.join(lacking[0])}"
        else:
            missing[scene] = f"no folder {scene}"
    return SceneSearch(found, missing)


def _files(protocol: Protocol, scene: str) -> list[str]:
    return [file.format(scene=scene) for file in protocol.files]


def _stuff(name: str, *raw_ids: int) -> ProtocolClass:
    return ProtocolClass(name, False, raw_ids)


def _thing(name: str, *raw_ids: int) -> ProtocolClass:
    return ProtocolClass(name, True, raw_ids)


SCANNET_V2 = Protocol(
    name="scannet-v2",
    source="the four ScanNet scenes, classes and rule of PanopticRecon and PanopticRecon++ (arXiv 2501.01119)",
    classes={
        "scene0087_02": (
            *(_stuff("wall", 1), _stuff("floor", 3), _stuff("door", 5), _stuff("curtain", 21), _stuff("clothes", 131)),
            *(_thing("chair", 2, 23), _thing("couch", 6, 39, 1313), _thing("table", 4, 24)),
        ),
        "scene0088_00": (
            *(_stuff("wall", 1), _stuff("floor", 3), _stuff("door", 5, 161), _stuff("whiteboard", 52)),
            *(_thing("chair", 2), _thing("table", 4)),
        ),
        "scene0420_01": (
            *(_stuff("wall", 1, 41), _stuff("floor", 3), _stuff("door", 5), _stuff("window", 16)),
            *(_stuff("blackboard", 89), _thing("chair", 2), _thing("table", 4), _thing("trash can", 56, 97)),
            _thing("cabinet", 7),
        ),
        "scene0628_02": (
            *(_stuff("wall", 1, 41), _stuff("floor", 3), _stuff("door", 5), _stuff("window", 16), _thing("chair", 2)),
            *(_thing("table", 4, 9), _thing("backpack", 48), _thing("box", 26), _thing("laptop", 77)),
            _thing("trash can", 56, 97, 1169),
        ),
    },
    every=10,
    test_every=8,
    pr_metric="pq_pr_0.1",
    files=("{scene}.sens", "{scene}_2d-label-filt.zip", "{scene}_2d-instance-filt.zip"),
    where="http://www.scan-net.org asks for a signed agreement and then sends a download script; -o ROOT --id SCENE"
    " brings a scene (docs/datasets/scannet.md)",
    caveats=(
        "the published evaluation does not say which frames it takes; here every 10th, of these every 8th held out",
        "published maps are made from 2D labels of Grounded SAM; the segmenter 'dataset' takes ScanNet's own, which is"
        " easier",
    ),
)
PROTOCOLS = {protocol.name: protocol for protocol in (SCANNET_V2,)}
