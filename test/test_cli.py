"""The command line as a user meets it: what it writes and prints, and what it says when something is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import pytest
from typer.testing import CliRunner

import panoptic_mapper
from panoptic_mapper import cli
from panoptic_mapper.doctor import Check

TINY_ROOM = "synthetic:width=64,height=48,num_frames=60"
BUILD = ["build", TINY_ROOM, "--every", "8", "--test-every", "4", "--seed", "1", "--device", "cpu"]
FAST = "mapper.optimizer.steps_per_keyframe=2"


def run(*words: str) -> str:
    """The standard output of a command that succeeds."""
    result = CliRunner().invoke(cli.app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("room")
    return out, json.loads(run(*BUILD, "--out", str(out), "--json", FAST))


def test_build_prints_its_report_and_nothing_else(built: tuple[Path, dict]) -> None:
    out, report = built
    assert report == json.loads((out / "report.json").read_text())
    assert report["frames"] == 6  # 8 of 60 frames, 2 of these held out
    assert report["test"]["frames"] == 2
    assert report["config"]["seed"] == 1
    assert report["config"]["optimizer"]["steps_per_keyframe"] == 2
    assert (report["segmenter"], report["noise"]) == ("dataset", "clean")
    assert (report["mode"], report["iterations"]) == ("online", 0)
    assert {"map.pmap", "objects.json", "points.ply", "gaussians.ply", "overview.png"} < {p.name for p in out.iterdir()}


def test_build_offline(tmp_path: Path) -> None:
    words = [*BUILD, "--mode", "offline", "--iterations", "7", "--out", str(tmp_path), "--json"]
    report = json.loads(run(*words, "mapper.optimizer.steps_per_keyframe=0", "mapper.offline.sh_share=0.2"))
    assert (report["mode"], report["iterations"]) == ("offline", 7)
    assert report["config"]["offline"]["iterations"] == 7
    header = (tmp_path / "gaussians.ply").read_bytes().split(b"end_header")[0]
    assert b"f_rest_44" in header
    result = json.loads(
        run("eval", str(tmp_path / "map.pmap"), TINY_ROOM, "--every", "8", "--test-every", "4", "--json")
    )
    assert result["test"]["psnr"] == pytest.approx(report["test"]["psnr"], rel=1e-6)


def test_eval_measures_what_build_measured(built: tuple[Path, dict]) -> None:
    out, report = built
    result = json.loads(run("eval", str(out / "map.pmap"), TINY_ROOM, "--every", "8", "--test-every", "4", "--json"))
    for split in ("train", "test"):
        for metric in ("pq", "miou", "psnr", "depth_l1_m", "id_switches"):
            assert result[split][metric] == pytest.approx(report[split][metric], rel=1e-6), (split, metric)


def test_query_finds_objects(built: tuple[Path, dict]) -> None:
    map_file = str(built[0] / "map.pmap")
    everything = json.loads(run("query", map_file, "--json"))
    assert everything == json.loads((built[0] / "objects.json").read_text())
    assert len(everything) >= 3
    first = everything[0]
    same_class = json.loads(run("query", map_file, "--class", first["class_name"].upper(), "--json"))
    assert same_class == [o for o in everything if o["class_name"] == first["class_name"]]
    assert json.loads(run("query", map_file, "--text", f"the {first['class_name']}s there", "--json")) == same_class
    place = [str(v) for v in first["centroid"]]
    assert [o["id"] for o in json.loads(run("query", map_file, "--near", *place, "-k", "1", "--json"))] == [first["id"]]
    near = json.loads(run("query", map_file, "--near", *place, "--radius", "0.01", "--json"))
    assert first["id"] in [o["id"] for o in near]
    assert json.loads(run("query", map_file, "--id", str(first["id"]), "--min-score", "1.0", "--json")) in ([], [first])
    assert run("query", map_file) == ""  # the table is for people, on stderr


def test_render_writes_images(built: tuple[Path, dict], tmp_path: Path) -> None:
    run("render", str(built[0] / "map.pmap"), "--out", str(tmp_path), "--size", "32", "24")
    for name in ("color", "depth", "semantic", "instance"):
        image = cv2.imread(str(tmp_path / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert image.shape[:2] == (24, 32)
        assert image.max() > 0


def test_build_for_people(tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("every: 20\ntest_every: 0\nmapper: {optimizer: {steps_per_keyframe: 1}}\n")
    result = CliRunner().invoke(cli.app, ["build", TINY_ROOM, "--out", str(tmp_path), "--config", str(config)])
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    for word in ("objects", "keyframes", "pq", "psnr", "written to"):
        assert word in result.output


def test_doctor_for_machines() -> None:
    result = CliRunner().invoke(cli.app, ["doctor", "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code == (0 if found["ok"] else 1)
    assert {"torch", "kernels", "ROS 2"} <= {check["name"] for check in found["checks"]}
    assert next(check for check in found["checks"] if check["name"] == "torch")["ok"]


def test_mesh_writes_a_labelled_ply(built: tuple[Path, dict], tmp_path: Path) -> None:
    open3d = pytest.importorskip("open3d", reason="open3d or its system libraries are missing", exc_type=ImportError)
    map_file, out = str(built[0] / "map.pmap"), tmp_path / "room.ply"
    assert run("mesh", map_file, "--out", str(out), "--voxel-m", "0.1", "--color", "rgb") == ""
    made = open3d.io.read_triangle_mesh(str(out))
    assert len(made.triangles) > 500
    size = made.get_max_bound() - made.get_min_bound()
    assert ((size > 1.0) & (size < 9.0)).all()  # a room


def test_commands_that_the_doctor_names_are_never_cut(capsys: pytest.CaptureFixture) -> None:
    command = f"pip install '{'x' * 300}[cuda]' && echo [bold]"
    cli.print_checks(
        [
            Check("gsplat", False, False, "[/red] /a" + "/folder" * 60, command),
            Check("numpy", True, True, "2.4.6", ""),
        ]
    )
    said = capsys.readouterr().err
    assert f"  gsplat: {command}\n" in said
    assert said.count("/folder") >= 50  # folded, maybe within a word
    assert "[/red]" in said
    assert "numpy:" not in said


def test_version() -> None:
    assert run("--version") == f"panoptic_mapper {panoptic_mapper.__version__}\n"


def error_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *words: str) -> str:
    """What a failing command says on stderr, its exit status checked."""
    monkeypatch.setattr(sys, "argv", ["panoptic-mapper", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "Traceback" not in output.err
    return output.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mapper.densty.stride_px=3"], "unknown key 'densty'; did you mean 'density'?"),
        (["mapper.density.stride_px=0"], "stride_px: expected a value >= 1, got 0"),
        (["stride"], "expected key=value, got 'stride'"),
        (["--segmenter", "magic"], "name: expected one of dataset"),
        (["--noise", "loud"], "noise: expected one of clean, moderate, hard, got 'loud'"),
        (["--test-every", "1"], "test_every: expected 0"),
        (["--every", "0"], "every: expected a value >= 1, got 0"),
        (["--config", "nothing.yaml"], "cannot read the configuration file nothing.yaml"),
        (["--device", "tpu"], "device: expected one of auto, cpu, cuda, got 'tpu'"),
    ],
)
def test_bad_settings_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path, words: list[str], said: str
) -> None:
    out = tmp_path / "out"
    assert said in error_of(monkeypatch, capsys, "build", TINY_ROOM, "--out", str(out), *words)
    assert not (out / "map.pmap").exists()


def test_bad_datasets_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    missing = str(tmp_path / "missing[/x]")  # must not be taken for the console's markup
    said = error_of(monkeypatch, capsys, "build", missing, "--out", out)
    assert f"{missing}: expected 'synthetic" in said
    assert "there is no such folder" in said
    said = error_of(monkeypatch, capsys, "build", "synthetic:witdh=3", "--out", out)
    assert "unknown key 'witdh'; did you mean 'width'?" in said


def test_an_unwritable_folder_is_named_before_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("panoptic_mapper.build.build_map", lambda *_: pytest.fail("mapping has begun"))
    said = error_of(monkeypatch, capsys, "build", TINY_ROOM, "--out", str(tmp_path / "file" / "out"))
    assert f"cannot write to the folder {tmp_path / 'file' / 'out'}" in said


def test_bad_questions_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, built: tuple[Path, dict]
) -> None:
    map_file = str(built[0] / "map.pmap")
    said = error_of(monkeypatch, capsys, "query", map_file, "--class", "dragon")
    assert "unknown class 'dragon'; known: wall, floor" in said
    said = error_of(monkeypatch, capsys, "query", map_file, "--text", "dragon")
    assert "fits no class by name or synonym" in said
    assert "--near X Y Z" in error_of(monkeypatch, capsys, "query", map_file, "--radius", "1")
    assert "min_score" in error_of(monkeypatch, capsys, "query", map_file, "--min-score", "2")


def test_truncated_and_missing_maps_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, built: tuple[Path, dict], tmp_path: Path
) -> None:
    half = tmp_path / "half.pmap"
    content = (built[0] / "map.pmap").read_bytes()
    half.write_bytes(content[: len(content) // 2])
    for words in (["query", str(half)], ["eval", str(half), TINY_ROOM], ["render", str(half), "--out", str(tmp_path)]):
        assert f"{half}: expected a map file, but it is truncated" in error_of(monkeypatch, capsys, *words)
    missing = tmp_path / "missing.pmap"
    assert f"{missing}: expected a map file, but there is nothing" in error_of(
        monkeypatch, capsys, "query", str(missing)
    )


def test_eval_of_no_frame_in_so_many_is_refused(built: tuple[Path, dict]) -> None:
    result = CliRunner().invoke(cli.app, ["eval", str(built[0] / "map.pmap"), TINY_ROOM, "--every", "0"])
    assert result.exit_code == 2
    assert "--every" in result.output
