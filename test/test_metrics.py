"""Panoptic metrics against hand-computed toys, a brute-force oracle and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_oracles import is_one_of, majority, panoptic, qualities
from torchmetrics.detection import PanopticQuality

from panoptic_mapper.label_space import LabelSpace, SemanticClass
from panoptic_mapper.metrics import PanopticMetrics

SPACE = LabelSpace.from_classes(
    [
        SemanticClass(1, "wall", False),
        SemanticClass(2, "floor", False),
        SemanticClass(5, "chair", True),
        SemanticClass(7, "table", True),
    ]
)
WALL, FLOOR, CHAIR, TABLE = 1, 2, 3, 4


def strip(*segments: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """One-row label images from runs of (class, instance, length)."""
    semantic = np.concatenate([np.full(length, c) for c, _, length in segments])[None]
    instance = np.concatenate([np.full(length, i) for _, i, length in segments])[None]
    return semantic, instance


def measure(*frames: tuple, min_pixels: int = 1) -> dict:
    """Metrics of (prediction, truth) pairs of `strip` images."""
    metrics = PanopticMetrics(SPACE, min_pixels)
    for predicted, true in frames:
        metrics.update(*predicted, *true)
    return metrics.compute()


def test_perfect_prediction_under_other_ids_is_100() -> None:
    true = strip((WALL, 0, 50), (CHAIR, 1, 30), (CHAIR, 2, 20))
    result = measure((strip((WALL, 0, 50), (CHAIR, 17, 30), (CHAIR, 4, 20)), true))
    for name in ("pq", "sq", "rq", "pq_things", "pq_stuff", "pq_all_classes", "miou", "macc", "mcov", "mw_cov"):
        assert result[name] == 100.0, name
    assert result["pq_frame"] == 100.0
    assert (result["tp"], result["fp"], result["fn"], result["id_switches"]) == (3, 0, 0, 0)


def test_object_split_in_three() -> None:
    """60 of 100 pixels keep the match (IoU 0.6); the other two parts are spurious: PQ = 0.6 / (1 + 2/2)."""
    result = measure((strip((CHAIR, 1, 60), (CHAIR, 2, 25), (CHAIR, 3, 15)), strip((CHAIR, 9, 100))))
    assert result["pq"] == result["pq_0.3"] == pytest.approx(100 * 0.6 / 2)
    assert result["sq"] == pytest.approx(60)
    assert result["rq"] == pytest.approx(50)
    assert result["mcov"] == pytest.approx(60)
    assert (result["tp"], result["fp"], result["fn"]) == (1, 2, 0)
    # PanopticRecon++'s rule: all three parts are matches at 0.1; at 0.3 only the first is
    assert result["pq_pr_0.1"] == pytest.approx(100 * (0.6 + 0.25 + 0.15) / 3)
    assert result["rq_pr_0.1"] == 100.0
    assert result["pq_pr_0.3"] == pytest.approx(100 * 0.6 / 2)


def test_object_split_in_three_equal_parts() -> None:
    """At 0.5 nothing matches; at 0.3 one part does, and two are spurious; many to many, three do."""
    result = measure((strip((CHAIR, 1, 34), (CHAIR, 2, 33), (CHAIR, 3, 33)), strip((CHAIR, 9, 100))))
    assert result["pq"] == 0.0
    assert result["pq_0.3"] == pytest.approx(100 * 0.34 / (1 + 2 / 2))
    assert result["pq_pr_0.3"] == result["pq_pr_0.1"] == pytest.approx(100 / 3)


def test_two_objects_merged() -> None:
    """The union of 60 + 40 pixels matches the larger (IoU 0.6), the smaller is missed: PQ = 0.6 / (1 + 1/2)."""
    result = measure((strip((CHAIR, 1, 100)), strip((CHAIR, 1, 60), (CHAIR, 2, 40))))
    assert result["pq"] == result["pq_0.3"] == pytest.approx(100 * 0.6 / 1.5)
    assert result["mcov"] == pytest.approx(100 * (0.6 + 0.4) / 2)
    assert result["mw_cov"] == pytest.approx(100 * (0.6 * 60 + 0.4 * 40) / 100)
    # both true objects are matched by the one prediction: no error is left, PQ = (0.6 + 0.4) / 2
    assert result["pq_pr_0.3"] == result["pq_pr_0.1"] == pytest.approx(50)
    assert result["rq_pr_0.3"] == 100.0


def test_two_equal_objects_merged_are_both_lost() -> None:
    result = measure((strip((CHAIR, 1, 100)), strip((CHAIR, 1, 50), (CHAIR, 2, 50))))
    assert (result["pq"], result["tp"], result["fp"], result["fn"]) == (0.0, 0, 1, 2)
    assert result["pq_0.3"] == pytest.approx(100 * 0.5 / 1.5)
    assert result["pq_pr_0.3"] == pytest.approx(50)


def test_below_one_half_the_best_assignment_is_taken_not_the_first_or_largest() -> None:
    """The pair with the largest IoU, true 1 and predicted 1 (55/130), would leave both others without a partner."""
    predicted = strip((CHAIR, 1, 55), (CHAIR, 2, 40), (WALL, 0, 5), (CHAIR, 1, 30))
    result = measure((predicted, strip((CHAIR, 1, 100), (CHAIR, 2, 30))))
    assert result["pq_things"] == 0.0
    assert result["pq_0.3"] == pytest.approx(100 * (40 / 100 + 30 / 85) / 2)


def test_the_rule_of_panopticrecon_gives_an_id_the_class_of_most_of_its_pixels() -> None:
    true = strip((CHAIR, 1, 60), (WALL, 0, 40))
    predicted = strip((CHAIR, 5, 35), (TABLE, 5, 25), (WALL, 0, 40))
    result = measure((predicted, true))
    assert result["per_class"]["chair"]["pq"] == pytest.approx(100 * (35 / 60))
    assert result["pq_pr_0.1"] == 100.0
    mostly_unlabeled = measure((strip((CHAIR, 5, 20), (0, 5, 40), (WALL, 0, 40)), true))
    assert mostly_unlabeled["pq_pr_0.1"] == pytest.approx(50)  # no segment is left of it: the chair is missed


def test_the_rule_of_panopticrecon_has_no_least_size() -> None:
    """Small segments are void in the headline, and count there."""
    true = strip((WALL, 0, 96), (CHAIR, 1, 4))
    result = measure((strip((WALL, 0, 100)), true), min_pixels=10)
    assert result["pq"] == 100.0
    assert result["pq_pr_0.1"] == pytest.approx(96 / 2)


def test_an_id_must_hold_through_the_sequence() -> None:
    """Perfect in each frame, but the id changes after frame 2 of 4: neither half has IoU above 0.5 in the volume."""
    true = strip((WALL, 0, 10), (CHAIR, 1, 10))
    frames = [(strip((WALL, 0, 10), (CHAIR, k, 10)), true) for k in (5, 5, 6, 6)]
    result = measure(*frames)
    assert result["pq_frame"] == 100.0
    assert result["pq_things"] == 0.0
    assert result["pq_stuff"] == 100.0
    assert result["id_switches"] == 1
    assert result["id_switch_rate"] == pytest.approx(100 / 3)
    assert result["mcov"] == pytest.approx(50)


def test_id_switch_is_seen_across_a_gap_and_not_with_a_flickering_class() -> None:
    true, nothing = strip((CHAIR, 1, 10)), strip((WALL, 0, 10))
    assert measure((strip((CHAIR, 5, 10)), true), (nothing, true), (strip((CHAIR, 6, 10)), true))["id_switches"] == 1
    assert measure((strip((CHAIR, 5, 10)), true), (strip((TABLE, 5, 10)), true))["id_switches"] == 0


def test_iou_of_exactly_one_half_is_no_match() -> None:
    result = measure((strip((CHAIR, 1, 50), (WALL, 0, 50)), strip((CHAIR, 1, 100))))
    assert (result["pq_things"], result["fn"], result["tp"]) == (0.0, 1, 0)


def test_wrong_class_is_missed_and_spurious() -> None:
    result = measure((strip((WALL, 0, 50), (TABLE, 1, 50)), strip((WALL, 0, 50), (CHAIR, 1, 50))))
    assert result["pq"] == pytest.approx(50)  # mean over wall (100) and chair (0)
    assert result["pq_all_classes"] == pytest.approx(100 / 3)  # and table, which is only hallucinated
    assert result["mcov"] == 100.0  # coverage does not look at the class
    assert result["per_class"]["table"] == {"pq": None, "iou": None, "tp": 0, "fp": 1, "fn": 0}


def test_void_is_not_counted_and_excuses_what_lies_mostly_on_it() -> None:
    true = strip((CHAIR, 1, 50), (0, 0, 50))
    spilled = measure((strip((CHAIR, 1, 90), (CHAIR, 2, 10)), true))
    assert (spilled["pq"], spilled["fp"], spilled["miou"], spilled["mcov"]) == (100.0, 0, 100.0, 100.0)
    half = measure((strip((CHAIR, 1, 40), (CHAIR, 2, 20), (CHAIR, 3, 40)), true))  # 2 is half on void: an error
    assert half["fp"] == 1
    assert half["pq"] == pytest.approx(100 * 0.8 / 1.5)


def test_true_things_without_an_id_are_void_for_pq_but_count_for_miou() -> None:
    result = measure((strip((CHAIR, 1, 50), (WALL, 0, 50)), strip((CHAIR, 1, 50), (CHAIR, 0, 50))))
    assert (result["pq"], result["fp"]) == (100.0, 0)
    assert result["miou"] == pytest.approx(50)


def test_unlabeled_predictions_are_misses() -> None:
    empty_map = measure((strip((0, 0, 100)), strip((CHAIR, 1, 60), (WALL, 0, 40))))
    assert (empty_map["pq"], empty_map["miou"], empty_map["macc"], empty_map["mcov"]) == (0.0, 0.0, 0.0, 0.0)
    assert (empty_map["fn"], empty_map["fp"]) == (2, 0)


def test_small_segments_are_neither_missed_nor_spurious() -> None:
    predicted = strip((WALL, 0, 90), (TABLE, 3, 4), (CHAIR, 1, 6))
    true = strip((WALL, 0, 94), (TABLE, 1, 6))
    assert measure((predicted, true), min_pixels=10)["fp"] == 0
    strict = measure((predicted, true), min_pixels=1)
    assert (strict["fp"], strict["fn"]) == (2, 1)


def test_the_minimum_size_of_the_scene_is_that_of_the_volume() -> None:
    """Six pixels a frame are below ten in a frame, but not in a volume of two frames."""
    frame = (strip((CHAIR, 1, 6)), strip((CHAIR, 1, 6)))
    result = measure(frame, frame, min_pixels=10)
    assert result["pq"] == 100.0
    assert result["pq_frame"] is None


def test_semantic_metrics_by_hand() -> None:
    result = measure((strip((WALL, 0, 60), (FLOOR, 0, 40)), strip((WALL, 0, 80), (FLOOR, 0, 20))))
    assert result["miou"] == pytest.approx(100 * (60 / 80 + 20 / 40) / 2)
    assert result["macc"] == pytest.approx(100 * (60 / 80 + 1) / 2)


def test_nothing_measured_is_none() -> None:
    result = PanopticMetrics(SPACE).compute()
    assert [result[k] for k in ("pq", "pq_frame", "miou", "mcov", "id_switch_rate")] == [None] * 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pred_semantic", np.full((2, 3), 5)),
        ("gt_semantic", np.full((2, 3), -1)),
        ("pred_instance", np.zeros((3, 3), int)),
        ("gt_instance", np.full((2, 3), 2**40)),
    ],
)
def test_wrong_arrays_are_named(name: str, value: np.ndarray) -> None:
    names = ("pred_semantic", "pred_instance", "gt_semantic", "gt_instance")
    arrays = {n: np.zeros((2, 3), int) for n in names} | {name: value}
    with pytest.raises(ValueError, match=name):
        PanopticMetrics(SPACE).update(**arrays)


# --- oracles ---------------------------------------------------------------------------------------------------------


@st.composite
def volumes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Random predictions that agree with the truth in most places: [frames, pixels] each."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 40)))
    segments = np.array([(0, 0), (1, 0), (2, 3), (3, 1), (3, 2), (4, 3), (4, 0), (3, 4), (0, 2)])
    true = segments[rng.integers(len(segments), size=shape)]
    noise = segments[rng.integers(len(segments), size=shape)]
    predicted = np.where(rng.random((*shape, 1)) < draw(st.sampled_from([0.0, 0.2, 0.6])), noise, true)
    return predicted[..., 0], predicted[..., 1], true[..., 0], true[..., 1]


def stacked(volume: tuple, min_pixels: int) -> tuple[dict, list, list]:
    """Metrics of the volume's frames, and its predicted and true labels in one row."""
    metrics = PanopticMetrics(SPACE, min_pixels)
    for frame in zip(*volume, strict=True):
        metrics.update(*(image[None] for image in frame))
    ps, pi, gs, gi = (v.ravel().tolist() for v in volume)
    return metrics.compute(), list(zip(ps, pi, strict=True)), list(zip(gs, gi, strict=True))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(volumes(), st.integers(1, 6))
