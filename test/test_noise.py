"""Properties of the label noise model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from panoptic_mapper.datasets.noise import NOISE_LEVELS, NoiseConfig, corrupt
from panoptic_mapper.frame import Segmentation
from panoptic_mapper.label_space import LabelSpace, SemanticClass

SPACE = LabelSpace.from_classes(
    [SemanticClass(1, "wall", False), *(SemanticClass(10 + k, f"thing{k}", True) for k in range(4))]
)
WALL, FIRST_THING = 1, 2
CELL = 8  # pixels


@st.composite
def segmentations(draw):
    """A grid of square cells, each wall, unlabeled or part of one of a few instances; ids are any numbers."""
    ids = draw(st.lists(st.integers(1, 60000), min_size=1, max_size=6, unique=True))
    classes = draw(st.lists(st.integers(FIRST_THING, len(SPACE) - 1), min_size=len(ids), max_size=len(ids)))
    cells = draw(st.lists(st.integers(-2, len(ids) - 1), min_size=30, max_size=30))
    grid = np.array(cells).reshape(5, 6)
    instance = np.select([grid >= 0], [np.array(ids)[np.maximum(grid, 0)]], 0)
    semantic = np.select([grid >= 0, grid == -1], [np.array(classes)[np.maximum(grid, 0)], WALL], 0)
    return Segmentation(*(np.kron(a, np.ones((CELL, CELL), int)).astype(np.int32) for a in (semantic, instance)))


configs = st.builds(
    NoiseConfig,
    flip=st.floats(0, 1),
    drop=st.floats(0, 1),
    split=st.floats(0, 1),
    merge=st.floats(0, 1),
    jitter_px=st.sampled_from([0.0, 1.0, 4.0]),
    confidence_noise=st.sampled_from([0.0, 0.2]),
)
seeds = st.integers(0, 2**32 - 1)


def run(segmentation, seed=0, **noise):
    return corrupt(segmentation, SPACE, NoiseConfig(**noise), np.random.default_rng(seed))


def blocks(num=12, size=10):
    """Instances 1..num beside each other, each `size` pixels wide, of alternating things."""
    instance = np.repeat(np.arange(1, num + 1, dtype=np.int32), size)[None].repeat(size, 0)
    return Segmentation((FIRST_THING + instance % 4).astype(np.int32), instance)


def partition(instance):
    """The sets of pixels that share an id."""
    return {np.flatnonzero(instance == i).tobytes() for i in np.unique(instance[instance > 0])}


@settings(max_examples=150, deadline=None)
@given(segmentations(), configs, seeds)
def test_any_noise_gives_valid_labels(segmentation, config, seed):
    before = (segmentation.semantic.copy(), segmentation.instance.copy())
    noisy = corrupt(segmentation, SPACE, config, np.random.default_rng(seed))
    again = corrupt(segmentation, SPACE, config, np.random.default_rng(seed))
    np.testing.assert_array_equal(noisy.semantic, again.semantic)
    np.testing.assert_array_equal(noisy.instance, again.instance)
    np.testing.assert_array_equal(segmentation.semantic, before[0])
    np.testing.assert_array_equal(segmentation.instance, before[1])
    assert noisy.semantic.dtype == noisy.instance.dtype == np.int32
    assert noisy.semantic.shape == segmentation.semantic.shape
    ids = np.unique(noisy.instance)
    np.testing.assert_array_equal(ids[ids > 0], np.arange(1, (ids > 0).sum() + 1))
    for i in ids[ids > 0]:  # every instance is of one class, and that is a thing
        classes = np.unique(noisy.semantic[noisy.instance == i])
        assert len(classes) == 1
        assert SPACE.is_thing[classes[0]]
    if noisy.confidence is not None:
        assert noisy.confidence.dtype == np.float32
        assert np.all((noisy.confidence >= 0) & (noisy.confidence <= 1))
        assert not noisy.confidence[noisy.semantic == 0].any()


@settings(max_examples=100, deadline=None)
@given(segmentations(), configs, seeds)
def test_the_given_ids_play_no_part(segmentation, config, seed):
    """Ids that are named otherwise, in another order, give bit for bit the same labels."""
    table = np.concatenate([[0], 1 + np.random.default_rng(seed).permutation(60000)]).astype(np.int32)
    renamed = Segmentation(segmentation.semantic, table[segmentation.instance])
    a = corrupt(segmentation, SPACE, config, np.random.default_rng(seed))
    b = corrupt(renamed, SPACE, config, np.random.default_rng(seed))
    np.testing.assert_array_equal(a.instance, b.instance)
    np.testing.assert_array_equal(a.semantic, b.semantic)


@settings(max_examples=50, deadline=None)
@given(segmentations(), seeds)
def test_clean_labels_only_get_new_ids(segmentation, seed):
    noisy = run(segmentation, seed)
    np.testing.assert_array_equal(noisy.semantic, segmentation.semantic)
    assert partition(noisy.instance) == partition(segmentation.instance)
    assert noisy.confidence is None


@settings(max_examples=50, deadline=None)
@given(segmentations(), seeds)
def test_all_dropped_is_unlabeled_and_stuff_stays(segmentation, seed):
    noisy = run(segmentation, seed, drop=1.0)
    assert not noisy.instance.any()
    np.testing.assert_array_equal(noisy.semantic, np.where(segmentation.semantic == WALL, WALL, 0))


@settings(max_examples=50, deadline=None)
@given(segmentations(), seeds)
def test_all_flipped_have_another_thing_class(segmentation, seed):
    noisy = run(segmentation, seed, flip=1.0)
    things = segmentation.instance > 0
    assert np.all(noisy.semantic[things] != segmentation.semantic[things])
    assert np.all(SPACE.is_thing[noisy.semantic[things]])
    np.testing.assert_array_equal(noisy.semantic[~things], segmentation.semantic[~things])
    assert partition(noisy.instance) == partition(segmentation.instance)


def test_all_split_are_cut_in_halves():
    segmentation = blocks()
    noisy = run(segmentation, split=1.0)
    for i in range(1, 13):
        parts, sizes = np.unique(noisy.instance[segmentation.instance == i], return_counts=True)
        assert len(parts) == 2
        assert sizes.min() >= 35  # of 100; the median line may hold several pixels
    assert len(np.unique(noisy.instance)) == 24


def test_merged_instances_touch_and_have_the_class_of_the_larger():
    instance = np.zeros((10, 40), np.int32)
    instance[:, :20], instance[:, 20:26], instance[:, 30:] = 7, 3, 5  # 7 touches 3; 5 stands apart
    semantic = np.select([instance == 7, instance == 3, instance == 5], [2, 3, 4], WALL).astype(np.int32)
    noisy = run(Segmentation(semantic, instance), merge=1.0)
    joined = (instance == 7) | (instance == 3)
    assert len(np.unique(noisy.instance[joined])) == 1
    assert len(np.unique(noisy.instance[noisy.instance > 0])) == 2
    assert set(noisy.semantic[joined]) == {2}
    np.testing.assert_array_equal(noisy.semantic[~joined], semantic[~joined])


def test_jitter_moves_borders_by_the_asked_for_amount_and_is_smooth():
    labels = np.zeros((240, 320), np.int32)
    labels[:, 160:] = 1
    segmentation = Segmentation((WALL + labels).astype(np.int32), labels)
    borders = []
    for seed in range(10):
        noisy = run(segmentation, seed, jitter_px=3.0).instance
        borders.append((noisy == 0).sum(axis=1) - 160.0)  # the border's displacement in each row
    borders = np.array(borders)
    assert borders.std() == pytest.approx(3, rel=0.25)
    assert abs(borders.mean()) < 1
    assert np.abs(np.diff(borders, axis=1)).mean() < 1
    far = np.abs(np.arange(320) - 160) > 20
    np.testing.assert_array_equal(noisy[:, far], labels[:, far])


def test_shares_are_those_of_the_config():
    flips = drops = splits = 0
    for seed in range(60):
        segmentation = blocks()
        flips += (run(segmentation, seed, flip=0.25).semantic != segmentation.semantic).sum() / 100
        drops += (run(segmentation, seed, drop=0.35).semantic == 0).sum() / 100
        splits += len(np.unique(run(segmentation, seed, split=0.2).instance)) - 12
    total = 60 * 12
    assert flips / total == pytest.approx(0.25, abs=0.05)
    assert drops / total == pytest.approx(0.35, abs=0.05)
    assert splits / total == pytest.approx(0.2, abs=0.05)


def test_new_ids_tell_nothing_about_the_old_order():
    """Over many frames the correlation of old and new ids is that of chance, and every new id is equally likely."""
    segmentation = blocks(num=12, size=2)
    new = np.array([run(segmentation, seed).instance[0, ::2] for seed in range(400)])
    mean = np.mean([spearmanr(np.arange(12), row).statistic for row in new])
    assert abs(mean) < 4 / np.sqrt(400 * 11)
    counts = np.array([[np.sum(new[:, k] == i) for i in range(1, 13)] for k in range(12)])
    chi2 = ((counts - 400 / 12) ** 2 / (400 / 12)).sum()
    assert chi2 < 200  # 121 degrees of freedom: mean 121, standard deviation 16


def test_confidence_is_lower_where_the_class_is_wrong():
    right, wrong = [], []
    for seed in range(30):
        segmentation = blocks()
        noisy = run(segmentation, seed, flip=0.5, confidence_noise=0.1)
        is_wrong = noisy.semantic != segmentation.semantic
        right.append(noisy.confidence[~is_wrong].mean())
        wrong.append(noisy.confidence[is_wrong].mean())
    assert np.mean(right) == pytest.approx(0.9, abs=0.04)
    assert np.mean(wrong) == pytest.approx(0.65, abs=0.04)


def test_a_given_confidence_is_kept_and_follows_the_drops():
    segmentation = blocks()
    given_ = np.full(segmentation.semantic.shape, 0.5, np.float32)
    noisy = run(Segmentation(segmentation.semantic, segmentation.instance, given_), 1, drop=0.5)
    np.testing.assert_array_equal(noisy.confidence, np.where(noisy.semantic == 0, 0, 0.5))


def test_levels():
    moderate, hard = NoiseConfig.from_level("moderate"), NoiseConfig.from_level("hard")
    assert (moderate.flip, moderate.drop, moderate.split, moderate.merge, moderate.jitter_px) == (
        0.1,
        0.15,
        0.1,
        0.1,
        3,
    )
    assert (hard.flip, hard.drop, hard.split, hard.merge, hard.jitter_px) == (0.25, 0.35, 0.2, 0.2, 6)
    assert NoiseConfig.from_level("clean") == NoiseConfig()
    assert list(NOISE_LEVELS) == ["clean", "moderate", "hard"]
    with pytest.raises(ValueError, match="expected one of clean, moderate, hard, got 'harsh'"):
        NoiseConfig.from_level("harsh")
