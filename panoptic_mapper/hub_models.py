"""Checkpoints of the Hugging Face hub: fetched once, pinned to a commit, checked by SHA-256 each time they are used.

Each lies in a folder `hub/<owner>--<name>/<commit>` of the cache, with a manifest. Which commit is used is written down
when a model is first fetched, so a change at the hub changes nothing here until `panoptic-mapper models get --update`.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panoptic_mapper.model_files import (
    check_manifest,
    refuse_pickle,
    refuse_without_weights,
    sha256_of,
    write_manifest,
)
from panoptic_mapper.model_store import MODELS_VARIABLE, cache_folder

OFFLINE_VARIABLE = "HF_HUB_OFFLINE"  # the hub's own switch
ENDPOINT_VARIABLE = "HF_ENDPOINT"  # of a mirror of the hub
WANTED_FILES = ("*.safetensors", "*.json", "*.txt", "LICENSE*", "README.md")  # not what is in folders
HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
PIN_FILE = "pinned.json"  # the commit of each revision that was asked for by another name; "" = by none


@dataclass(frozen=True)
class HubModel:
    """A checkpoint that the segmenters are known to fit."""

    repo: str
    segmenter: str
    license: str
    about: str


HUB_MODELS = {
    "eomt_small": HubModel(
        "tue-mps/coco_panoptic_eomt_small_640_2x", "huggingface", "MIT", "COCO, PQ 46.7; embedded boards"
    ),
    "eomt_base": HubModel("tue-mps/coco_panoptic_eomt_base_640_2x", "huggingface", "MIT", "COCO, PQ 51.6; the default"),
    "eomt_large": HubModel("tue-mps/coco_panoptic_eomt_large_640", "huggingface", "MIT", "COCO, PQ 56.0"),
    "eomt_large_ade20k": HubModel(
        "tue-mps/ade20k_panoptic_eomt_large_640", "huggingface", "MIT", "ADE20K, more indoor classes, PQ 50.6"
    ),
    "mask2former_swin_tiny": HubModel(
        "facebook/mask2former-swin-tiny-coco-panoptic", "huggingface", "CC BY-NC 4.0", "COCO, PQ 53.2; not commercial"
    ),
    "grounding_dino_tiny": HubModel(
        "IDEA-Research/grounding-dino-tiny", "grounded_sam", "Apache-2.0", "words to boxes"
    ),
    "sam2_tiny": HubModel("facebook/sam2.1-hiera-tiny", "grounded_sam", "Apache-2.0", "boxes to masks"),
}


def find_checkpoint(model: str, offline: bool = False) -> Path:
    """The folder of a checkpoint, fetched into the cache where it is not there yet.

    Args:
        model: a folder, a name in HUB_MODELS, or a hub id, owner/name or owner/name@revision.
        offline: nothing is fetched; $HF_HUB_OFFLINE does the same.

    Raises:
        ValueError: there is no such folder or model, it has no weights that are safe to load, a file is not what it
            was, or it is not in the cache and cannot be fetched. The message says how to get it without a network.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        check_manifest(folder)
        return folder
    if folder.is_file():
        refuse_pickle(folder)
        raise ValueError(f"{folder}: expected the folder of a checkpoint (config.json, *.safetensors), got a file")
    repo, revision = parse_hub_id(model)
    found = find_in_cache(repo, revision)
    if found is not None:
        check_manifest(found)
        return found
    if offline or os.environ.get(OFFLINE_VARIABLE, "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ValueError(f"{model}: is not in {cache_folder()}, and offline nothing is fetched; {how_to_get(repo)}")
    return fetch(repo, revision)


def parse_hub_id(model: str) -> tuple[str, str]:
    """owner/name and revision ("" = none given) of a name in HUB_MODELS or a hub id.

    Raises:
        ValueError: it is neither.
    """
    known = HUB_MODELS.get(model)
    if known is not None:
        return known.repo, ""
    match = HUB_ID.fullmatch(model)
    if match is None:
        raise ValueError(
            f"model '{model}': expected the folder of a checkpoint, a hub id (owner/name, owner/name@revision), or one"
            f" of {', '.join(HUB_MODELS)}"
        )
    return match["repo"], match["revision"] or ""


def find_in_cache(repo: str, revision: str = "") -> Path | None:
    """The folder of a model that was fetched, or that lies as owner--name in the folder $PANOPTIC_MAPPER_MODELS names.

    Args:
        revision: a commit, or a name of the hub's that was resolved when the model was fetched; empty = none was given.
    """
    own = os.environ.get(MODELS_VARIABLE)
    if own and not revision and (Path(own) / _folder_name(repo)).is_dir():
        return Path(own) / _folder_name(repo)
    commit = revision if COMMIT.fullmatch(revision) else _pins(repo).get(revision, "")
    folder = _cache_of(repo) / commit
    return folder if commit and folder.is_dir() else None


def fetch(repo: str, revision: str = "") -> Path:
    """Fetches a model's files at the revision (empty = the newest), and pins the commit that this is now.

    Raises:
        ValueError: huggingface_hub is not installed, the hub cannot be reached, the model is not there, has only
            pickles, or what came is not what the hub announced.
    """
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise ValueError(
            f"models of the hub need huggingface_hub ({error}); pip install 'panoptic_mapper[huggingface]'"
        ) from error
    endpoint = os.environ.get(ENDPOINT_VARIABLE) or None
    with _as_value_error(repo):
        info = hub.HfApi(endpoint=endpoint).model_info(repo, revision=revision or None, files_metadata=True)
    files = [file for file in info.siblings or [] if "/" not in file.rfilename]
    refuse_without_weights(f"{repo} at the hub", [file.rfilename for file in files])
    target = _cache_of(repo) / str(info.sha)
    if not target.is_dir():
        partial = target.with_name(f"{info.sha}.partial")  # kept if the network breaks off: what is there stays
        for file in files:
            if any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in WANTED_FILES):
                with _as_value_error(repo):
                    hub.hf_hub_download(repo, file.rfilename, revision=info.sha, local_dir=partial, endpoint=endpoint)
                _check_announced(partial / file.rfilename, file)
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # the library's notes on the download
        write_manifest(partial, f"{repo}@{info.sha}")
        os.replace(partial, target)
    if not COMMIT.fullmatch(revision):
        pins = _pins(repo) | {revision: str(info.sha)}
        (_cache_of(repo) / PIN_FILE).write_text(json.dumps(pins, indent=1) + "\n")
    return target


