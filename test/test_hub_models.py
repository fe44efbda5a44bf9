"""Checkpoints of the hub, against a hub on this machine: fetched once, pinned, checked; pickles and changes refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from panoptic_mapper import hub_models
from panoptic_mapper.hub_models import HUB_MODELS, find_checkpoint, find_in_cache, parse_hub_id
from panoptic_mapper.model_files import MANIFEST_FILE, check_manifest, check_weights, write_manifest

OLD, NEW = "a" * 40, "b" * 40
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "README.md": b"# toy"}
UNWANTED = {"pytorch_model.bin": b"pickle", ".gitattributes": b"", "onnx/model.safetensors": b"elsewhere"}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.delenv("PANOPTIC_MAPPER_MODELS", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "cache/panoptic_mapper/hub/us--toy"


@pytest.fixture
def hub(monkeypatch) -> Iterator:
    pytest.importorskip("huggingface_hub")
    from hub_server import Hub, served

    with served(Hub("us/toy", {OLD: FILES | UNWANTED})) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield running


def test_a_model_is_fetched_once_and_pinned(hub, empty_cache: Path) -> None:
    folder = find_checkpoint("us/toy")
    assert folder == empty_cache / OLD
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.name != MANIFEST_FILE} == FILES
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    assert manifest["source"] == f"us/toy@{OLD}"
    assert set(manifest["sha256"]) == set(FILES)
    fetched = list(hub.downloads)
    hub.revisions[NEW] = FILES | {"model.safetensors": b"newer weights"}
    assert find_checkpoint("us/toy") == folder  # what the hub has newly changes nothing here
    assert hub.downloads == fetched
    assert hub_models.fetch("us/toy") == empty_cache / NEW == find_checkpoint("us/toy")
    assert find_checkpoint(f"us/toy@{OLD}") == folder


def test_a_revision_that_is_asked_for_is_not_the_pinned_one(hub, empty_cache: Path) -> None:
    hub.revisions[NEW] = FILES
    assert find_checkpoint(f"us/toy@{OLD}") == empty_cache / OLD
    assert find_in_cache("us/toy") is None
    assert find_checkpoint("us/toy") == empty_cache / NEW


def test_a_branch_is_pinned_too(hub, empty_cache: Path) -> None:
    hub.revisions["main"] = hub.revisions.pop(OLD)  # a name in place of a commit
    hub.revisions[NEW] = FILES
    assert find_checkpoint("us/toy@main") == empty_cache / "main"
    fetched = list(hub.downloads)
    assert find_checkpoint("us/toy@main") == empty_cache / "main"
    assert hub.downloads == fetched
    (empty_cache / "pinned.json").write_text("?")
    with pytest.raises(ValueError, match=r"pinned.json: not readable .* remove it"):
        find_checkpoint("us/toy@main")


def test_a_changed_file_is_refused(hub) -> None:
    folder = find_checkpoint("us/toy")
    (folder / "model.safetensors").write_bytes(b"weightz")
    with pytest.raises(
        ValueError, match=rf"model.safetensors: SHA-256 is \w+, expected \w+ as it came from us/toy@{OLD}"
    ):
        find_checkpoint("us/toy")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="SHA-256 is missing"):
        find_checkpoint("us/toy")


def test_what_is_not_what_the_hub_announced_is_refused_and_not_kept(hub, empty_cache: Path) -> None:
    hub.lies.add("model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors: came with SHA-256 \w+, the hub announced"):
        find_checkpoint("us/toy")
    assert find_in_cache("us/toy") is None
    hub.lies.clear()
    assert (find_checkpoint("us/toy") / "model.safetensors").read_bytes() == b"weights"


def test_a_model_of_pickles_is_refused_before_anything_is_fetched(hub) -> None:
    hub.revisions[NEW] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(ValueError, match=r"us/toy at the hub: has weights only as pytorch_model.bin: a pickle can run"):
        find_checkpoint("us/toy")
    assert hub.downloads == []


def test_unknown_models_and_no_network_are_told_with_what_to_do(hub, monkeypatch) -> None:
    with pytest.raises(
        ValueError, match=r"us/none: cannot be fetched from the hub .*panoptic-mapper models get us/none"
    ):
        find_checkpoint("us/none")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(ValueError, match=r"us/toy: cannot be fetched .*copy the folder that it prints here"):
        find_checkpoint("us/toy")


def test_offline_nothing_is_asked(hub, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"offline nothing is fetched; on a machine with a network run"):
        find_checkpoint("us/toy", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="offline nothing is fetched"):
        find_checkpoint("us/toy")
    assert hub.downloads == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    folder = find_checkpoint("us/toy")
    assert find_checkpoint("us/toy", offline=True) == folder


def test_a_folder_copied_from_elsewhere(tmp_path: Path, monkeypatch) -> None:
    mine = tmp_path / "models"
    folder = mine / "us--toy"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    write_manifest(folder, "us/toy")
    assert find_checkpoint(str(folder)) == folder
    monkeypatch.setenv("PANOPTIC_MAPPER_MODELS", str(mine))
    assert find_checkpoint("us/toy", offline=True) == folder
    (folder / "model.safetensors").write_bytes(b"damaged")
    for name in (str(folder), "us/toy"):
        with pytest.raises(ValueError, match=r"model.safetensors: SHA-256 is"):
            find_checkpoint(name, offline=True)
    (folder / MANIFEST_FILE).write_text("[]")
    with pytest.raises(ValueError, match=r"manifest.json: not readable"):
        check_manifest(folder)


def test_names_and_ids() -> None:
    assert parse_hub_id("eomt_base") == ("tue-mps/coco_panoptic_eomt_base_640_2x", "")
    assert parse_hub_id("a-b/c.d_e@refs/pr/3") == ("a-b/c.d_e", "refs/pr/3")
    for bad in ("eomt", "a/b/c", "/a/b", "../a", "a/..b@", "a b/c"):
        with pytest.raises(ValueError, match=r"expected the folder of a checkpoint, a hub id .* or one of eomt_small"):
            parse_hub_id(bad)
    assert all(parse_hub_id(model.repo) == (model.repo, "") for model in HUB_MODELS.values())


def test_folders_without_safe_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no weights \(\*.safetensors\)"):
        check_weights(tmp_path)
    for name in ("a.bin", "a.pt", "a.pth", "a.ckpt", "a.pkl"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="a pickle can run any code while it is loaded, so only safetensors are read"):
        check_weights(tmp_path)
    (tmp_path / "model.safetensors").touch()
    check_weights(tmp_path)
    with pytest.raises(ValueError, match=r"a.pkl: a pickle can run any code"):
        find_checkpoint(str(tmp_path / "a.pkl"))
    with pytest.raises(ValueError, match="expected the folder of a checkpoint"):
        find_checkpoint(str(tmp_path / "model.safetensors"))
