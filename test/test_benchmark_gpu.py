"""The GPU benchmark runs everywhere, on tiny sizes; what it prints on a CPU is no measurement."""

import json

import pytest
import torch
from small_room import mapped, room_frames

from benchmarks.gpu import PARTS, main
from benchmarks.gpu_parts import kernels
from benchmarks.gpu_parts.building import enlarge
from benchmarks.gpu_parts.context import percentile

TINY = ["--device", "cpu", "--data", "synthetic:num_frames=9,width=48,height=36", "--width", "48"]
TINY += ["--repeats", "1", "--gaussians", "6000"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu")
    fast = ["--set", "optimizer.frame_budget_ms=1", "--slow-config", "config/latency.yaml"]
    parts = ",".join(set(PARTS) - {"kernels"})
    main([*TINY, *fast, "--out", str(out), "--only", parts])
    return json.loads((out / "gpu.json").read_text()), out


def test_every_part_leaves_a_table_and_figures(results):
    figures, out = results
    for name in set(PARTS) - {"kernels"}:
        assert "|---|" in (out / f"{name}.md").read_text()
        assert figures[name]
    assert "CPUs" in figures["hardware"]


def test_the_sequence_is_mapped_whole_and_evaluated(results):
    run = results[0]["sequence"]["fast"]
    assert run["frames"] == 8  # one is held out
    assert 0 < run["latency_ms"]["p50"] <= run["latency_ms"]["p99"] <= run["latency_ms"]["p100"]
    assert run["frames_per_s"] == pytest.approx(1e3 / run["integrate_ms"]["mean"], rel=0.5)
    assert run["steps"] >= run["keyframes"] > 0
    assert run["quality"]["psnr"] > 10
    assert run["quality"]["pq"] is not None


def test_the_building_is_as_large_as_it_was_asked_for(results):
    local, building = (results[0]["building"][name] for name in ("local", "building"))
    assert building["gaussians"] > 6000 > local["gaussians"]
    assert building["queries"] > local["queries"]


def test_copies_are_beside_the_map_with_objects_of_their_own():
    mapper = mapped(room_frames()[:2])
    gaussians, queries = mapper.map.gaussians, mapper.map.queries
    num, num_queries = len(gaussians), len(queries)
    before = gaussians["means"].clone()
    enlarge(mapper, 2 * num + 1)
    assert len(gaussians) == 3 * num
    assert (gaussians["means"][:num] == before).all()
    low, high = before.amin(0), before.amax(0)
    copies = gaussians["means"][num:]
    assert not ((copies >= low) & (copies <= high)).all(1).any()
    assert len(queries) > num_queries
    new_ids = set(gaussians["instance_id"][num:].tolist()) - {0}
    assert new_ids
    assert new_ids <= set(queries.ids[num_queries:].tolist())


def test_percentiles_are_interpolated():
    assert percentile([3, 1, 2], 50) == 2
    assert percentile([0, 10], 99) == pytest.approx(9.9)
    assert percentile([7], 99) == 7


def test_an_unknown_part_is_an_error(capsys):
    with pytest.raises(SystemExit):
        main([*TINY, "--only", "sequences"])
    assert "expected some of kernels, stages" in capsys.readouterr().err


def test_figures_of_kernels_are_one_table_a_kernel() -> None:
    figures = [
        {"device": "X"},
        {"kernel": "a", "ms": 1.5},
        {"kernel": "a", "ms": 2, "dense": 3},
        {"kernel": "b", "ms": 4},
    ]
    tables = kernels.table({"figures": figures}).split("\n\n")
    assert [table.splitlines()[0] for table in tables] == ["| device |", "| kernel | ms | dense |", "| kernel | ms |"]
    assert len(tables[1].splitlines()) == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_kernels_without_a_gpu_say_so() -> None:
    result = kernels.measure(None)
    assert kernels.table(result) == "Not measured: no CUDA device"
