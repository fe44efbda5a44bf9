"""Files that come with the package but are no Python: configuration files and kernel sources."""

from __future__ import annotations

from pathlib import Path

import panoptic_mapper

# Where a folder of the repository lies inside the installed package; CMakeLists.txt and setup.py put it there.
PACKED_FOLDERS = {"config": "config_files", "cuda": "cuda_src"}


def resource_path(name: str) -> Path:
    """The absolute path of a file or folder, named as in the repository, e.g. "config/default.yaml" or "cuda".

    A source checkout is looked at before the installed package.

    Raises:
        ValueError: `name` does not start with a folder that is packed.
        FileNotFoundError: this installation does not have it; the places that were tried are named.
    """
    folder, _, rest = name.partition("/")
    if folder not in PACKED_FOLDERS:
        raise ValueError(f"resource '{name}': expected a path in one of {', '.join(PACKED_FOLDERS)}")
    tried = []
    for package in map(Path, panoptic_mapper.__path__):
        for path in (package.parent / folder / rest, package / PACKED_FOLDERS[folder] / rest):
            # Beside an installed package a folder named "config" is somebody else's.
            if path.is_relative_to(package) or (package.parent / "package.xml").is_file():
                if path.exists():
                    return path.resolve()
                tried.append(str(path))
    raise FileNotFoundError(f"resource '{name}' is in none of: {', '.join(tried)}")
