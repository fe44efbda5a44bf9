"""Folders with checkpoints: which weights are safe to load, and whether files are what they were when they came."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

WEIGHTS = ".safetensors"
# Formats that are, or contain, Python pickles: loading one runs whatever its author put into it.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
WHY_NO_PICKLE = "a pickle can run any code while it is loaded, so "
TAKE_SAFETENSORS = (
    "only safetensors are read; take a revision of the model that has them, or convert it where you trust it:"
    " model.save_pretrained(folder) of transformers writes safetensors"
)
MANIFEST_FILE = "manifest.json"
_CHUNK_BYTES = 1 << 20


def check_weights(folder: Path) -> None:
    """Refuses a folder without weights that are safe to load.

    Raises:
        ValueError: there are only pickles, or no weights at all.
    """
    refuse_without_weights(folder, [file.name for file in folder.iterdir()])


def refuse_without_weights(where: object, names: list[str]) -> None:
    """Raises ValueError if no file of these names has weights that are safe to load; the message says why."""
    if any(name.endswith(WEIGHTS) for name in names):
        return
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        raise ValueError(f"{where}: has weights only as {', '.join(pickles)}: {WHY_NO_PICKLE}{TAKE_SAFETENSORS}")
    raise ValueError(f"{where}: has no weights (*{WEIGHTS})")


def refuse_pickle(file: Path, advice: str = TAKE_SAFETENSORS) -> None:
    """Raises ValueError if the name of a file is that of a pickle; the message ends with what to do instead."""
    if file.suffix in PICKLES:
        raise ValueError(f"{file}: {WHY_NO_PICKLE}{advice}")


def sha256_of(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: Path, source: str) -> None:
    """Records where a folder's files came from, and the SHA-256 of each."""
    files = {file.name: sha256_of(file) for file in sorted(folder.iterdir()) if file.is_file()}
    files.pop(MANIFEST_FILE, None)
    (folder / MANIFEST_FILE).write_text(json.dumps({"source": source, "sha256": files}, indent=1) + "\n")


def check_manifest(folder: Path) -> None:
    """Compares a folder's files with its manifest; a folder without one is taken as it is.

    Raises:
        ValueError: naming the file that is missing or changed, or the manifest that cannot be read.
    """
    manifest = folder / MANIFEST_FILE
    if not manifest.is_file():
        return
    try:
        content = json.loads(manifest.read_text())
        source, expected = content["source"], dict(content["sha256"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{manifest}: not readable ({error!r}); remove {folder} and fetch the model again") from error
    for name, sha256 in expected.items():
        file = folder / name
        found = sha256_of(file) if file.is_file() else "missing"
        if found != sha256:
            raise ValueError(
                f"{file}: SHA-256 is {found}, expected {sha256} as it came from {source}; remove {folder} and fetch the"
                " model again"
            )