def test_scene_quality_equals_the_brute_force(volume: tuple, min_pixels: int) -> None:
    result, predicted, true = stacked(volume, min_pixels)
    segments = panoptic(predicted, SPACE), panoptic(true, SPACE)
    assert is_one_of(result["pq"], qualities(*segments, 0.5, min_pixels))
    assert is_one_of(result["pq_0.3"], qualities(*segments, 0.3, min_pixels))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(volumes(), st.integers(1, 6))
def test_the_rule_of_panopticrecon_equals_the_brute_force(volume: tuple, min_pixels: int) -> None:
    result, predicted, true = stacked(volume, min_pixels)
    for threshold in (0.1, 0.3):
        expected = qualities(majority(predicted, SPACE), majority(true, SPACE), threshold, one_to_one=False)
        assert is_one_of(result[f"pq_pr_{threshold}"], expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(volumes())
def test_coverage_equals_the_brute_force(volume: tuple) -> None:
    metrics = PanopticMetrics(SPACE, min_pixels=1)
    for frame in zip(*volume, strict=True):
        metrics.update(*(image[None] for image in frame))
    ps, pi, gs, gi = (v.ravel() for v in volume)
    predicted_ids, true_ids = (np.where(SPACE.is_thing[s], i, 0) for s, i in ((ps, pi), (gs, gi)))
    not_void = (gs > 0) & ~(SPACE.is_thing[gs] & (gi == 0))
    best = []
    for k in set(true_ids[true_ids > 0].tolist()):
        masks = [
            (true_ids == k, (predicted_ids == q) & not_void) for q in set(predicted_ids[predicted_ids > 0].tolist())
        ]
        best.append(max([(a & b).sum() / (a | b).sum() for a, b in masks], default=0.0))
    assert metrics.compute()["mcov"] == (pytest.approx(100 * np.mean(best)) if best else None)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(volumes())
def test_scene_quality_equals_torchmetrics(volume: tuple) -> None:
    """torchmetrics excuses misses under void predictions, we do not: "nothing" is given to it as a class of its own."""
    ps, pi, gs, gi = (v.ravel() for v in volume)
    nothing = len(SPACE)
    keep = ~((SPACE.is_thing[gs] & (gi == 0)) | (SPACE.is_thing[ps] & (pi == 0)))  # thing pixels without an id
    ps, pi, gs, gi = (a[keep] for a in (ps, pi, gs, gi))
    metrics = PanopticMetrics(SPACE, min_pixels=1)
    metrics.update(*(a[None] for a in (ps, pi, gs, gi)))
    result = metrics.compute()

    oracle = PanopticQuality(
        things={CHAIR, TABLE}, stuffs={WALL, FLOOR, nothing}, allow_unknown_preds_category=True, return_per_class=True
    )
    predicted = np.stack([np.where(ps == 0, nothing, ps), pi], -1)[None]
    true = np.stack([np.where(gs == 0, 99, gs), gi], -1)[None]
    if predicted.size == 0 or not (gs > 0).any():
        assert result["pq"] is None
        return
    expected = _torchmetrics_per_class(oracle, predicted, true)
    for c, value in expected.items():
        name = SPACE.names[c]
        if name in result["per_class"] and result["per_class"][name]["pq"] is not None:
            assert result["per_class"][name]["pq"] == pytest.approx(100 * value), name
        else:
            assert value == 0.0, name


def _torchmetrics_per_class(oracle: PanopticQuality, predicted: np.ndarray, true: np.ndarray) -> dict[int, float]:
    oracle.update(torch.as_tensor(predicted), torch.as_tensor(true))
    values = oracle.compute().ravel()
    order = [CHAIR, TABLE, WALL, FLOOR]  # things, then stuff, ascending, then "nothing"
    return dict(zip(order, values.tolist(), strict=False))
