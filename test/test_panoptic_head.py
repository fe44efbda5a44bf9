"""The head: features that are made for a label win at once."""

from __future__ import annotations

import pytest
import torch
from small_room import CHAIR, CPU, FLOOR, ROOM_SPACE, SPACE, TABLE, WALL

from panoptic_mapper.gaussian_map import INSTANCE_DIM, SEMANTIC_DIM, LearningRates
from panoptic_mapper.label_space import LabelSpace, SemanticClass
from panoptic_mapper.label_spaces import load_label_space
from panoptic_mapper.panoptic_head import PanopticColumns, PanopticHead, code_gain, spread_codes

SPACE_40 = LabelSpace.from_classes(SemanticClass(i, str(i), i % 2 == 0) for i in range(1, 41))


def make_head(space: LabelSpace = SPACE) -> PanopticHead:
    return PanopticHead(space, torch.Generator().manual_seed(0), CPU)


COCO, ADE20K = load_label_space("coco_panoptic"), load_label_space("ade20k_150")


@pytest.mark.parametrize("space", [SPACE, ROOM_SPACE, SPACE_40, COCO, ADE20K, LabelSpace.from_classes(())])
def test_the_class_of_a_feature_wins(space: LabelSpace) -> None:
    head = make_head(space)
    classes = torch.arange(len(space))
    probabilities = head.class_probabilities(head.semantic_features(classes, torch.ones(len(space))))
    assert probabilities.argmax(1).tolist() == classes.tolist()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(space)))
    assert (probabilities.diagonal()[1:] > 0.9).all()


def test_codes_of_many_classes_stay_apart() -> None:
    for num_classes in (65, 151, 300):
        codes = spread_codes(num_classes, torch.Generator().manual_seed(0))
        torch.testing.assert_close(codes.norm(dim=1), torch.ones(num_classes))
        assert (codes @ codes.T).fill_diagonal_(0).max() < 0.5
    assert code_gain(2) == code_gain(64) < code_gain(65) < code_gain(300)


@pytest.mark.parametrize("space", [SPACE, COCO, ADE20K])
def test_a_gaussian_without_evidence_is_unlabeled(space: LabelSpace) -> None:
    head = make_head(space)
    features = head.semantic_features(torch.zeros(1, dtype=torch.int64), torch.ones(1))
    assert (features == 0).all()
    assert head.class_probabilities(features)[0, 0] > 0.7
    assert head.class_probabilities(features)[0, head.is_thing].sum() < 0.2


@pytest.mark.parametrize("space", [SPACE, SPACE_40, COCO, ADE20K])
def test_a_label_of_little_confidence_wins(space: LabelSpace) -> None:
    head = make_head(space)
    classes = torch.arange(1, len(space))
    probabilities = head.class_probabilities(head.semantic_features(classes, torch.full((len(classes),), 0.3)))
    assert torch.equal(probabilities.argmax(1), classes)


def test_a_feature_of_nothing_learns_a_label_in_a_few_steps() -> None:
    head = make_head(SPACE_40)
    feature = torch.zeros(1, SEMANTIC_DIM, requires_grad=True)
    adam = torch.optim.Adam([feature], lr=LearningRates().semantics)
    for _ in range(5):
        adam.zero_grad()
        (-head.class_probabilities(feature)[0, 7].log()).backward()
        adam.step()
    assert head.class_probabilities(feature).argmax() == 7


def test_less_confidence_is_less_probability() -> None:
    head = make_head()
    features = head.semantic_features(torch.full((3,), CHAIR), torch.tensor([1.0, 0.6, 0.2]))
    sure, likely, doubtful = head.class_probabilities(features)[:, CHAIR].tolist()
    assert sure > likely > doubtful


def test_stuff_and_things_are_those_of_the_space() -> None:
    head = make_head()
    assert head.is_thing.tolist() == [False, True, False, True, False]
    assert head.num_classes == 5
    assert head.columns.stuff_classes.tolist() == [0, WALL, FLOOR]
    assert head.columns.thing_classes.tolist() == [CHAIR, TABLE]
    assert head.codes.shape == (5, SEMANTIC_DIM)


