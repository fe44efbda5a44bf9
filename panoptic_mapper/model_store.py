"""Weights of 2D models: found in a folder of yours or in the cache, else downloaded; always checked by SHA-256."""

from __future__ import annotations

import hashlib
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

logger = logging.getLogger(__name__)

MODELS_VARIABLE = "PANOPTIC_MAPPER_MODELS"  # environment variable that names a folder with weights
DOWNLOAD_TIMEOUT_S = 30.0
CHUNK_BYTES = 1 << 16
Progress = Callable[[int, int], None]  # bytes that have come, and that are expected
_GITHUB = "https://raw.githubusercontent.com"
_YOLOX = f"{_GITHUB}/Qengineering/YoloX-ncnn-Raspberry-Pi-4/3b1b307278d766f882ab85dfb01b78d954322eeb"
_MOSAIC = f"{_GITHUB}/mlcommons/mobile_open/86a873714efd6cb391c3a4751e3bb7b8f91b1449/vision/mosaic"


@dataclass(frozen=True)
class ModelFile:
    """One file of weights, pinned to a revision of the repository that publishes it."""

    url: str
    sha256: str
    size_bytes: int
    license: str
    other_names: dict[str, str] = field(default_factory=dict)  # further accepted file names, each with its SHA-256

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[1]

    @property
    def accepted(self) -> dict[str, str]:
        """File names under which a folder may hold the file, with the SHA-256 of each."""
        return {self.file_name: self.sha256, **self.other_names}


_MOSAIC_SHA256 = "da8b3822a22fde45ecaf0ff32022287eff58b500096971b04f3c1b292da66a3c"
_YOLOX_SHA256 = "5baf60130ef0accb6d1bf3cc4457e9d2b66d86f234e152d070931d6d9274fb30"
MODELS = {
    "mosaic_r4": ModelFile(
        f"{_MOSAIC}/models_and_checkpoints/R4/mobile_segmenter_r4_quant_argmax_uint8.tflite",
        _MOSAIC_SHA256,
        1_978_000,
        "Apache-2.0",
        {"mosaic_r4_ade32_uint8.tflite": _MOSAIC_SHA256},
    ),
    "yolox_nano_weights": ModelFile(
        f"{_YOLOX}/yoloxN.bin",
        _YOLOX_SHA256,
        1_825_280,
        "BSD-3-Clause (YOLOX: Apache-2.0)",
        {"yolox_nano_coco80.bin": _YOLOX_SHA256},
    ),
    "yolox_nano_graph": ModelFile(
        f"{_YOLOX}/yoloxN.param",
        "ee80b3cb89579aedae8ade8b61eacef366b502296acee2dad082174747f25c59",
        22_073,
        "BSD-3-Clause (YOLOX: Apache-2.0)",
        # The same graph after the removal of its Focus layer.
        {"yolox_nano_coco80_nofocus.param": "7302188b17fa3405ef24d7fad0df84b804f01bd39e4707287d453f2a113321e9"},
    ),
}


def cache_folder() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME/panoptic_mapper, by default ~/.cache/panoptic_mapper."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "panoptic_mapper"


def find_model(name: str, folder: str | Path | None = None, progress: Progress | None = None) -> Path:
    """The checked file of a model in `MODELS`, downloaded into the cache where it is not found.

    Args:
        folder: where to look; by default the folder that $PANOPTIC_MAPPER_MODELS names. A folder that is given must
            hold the file: nothing is downloaded then.
        progress: is told the bytes that have come and those that are expected.

    Raises:
        ValueError: the name is unknown, the file is not in the folder, its content is not the expected one, or the
            download failed. The message names file, URL, SHA-256 and where to put it.
    """
    if folder or os.environ.get(MODELS_VARIABLE):
        return local_model(name, folder)
    model = _known(name)
    return _look_up(model, cache_folder()) or _download(model, cache_folder(), progress)


def local_model(name: str, folder: str | Path | None = None) -> Path:
    """The checked file of a model in `MODELS`, without a download.

    Raises:
        ValueError: the name is unknown, the file is not there, or its content is not the expected one.
    """
    model = _known(name)
    place = Path(folder or os.environ.get(MODELS_VARIABLE) or cache_folder())
    found = _look_up(model, place)
    if found is None:
        raise ValueError(f"{place}: has none of {', '.join(model.accepted)}; {_how_to_get(model, place)}")
    return found


def is_here(name: str) -> bool:
    """Whether a model in `MODELS` need not be downloaded; its content is not looked at."""
    place = Path(os.environ.get(MODELS_VARIABLE) or cache_folder())
    return any((place / file_name).is_file() for file_name in _known(name).accepted)


def _known(name: str) -> ModelFile:
    if name not in MODELS:
        raise ValueError(f"unknown model '{name}'; known: {', '.join(MODELS)}")
    return MODELS[name]


def _look_up(model: ModelFile, folder: Path) -> Path | None:
    for file_name, sha256 in model.accepted.items():
        path = folder / file_name
        if path.is_file():
            _check(path.read_bytes(), sha256, path, model)
            return path
    return None


def _download(model: ModelFile, folder: Path, progress: Progress | None) -> Path:
    path = folder / model.file_name
    logger.info("downloading %s (%.1f MB)", model.url, model.size_bytes / 1e6)
    try:
        with urllib.request.urlopen(model.url, timeout=DOWNLOAD_TIMEOUT_S) as response:
            content = b""
            # A larger file is not the one that is pinned.
            while len(content) <= model.size_bytes and (chunk := response.read(CHUNK_BYTES)):
                content += chunk
                if progress is not None:
                    progress(len(content), model.size_bytes)
    except (urllib.error.URLError, OSError) as error:
        raise ValueError(f"cannot download {model.url} ({error}); {_how_to_get(model, folder)}") from error
    _check(content, model.sha256, model.url, model)
    partial = folder / f".{model.file_name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # Written beside and renamed: a reader never sees half a file.
            partial.write_bytes(content)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error}); name another folder in ${MODELS_VARIABLE}") from error
    return path


def _check(content: bytes, sha256: str, source: object, model: ModelFile) -> None:
    actual = hashlib.sha256(content).hexdigest()
    if actual != sha256:
        raise ValueError(
            f"{source}: {len(content)} bytes with SHA-256 {actual}, expected {sha256}; remove it and fetch {model.url}"
        )


def _how_to_get(model: ModelFile, folder: Path) -> str:
    return (
        f"fetch {model.file_name} from {model.url} on another machine"
        f" ({model.size_bytes} bytes, SHA-256 {model.sha256})"
        f" and put it into {folder}, or name the folder that holds it in ${MODELS_VARIABLE}"
    )
