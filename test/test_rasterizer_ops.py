"""The compiled operators: registration, argument checks, and how they are found and built."""

import os
import platform
from pathlib import Path

import pytest
import torch
from rasterizer_scenes import CAMERA, random_scene
from torch import Tensor

import panoptic_mapper
from panoptic_mapper import ops
from panoptic_mapper.ops import build
from panoptic_mapper.rasterizers.cpu import CpuRasterizer, CpuView

INTRINSICS = (CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy, CAMERA.width, CAMERA.height)
REPO = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def gaussians() -> list[Tensor]:
    """means, quats, scales, opacities, T_camera_map."""
    return [*random_scene(40, seed=5).inputs(torch.float32)[:4], torch.eye(4)]


@pytest.fixture(scope="module")
def view(gaussians: list[Tensor]) -> CpuView:
    return CpuRasterizer().project(*gaussians, CAMERA)


def operator_calls(gaussians: list[Tensor], view: CpuView) -> dict[str, tuple]:
    """One valid call of every operator."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_()

    V, lists = view.visible.shape[0], view.lists
    means, quats, scales, _, T = gaussians
    geometry = [leaf(view.means2d), leaf(view.conics), view.extents, leaf(view.opacities)]
    features = torch.rand(V, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    image, alpha = torch.rand(CAMERA.height, CAMERA.width, 5), torch.rand(CAMERA.height, CAMERA.width)
    upstream = (torch.rand(V, 2), torch.rand(V), torch.rand(V, 3))
    detached = [t.detach() for t in (*geometry, features)]
    size = (CAMERA.width, CAMERA.height)
    return {
        "project_gaussians": (*gaussians, *INTRINSICS),
        "project_gaussians_backward": (
            *(t.detach() for t in (means, quats, scales)), T, *INTRINSICS, view.visible, *upstream,
        ),
        "list_gaussians": (
            *(t.detach() for t in (view.means2d, view.depths, view.conics, view.extents, view.opacities)), *size,
        ),
        "blend": (features, *lists[:7], *size),
        "blend_backward": (image, *lists[:7]),
        "splat": (*geometry, features, *lists),
        "splat_geometry_backward": (image, alpha, *detached, *lists[:4], *lists[7:]),
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "project_gaussians",
        "project_gaussians_backward",
        "list_gaussians",
        "blend",
        "blend_backward",
        "splat",
        "splat_geometry_backward",
    ],
)
def test_opcheck(name: str, gaussians: list[Tensor], view: CpuView) -> None:
    operator = getattr(torch.ops.panoptic_mapper, name).default
    torch.library.opcheck(operator, operator_calls(gaussians, view)[name])


@pytest.mark.parametrize(
    ("name", "argument", "bad", "message"),
    [
        ("project_gaussians", 0, lambda t: t.double(), "means: expected Float"),
        ("project_gaussians", 0, lambda t: t.T.contiguous().T, "means: expected a contiguous tensor"),
        ("project_gaussians", 1, lambda t: t[:-1], "quats: expected sizes"),
        ("project_gaussians", 5, lambda fx: 0.0, "fx, fy"),
        ("project_gaussians", 9, lambda width: 0, "width, height"),
        ("project_gaussians_backward", 10, lambda t: t + 1000, "visible: expected ascending rows"),
        ("project_gaussians_backward", 10, lambda t: t.flip(0), "visible: expected ascending rows"),
        ("list_gaussians", 2, lambda t: t[:, :2].contiguous(), "conics: expected sizes"),
        ("blend", 0, lambda t: t[:-1], "isect_gaussians: expected indices"),
        ("blend", 2, lambda t: t - 1000, "isect_gaussians: expected indices"),
        ("blend", 1, lambda t: t.flip(0), "tile_offsets: expected ascending"),
        ("blend", 1, lambda t: t[:-1], "tile_offsets: expected sizes"),
        ("blend", 4, lambda t: t + 100000, "slot_isects: expected indices"),
        ("blend", 5, lambda t: t * 2, "pair_offsets: expected ascending"),
        ("blend", 6, lambda t: t.bitwise_or(15), "pair_pixels: a pixel lies outside"),
        ("blend", 7, lambda t: t[:-1], "pair_weights: expected sizes"),
        ("blend_backward", 0, lambda t: t[0], "v_image: expected sizes"),
        ("splat", 13, lambda t: t.float(), "last: expected Int"),
        ("splat_geometry_backward", 1, lambda t: t[:-1], "v_alpha: expected sizes"),
    ],
)
def test_bad_arguments_raise(gaussians: list[Tensor], view: CpuView, name: str, argument: int, bad, message) -> None:
    arguments = list(operator_calls(gaussians, view)[name])
    if isinstance(arguments[argument], Tensor):
        arguments[argument] = arguments[argument].detach()
    arguments[argument] = bad(arguments[argument])
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        getattr(torch.ops.panoptic_mapper, name)(*arguments)


def test_sources_are_relative_sorted_and_exist() -> None:
    sources = build.extension_sources(REPO)
    assert "cuda/rasterize.cpp" in sources
    assert sources == sorted(sources)
    assert all((REPO / source).is_file() for source in sources)


def test_no_two_sources_have_one_name() -> None:
    """setuptools names objects after their sources: a kernel would overwrite the C++ file of its name."""
    names = [Path(source).stem for source in build.extension_sources(REPO, with_cuda=True)]
    assert any(name.endswith("_kernels") for name in names)
    assert len(set(names)) == len(names)


def test_source_hash_follows_every_source(tmp_path: Path) -> None:
    (tmp_path / "a.cpp").write_text("int a;")
    (tmp_path / "b.inc").write_text("int b;")
    before = build.source_hash(tmp_path)
    assert build.source_hash(tmp_path) == before
    (tmp_path / "b.inc").write_text("int c;")
    assert build.source_hash(tmp_path) != before


def kernel_marker(version: str) -> bytes:
    """What the compiled library holds: the torch that it was built for."""
    return f"\0panoptic_mapper kernels for torch {version}\0".encode()


@pytest.fixture
def checkout_and_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Sources of a checkout, and a library that was installed from the same ones, for this torch."""
    checkout, installed = tmp_path / "checkout", tmp_path / "site-packages" / "panoptic_mapper"
    for folder in (checkout / "cuda", installed / "cuda_src"):
        folder.mkdir(parents=True)
        (folder / "rasterize.cpp").write_text("int a;")
    (checkout / "panoptic_mapper").mkdir()
    (checkout / "package.xml").touch()
    library = installed / "_kernels.cpython-311.so"
    library.write_bytes(kernel_marker(torch.__version__.split("+")[0]))
    monkeypatch.setattr(panoptic_mapper, "__path__", [str(checkout / "panoptic_mapper"), str(installed)])
    return checkout / "cuda", library


