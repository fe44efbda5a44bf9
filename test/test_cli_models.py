"""The commands `models` and `labels`: what they print, fetch and refuse."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from panoptic_mapper import cli, model_store
from panoptic_mapper.hub_models import HUB_MODELS
from panoptic_mapper.label_spaces import shipped_label_spaces
from panoptic_mapper.model_store import ModelFile

CONTENT = b"weights" * 20_000  # more than one chunk


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.app, list(words), catch_exceptions=False)


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch) -> Path:
    """Where the only file of "tiny" is fetched from; the cache is empty."""
    file = tmp_path / "upstream.tflite"
    file.write_bytes(CONTENT)
    toy = ModelFile(file.as_uri(), hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "MIT")
    monkeypatch.setattr(model_store, "MODELS", {"toy": toy})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PANOPTIC_MAPPER_MODELS", raising=False)
    return file


def test_models_are_listed_fetched_and_found(upstream: Path, tmp_path: Path) -> None:
    here = {row["name"]: row["here"] for row in json.loads(run("models", "list", "--json").stdout)}
    assert here == {"tiny": False, **dict.fromkeys(HUB_MODELS, False)}
    with pytest.raises(ValueError, match=r"has none of upstream.tflite; fetch upstream.tflite from file://"):
        run("models", "path", "tiny")
    fetched = run("models", "get", "tiny").stdout
    path = tmp_path / "cache/panoptic_mapper/upstream.tflite"
    assert fetched == f"{path}\n"
    assert path.read_bytes() == CONTENT
    upstream.unlink()
    assert run("models", "path", "toy").stdout == run("models", "get", "tiny").stdout == fetched
    assert json.loads(run("models", "list", "--json").stdout)[0]["here"]
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"7 bytes with SHA-256"):
        run("models", "path", "tiny")


def test_the_bytes_of_a_download_are_told(upstream: Path) -> None:
    told: list[tuple[int, int]] = []
    model_store.find_model("toy", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert len(told) == -(-len(CONTENT) // model_store.CHUNK_BYTES) > 1
    assert sorted(told) == told


def test_models_of_the_hub(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("huggingface_hub")
    from hub_server import Hub, served

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.delenv("PANOPTIC_MAPPER_MODELS", raising=False)
    old, new = "a" * 40, "b" * 40
    with served(Hub("us/toy", {old: {"model.safetensors": b"1"}})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        folder = tmp_path / "panoptic_mapper/hub/us--toy"
        assert run("models", "get", "us/toy").stdout == f"{folder / old}\n"
        hub.revisions[new] = {"model.safetensors": b"2"}
        assert run("models", "get", "us/toy").stdout == run("models", "path", "us/toy").stdout == f"{folder / old}\n"
        assert run("models", "get", "us/toy", "--update").stdout == f"{folder / new}\n"
    assert run("models", "path", "us/toy").stdout == f"{folder / new}\n"  # without the hub
    with pytest.raises(ValueError, match=r"us/other: is not in .*, and offline nothing is fetched"):
        run("models", "path", "us/other")


@pytest.mark.parametrize("command", ["get", "path"])
def test_a_pickle_is_refused_with_the_reason(tmp_path: Path, command: str) -> None:
    file = tmp_path / "pytorch_model.bin"
    file.touch()
    with pytest.raises(ValueError, match=r"pytorch_model.bin: a pickle can run any code while it is loaded"):
        run("models", command, str(file))


def test_models_are_listed_for_people(upstream: Path) -> None:
    printed = run("models", "list").output
    assert all(name in printed for name in ("tiny", *HUB_MODELS))


def test_label_spaces_are_listed_and_shown() -> None:
    rows = json.loads(run("labels", "list", "--json").stdout)
    assert [row["name"] for row in rows] == list(shipped_label_spaces())
    assert next((row["classes"], row["things"]) for row in rows if row["name"] == "coco_panoptic") == (133, 80)
    shown = json.loads(run("labels", "show", "coco_panoptic", "--to", "nyu40", "--json").stdout)
    assert len(shown) == 133
    assert {entry["name"]: entry["to"] for entry in shown if entry["name"] in ("couch", "zebra")} == {
        "couch": "sofa",
        "zebra": None,
    }
    assert "settee" in run("labels", "show", "coco_panoptic").output
    assert "scannet20" in run("labels", "list").output


def test_label_space_files_are_validated(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("classes:\n  - {id: 1, name: a, thing: true}\n  - {id: 1, name: b, thing: maybe}\n")
    good = next(iter(shipped_label_spaces().values()))
    result = run("labels", "validate", str(good), str(bad))
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"{bad}:3: id 1 is already given in line 2",
        f"{bad}:3: thing: expected true or false, got 'maybe'",
    ]
    everything = run("labels", "validate", *map(str, shipped_label_spaces().values()))
    assert (everything.exit_code, everything.stdout) == (0, "")
