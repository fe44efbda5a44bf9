"""The map file: tensors and a JSON document in one safetensors file, checksummed, written in one step or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

FORMAT = "panoptic_mapper map"
FORMAT_VERSION = 1  # raised when an older reader would misread the file
SUFFIX = ".pmap"


def save_map(path: Path, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Writes a map file, making its folder; a file that is there already is replaced only by a complete one.

    Args:
        tensors: arrays of numbers or bools by name.
        meta: whatever JSON can hold.

    Raises:
        ValueError: naming the file and why it cannot be written; the old file is untouched then.
    """
    path = Path(path)
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{path}: tensor '{name}': expected numbers, got dtype {array.dtype}")
    try:
        document = json.dumps(meta, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: the map's description cannot be written as JSON: {error}") from error
    header = {"format": FORMAT, "version": str(FORMAT_VERSION), "meta": document, "sha256": _digest(arrays, document)}

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # the same folder: a rename within one file system
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # what the umask allows; safetensors makes files that only the owner can read
        save_file(arrays, temporary, metadata=header)
        temporary.chmod(mode)
        _sync(temporary)  # the data reach the disk before the name does
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: the map cannot be written: {error}") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def load_map(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads what `save_map` wrote: (tensors, meta).

    Raises:
        ValueError: naming the file: not readable, not a map, truncated, of a newer version, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: expected a map file, but there is {'a folder' if path.is_dir() else 'nothing'}")
    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
            _check_header(path, header)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, the handle is no dict
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path}: expected a map file, but it is truncated or something else ({path.stat().st_size} bytes; {error})"
        ) from error
    digest = _digest(tensors, header["meta"])
    if digest != header["sha256"]:
        raise ValueError(f"{path}: damaged: expected SHA-256 {header['sha256']}, got {digest}")
    return tensors, json.loads(header["meta"])


def _check_header(path: Path, header: Mapping[str, str]) -> None:
    if header.get("format") != FORMAT or not {"version", "meta", "sha256"} <= set(header):
        raise ValueError(
            f"{path}: expected format '{FORMAT}', got '{header.get('format', 'another safetensors file')}'"
        )
    version = header["version"]
    if not version.isdecimal() or int(version) > FORMAT_VERSION:
        raise ValueError(
            f"{path}: expected map format version {FORMAT_VERSION} or older, got {version};"
            " a newer panoptic_mapper can read it"
        )


def _digest(tensors: Mapping[str, np.ndarray], document: str) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors in the order of their names, and the document."""
    sha256 = hashlib.sha256(document.encode())
    for name in sorted(tensors):
        array = tensors[name]
        sha256.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        sha256.update(array.reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
