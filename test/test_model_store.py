"""Finding, checking and downloading weights, against a local file server made of file:// URLs."""

import hashlib
from pathlib import Path

import pytest

from panoptic_mapper import model_store
from panoptic_mapper.model_store import MODELS, ModelFile, cache_folder, find_model

CONTENT = b"weights of a model"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def upstream(tmp_path, monkeypatch) -> Path:
    """The upstream file of the only model "toy"; the cache is empty and no folder is named."""
    file = tmp_path / "upstream" / "toy.bin"
    file.parent.mkdir()
    file.write_bytes(CONTENT)
    toy = ModelFile(file.as_uri(), SHA256, len(CONTENT), "MIT", {"alias.bin": SHA256})
    monkeypatch.setattr(model_store, "MODELS", {"toy": toy})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PANOPTIC_MAPPER_MODELS", raising=False)
    return file


def test_downloads_once_into_the_cache(upstream, tmp_path):
    path = find_model("toy")
    assert path == tmp_path / "cache" / "panoptic_mapper" / "toy.bin"
    assert path.read_bytes() == CONTENT
    upstream.unlink()
    assert find_model("toy") == path
    assert [f.name for f in path.parent.iterdir()] == ["toy.bin"]  # no temporary file is left


def test_offline_error_says_what_to_put_where(upstream, tmp_path):
    upstream.unlink()
    with pytest.raises(ValueError, match="cannot download") as error:
        find_model("toy")
    message = str(error.value)
    for part in ("toy.bin", upstream.as_uri(), SHA256, str(tmp_path / "cache" / "panoptic_mapper")):
        assert part in message


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b"x", b"<html>not found</html>"])
def test_wrong_download_is_refused_and_not_kept(upstream, tmp_path, content):
    upstream.write_bytes(content)
    with pytest.raises(ValueError, match=f"expected {SHA256}"):
        find_model("toy")
    assert not (tmp_path / "cache").exists()


def test_named_folder_comes_first_and_is_never_filled(upstream, tmp_path, monkeypatch):
    cached = find_model("toy")
    mine = tmp_path / "mine"
    mine.mkdir()
    with pytest.raises(ValueError, match=r"has none of toy.bin, alias.bin") as error:
        find_model("toy", mine)
    assert SHA256 in str(error.value)
    assert list(mine.iterdir()) == []

    (mine / "alias.bin").write_bytes(CONTENT)
    assert find_model("toy", mine) == mine / "alias.bin"
    assert find_model("toy") == cached
    monkeypatch.setenv("PANOPTIC_MAPPER_MODELS", str(mine))
    assert find_model("toy") == mine / "alias.bin"


def test_damaged_file_is_named(upstream, tmp_path):
    path = find_model("toy")
    path.write_bytes(CONTENT[:5])
    with pytest.raises(ValueError, match=r"toy.bin: 5 bytes with SHA-256"):
        find_model("toy")


def test_unwritable_cache_is_named(upstream, tmp_path, monkeypatch):
    (tmp_path / "occupied").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "occupied"))
    with pytest.raises(ValueError, match=r"cannot write .*toy.bin.*PANOPTIC_MAPPER_MODELS"):
        find_model("toy")


def test_unknown_model_lists_the_known():
    with pytest.raises(ValueError, match=r"'sam'; known: mosaic_r4, yolox_nano_weights, yolox_nano_graph"):
        find_model("sam")


def test_cache_is_in_the_home_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "panoptic_mapper"


@pytest.mark.parametrize("name", MODELS)
def test_table_is_pinned(name):
    model = MODELS[name]
    assert model.url.startswith("https://")
    assert all(len(sha256) == 64 for sha256 in model.accepted.values())
    assert any(len(part) == 40 for part in model.url.split("/"))  # a commit, not a branch
