"""The map file: what is read equals what was written, and nothing else is ever taken for a map."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from panoptic_mapper import map_io
from panoptic_mapper.map_io import load_map, save_map

RNG = np.random.default_rng(0)
TENSORS = {
    "means": RNG.normal(size=(50, 3)).astype(np.float32),
    "strided": np.arange(24, dtype=np.int64).reshape(4, 6)[:, ::2],
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 32), np.float32),
    "scalar": np.array(2.5),
}
META = {"classes": [{"id": 1, "name": "Küche", "isthing": False}], "next_id": 7, "scale": 0.1}


@pytest.fixture
def map_file(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "a.pmap"
    save_map(path, TENSORS, META)
    return path


def test_round_trip_is_exact(map_file: Path) -> None:
    tensors, meta = load_map(map_file)
    assert meta == META
    assert set(tensors) == set(TENSORS)
    for name, array in TENSORS.items():
        assert tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors[name], array)
        assert tensors[name].shape == array.shape
    assert os.listdir(map_file.parent) == ["a.pmap"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_says_who_may_read_a_map(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        save_map(tmp_path / "a.pmap", TENSORS, META)
    finally:
        os.umask(before)
    assert (tmp_path / "a.pmap").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_truncated_file_is_named(map_file: Path, keep: float) -> None:
    content = map_file.read_bytes()
    map_file.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    with pytest.raises(ValueError, match=r"a\.pmap: expected a map file.*truncated"):
        load_map(map_file)


def test_every_flipped_byte_of_the_tensors_is_noticed(map_file: Path) -> None:
    content = bytearray(map_file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    for position in (start, (start + len(content)) // 2, len(content) - 1):
        damaged = content.copy()
        damaged[position] ^= 1
        map_file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.pmap: damaged: expected SHA-256"):
            load_map(map_file)


def test_changed_description_is_noticed(map_file: Path) -> None:
    content = map_file.read_bytes()
    assert b"next_id" in content
    map_file.write_bytes(content.replace(b"next_id", b"next_iD"))
    with pytest.raises(ValueError, match="damaged"):
        load_map(map_file)


def test_newer_version_is_refused(map_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_io, "FORMAT_VERSION", 2)
    save_map(map_file, TENSORS, META)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="version 1 or older, got 2"):
        load_map(map_file)


def test_other_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "weights.safetensors"
    save_file({"x": np.zeros(3)}, other)
    with pytest.raises(ValueError, match="expected format 'panoptic_mapper map'"):
        load_map(other)
    text = tmp_path / "notes.txt"
    text.write_text(json.dumps({"hello": "world"}) * 10)
    with pytest.raises(ValueError, match=r"notes\.txt: expected a map file"):
        load_map(text)
    with pytest.raises(ValueError, match="there is nothing"):
        load_map(tmp_path / "missing.pmap")
    with pytest.raises(ValueError, match="there is a folder"):
        load_map(tmp_path)


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_failed_write_keeps_the_old_map(map_file: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    before = map_file.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(ValueError, match=r"a\.pmap: the map cannot be written: .*No space left"):
        save_map(map_file, {"means": np.zeros(3)}, {})
    assert map_file.read_bytes() == before
    assert os.listdir(map_file.parent) == ["a.pmap"]


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match=r"a\.pmap: the map cannot be written"):
        save_map(tmp_path / "file" / "a.pmap", TENSORS, META)


def test_what_a_map_cannot_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tensor 'names': expected numbers"):
        save_map(tmp_path / "a.pmap", {"names": np.array(["a"])}, {})
    with pytest.raises(ValueError, match="JSON"):
        save_map(tmp_path / "a.pmap", {}, {"x": float("nan")})
    assert not list(tmp_path.iterdir())