def test_columns_of_classes_and_queries() -> None:
    columns = make_head().columns  # unlabeled, wall, floor | unassigned | queries
    assert (columns.num_stuff, columns.first_query) == (3, 4)
    assert columns.stuff_of_classes.tolist() == [-1, -1, 1, -1, 2]
    assert columns.semantic_of_classes.tolist() == [-1, 3, 1, 4, 2]
    assert columns.queries_of(torch.tensor([[0, 2, 3], [4, 9, -1]])).tolist() == [[-1, -1, -1], [0, 5, -1]]


def test_classes_of_columns() -> None:
    column = torch.tensor([0, 1, 2, 3, 4, 9])
    likelier_table = torch.tensor([0.1, 0.3]).expand(6, 2)
    assert make_head().columns.classes_of(column, likelier_table).tolist() == [0, WALL, FLOOR, TABLE, TABLE, TABLE]
    only_stuff = PanopticColumns.of(torch.tensor([False, False]))
    assert only_stuff.classes_of(torch.tensor([0, 1]), torch.zeros(2, 0)).tolist() == [0, 1]


def similarities(num_queries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of features that were made for each query with their own query [Q], and with the others [Q (Q - 1)]."""
    head = make_head()
    keys = head.keys(torch.randn(num_queries, INSTANCE_DIM, generator=torch.Generator().manual_seed(1))).detach()
    torch.testing.assert_close(keys.mean(1), torch.zeros(num_queries), atol=1e-5, rtol=0)
    similarity = torch.sigmoid(head.instance_features(keys, torch.arange(num_queries)) @ keys.T)
    return similarity.diagonal(), similarity[~torch.eye(num_queries, dtype=torch.bool)]


@pytest.mark.parametrize("num_queries", [1, 2, 10, 25])
def test_the_own_query_of_a_feature_wins(num_queries: int) -> None:
    own, others = similarities(num_queries)
    assert (own > 0.9).all()
    assert (others < 0.2).all()


def test_the_own_query_stays_similar_among_more_queries_than_dimensions() -> None:
    own, others = similarities(3 * INSTANCE_DIM)
    assert (own > 0.9).all()
    assert others.mean() < 0.5


def test_features_are_a_ridge_solution_for_each_query() -> None:
    """Against weighted normal equations with one row per query and one per feature's penalty."""
    head = make_head()
    keys = head.keys(torch.randn(5, INSTANCE_DIM, generator=torch.Generator().manual_seed(2))).detach().double()
    features = head.instance_features(keys.float(), torch.arange(5))
    for own in range(5):
        weights = torch.where(torch.arange(5) == own, 30.0, 1.0).double()
        targets = torch.where(torch.arange(5) == own, 4.0, -4.0).double()
        left = torch.cat([weights.sqrt()[:, None] * keys, (0.01 * INSTANCE_DIM) ** 0.5 * torch.eye(INSTANCE_DIM)])
        right = torch.cat([weights.sqrt() * targets, torch.zeros(INSTANCE_DIM)])
        expected = torch.linalg.lstsq(left, right[:, None].double()).solution[:, 0]
        torch.testing.assert_close(features[own].double(), expected, atol=1e-4, rtol=1e-3)


def test_rows_follow_their_own_query() -> None:
    head = make_head()
    keys = head.keys(torch.randn(3, INSTANCE_DIM, generator=torch.Generator().manual_seed(1))).detach()
    features = head.instance_features(keys, torch.tensor([2, -1, 0, 2]))
    assert torch.equal(features[0], features[3])
    assert (features[1] == 0).all()
    assert (features @ keys.T).argmax(1)[[0, 2]].tolist() == [2, 0]
    assert torch.equal(head.instance_features(keys[:0], torch.tensor([-1, -1])), torch.zeros(2, INSTANCE_DIM))


def test_the_same_seed_gives_the_same_head() -> None:
    assert torch.equal(make_head().codes, make_head().codes)
    other = PanopticHead(SPACE, torch.Generator().manual_seed(1), CPU)
    assert not torch.equal(make_head().codes, other.codes)


def test_making_features_needs_no_gradient_and_probabilities_give_one() -> None:
    head = make_head()
    assert not head.semantic_features(torch.tensor([WALL]), torch.ones(1)).requires_grad
    head.class_probabilities(torch.ones(1, SEMANTIC_DIM))[0, WALL].backward()
    assert head.codes.grad is not None
    assert (head.codes.grad[WALL] != 0).any()
    assert (head.codes.grad[0] == 0).all()  # "unlabeled" has a constant logit instead of a code