@contextmanager
def _as_value_error(repo: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the library's errors, of the network, the hub and the disk, have no common base
        raise ValueError(
            f"{repo}: cannot be fetched from the hub ({type(error).__name__}: {' '.join(str(error).split())});"
            f" {how_to_get(repo)}"
        ) from error


def how_to_get(repo: str) -> str:
    """What to do where the hub cannot be reached."""
    return (
        f"on a machine with a network run `panoptic-mapper models get {repo}`, copy the folder that it prints here, and"
        f" name it as the model, or as {_folder_name(repo)} in the folder that ${MODELS_VARIABLE} names"
    )


def _check_announced(path: Path, announced: Any) -> None:
    """Compares a file with the SHA-256 that the hub gives for large ones."""
    if announced.lfs is None:
        return
    found = sha256_of(path)
    if found != announced.lfs.sha256:
        path.unlink()
        raise ValueError(f"{path.name}: came with SHA-256 {found}, the hub announced {announced.lfs.sha256}")


def _cache_of(repo: str) -> Path:
    return cache_folder() / "hub" / _folder_name(repo)


def _pins(repo: str) -> dict[str, str]:
    file = _cache_of(repo) / PIN_FILE
    try:
        return dict(json.loads(file.read_text())) if file.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file}: not readable ({error}); remove it, and the model is pinned anew") from error


def _folder_name(repo: str) -> str:
    return repo.replace("/", "--")