def test_a_checkout_takes_the_installed_library_of_the_same_sources(
    checkout_and_installation: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    sources, library = checkout_and_installation
    assert ops.source_dir() == sources
    os.utime(sources / "rasterize.cpp", (0, library.stat().st_mtime + 10))  # as a fresh clone has it
    assert ops.ahead_of_time_library() == library
    (sources / "rasterize.cpp").write_text("int b;")
    assert ops.ahead_of_time_library() is None
    assert f"was built from other sources than {sources}" in caplog.text


def test_an_installation_without_checkout_takes_its_library(
    checkout_and_installation: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, library = checkout_and_installation
    monkeypatch.setattr(panoptic_mapper, "__path__", [str(library.parent)])
    assert ops.source_dir() == library.parent / "cuda_src"
    assert ops.ahead_of_time_library() == library


def test_a_library_for_another_torch_is_not_taken(
    checkout_and_installation: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    _, library = checkout_and_installation
    library.write_bytes(kernel_marker("1.0.0"))
    assert ops.ahead_of_time_library() is None
    assert "another torch" in caplog.text


def test_a_library_built_in_the_checkout_must_be_newer_than_its_sources(
    checkout_and_installation: tuple[Path, Path],
) -> None:
    sources, installed = checkout_and_installation
    library = installed.replace(sources.parent / "panoptic_mapper" / installed.name)
    assert ops.ahead_of_time_library() == library
    os.utime(sources / "rasterize.cpp", (0, library.stat().st_mtime + 1))
    assert ops.ahead_of_time_library() is None


def test_these_tests_use_what_was_installed_from_these_sources() -> None:
    packed = [Path(path) / "cuda_src" for path in panoptic_mapper.__path__ if list(Path(path).glob("_kernels*.so"))]
    if not packed or build.source_hash(packed[0]) != build.source_hash(REPO / "cuda"):
        pytest.skip("nothing is installed from the present sources")
    assert ops.load().parent == packed[0].parent


def test_ninja_is_found_beside_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, folder in (("c++", "usr"), ("ninja", "venv")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch(0o755)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "usr"))
    monkeypatch.setattr("sys.executable", str(tmp_path / "usr" / "python"))
    assert "ninja is missing" in (ops.missing_for_compiling() or "")
    monkeypatch.setattr("sys.executable", str(tmp_path / "venv" / "python"))  # started without activation
    assert ops.missing_for_compiling() is None


@pytest.mark.parametrize(("missing", "command"), [("c++", "apt-get install g++"), ("ninja", "pip install ninja")])
def test_what_is_missing_for_compiling_is_named(monkeypatch: pytest.MonkeyPatch, missing: str, command: str) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda name, path=None: None if name == missing else f"/usr/bin/{name}")
    monkeypatch.setattr(ops, "_loaded_from", None)
    monkeypatch.setattr(ops, "ahead_of_time_library", lambda: None)
    monkeypatch.setattr(ops, "cached_library", lambda: None)
    with pytest.raises(RuntimeError, match=command.replace("+", r"\+")):
        ops.load()


def test_installation_without_sources_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panoptic_mapper, "__path__", [str(tmp_path / "panoptic_mapper")])
    assert "sources are not in this installation" in (ops.missing_for_compiling() or "")


def test_cached_library_is_found_by_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ops.cached_library() is None
    sources = ops.source_dir()
    assert sources is not None
    (tmp_path / "panoptic_mapper").mkdir()
    monkeypatch.setattr(ops, "_cuda_tag", lambda: "-sm87-sm90")  # a robot's GPU and another
    name = f"kernels-torch{torch.__version__}-sm87-sm90-{platform.machine()}-{build.source_hash(sources)}.so"
    (tmp_path / "panoptic_mapper" / name).touch()
    assert ops.cached_library() == tmp_path / "panoptic_mapper" / name


def test_failed_compilation_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "cuda"
    sources.mkdir()
    (sources / "rasterize.cpp").write_text("this is not C++")
    monkeypatch.setattr(ops, "source_dir", lambda: sources)
    monkeypatch.setattr(ops, "ahead_of_time_library", lambda: None)
    monkeypatch.setattr(ops, "_loaded_from", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    search_path = os.environ["PATH"]
    with pytest.raises(RuntimeError, match="could not be compiled"):
        ops.load()
    assert list((tmp_path / "cache" / "panoptic_mapper").iterdir()) == []
    assert os.environ["PATH"] == search_path
