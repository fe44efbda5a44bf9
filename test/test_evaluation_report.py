"""What `eval` prints: every number with its protocol, and on which frames of which sequence."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from small_room import ROOM_SPACE, mapped, room_frames

from panoptic_mapper import cli
from panoptic_mapper.evaluation import evaluate


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    frames = room_frames(4)
    train = evaluate(mapped(frames[:3]), frames[:3], ROOM_SPACE)
    test = evaluate(mapped(frames[:3]), frames[3:], ROOM_SPACE)
    protocol = train.pop("protocol")
    test.pop("protocol")
    return {
        "sequence": "a [small] room",
        "protocol": protocol,
        "train": train | {"frame_indices": [0, 1, 2]},
        "test": test | {"frame_indices": [3]},
    }


def printed(report: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    out = io.StringIO()
    monkeypatch.setattr(cli, "console", Console(file=out, width=200))
    cli.print_report(report)
    return out.getvalue().splitlines()


def row(lines: list[str], metric: str) -> list[str]:
    """Cells of the table's row of a metric."""
    (cells,) = [c for c in ([cell.strip() for cell in line.split("│")[1:-1]] for line in lines) if c[:1] == [metric]]
    return cells


def test_every_number_stands_beside_its_protocol(report: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(report, monkeypatch)
    for metric in (*cli.LABEL_METRICS, *cli.OTHER_RULES, *cli.IMAGE_METRICS):
        _, train, test, words = row(lines, metric)
        assert float(train) == pytest.approx(report["train"][metric], rel=1e-3), metric
        assert float(test) == pytest.approx(report["test"][metric], rel=1e-3), metric
        assert words == report["protocol"][metric], metric
    assert "IoU > 0.5, one to one" in row(lines, "pq")[3]
    assert "IoU > 0.3, one to one" in row(lines, "pq_0.3")[3]
    assert "IoU > 0.1, many to many" in row(lines, "pq_pr_0.1")[3]
    assert "not comparable with pq" in row(lines, "pq_pr_0.3")[3]
    assert "IoU > 0.25" in row(lines, "prq")[3]


def test_rules_that_hold_for_all_and_the_frames_are_printed(
    report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join(printed(report, monkeypatch))
    for key in ("scene", "matching", "void", "min_pixels", "min_pixels_rule", "pr_rule", "prq_rule"):
        assert f"\n{key}: {report['protocol'][key]}" in text
    assert "train: 3 frames of a [small] room: 0-2\n" in text
    assert "test: 1 frames of a [small] room: 3\n" in text


def test_a_run_without_labels_has_image_metrics_only(report: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    bare = {"sequence": "x", "protocol": {"psnr": "dB"}, "train": {"psnr": 30.0, "ssim": None, "frame_indices": [0]}}
    lines = printed(bare, monkeypatch)
    assert row(lines, "psnr") == ["psnr", "30", "dB"]
    assert row(lines, "ssim") == ["ssim", "-", ""]
    assert not [line for line in lines if "pq" in line]
