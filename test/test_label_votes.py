"""What pixels say about Gaussians, by all rasterisers, and the losses that are made of it against those of images."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from operator_devices import captured
from rasterizer_scenes import SCENES, Scene
from torch import Tensor

from panoptic_mapper import ops
from panoptic_mapper.label_rendering import LabelRendering
from panoptic_mapper.label_targets import LabelTargets
from panoptic_mapper.label_votes import voted_losses
from panoptic_mapper.losses import floored_log
from panoptic_mapper.panoptic_head import PanopticColumns
from panoptic_mapper.rasterizers.base import ProjectedView
from panoptic_mapper.rasterizers.cpu import CpuRasterizer
from panoptic_mapper.rasterizers.torch_reference import TorchRasterizer, TorchView

NUM_A, NUM_B = 5, 7
ON_GSPLAT = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available() or importlib.util.find_spec("gsplat") is None, reason="no GPU with gsplat"
    ),
]
BACKENDS = ["cpu", pytest.param("gsplat", marks=ON_GSPLAT)]


def view_of(scene: Scene, backend: str, dtype: torch.dtype = torch.float32) -> ProjectedView:
    if backend == "gsplat":
        from panoptic_mapper.rasterizers.gsplat import GsplatRasterizer

        rasterizer, device = GsplatRasterizer(), "cuda"
    else:
        rasterizer, device = (TorchRasterizer() if backend == "torch" else CpuRasterizer()), "cpu"
    inputs = [
        t.to(device, dtype) for t in (scene.means, scene.quats, scene.scales, scene.opacities, scene.T_camera_map)
    ]
    return rasterizer.project(*inputs, scene.camera)


def questions(size: tuple[int, int], dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, ...]:
    """Columns in patches, as those of labels are, some of them of no meaning; and weights."""
    g = torch.Generator().manual_seed(seed)
    patches = [torch.randint(-2, n + 2, (size[0] // 5 + 1, size[1] // 9 + 1), generator=g) for n in (NUM_A, NUM_B)]
    a, b = (p.repeat_interleave(5, 0).repeat_interleave(9, 1)[: size[0], : size[1]].contiguous() for p in patches)
    b[torch.rand(size, generator=g) < 0.1] = 2**40
    return a, b, (0.2 + torch.rand(size, generator=g)).to(dtype)


def size_of(scene: Scene) -> tuple[int, int]:
    return scene.camera.height, scene.camera.width


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SCENES)
def test_tally_equals_twin(name: str, backend: str) -> None:
    """The twin's is the gradient of what it blends."""
    scene = SCENES[name]
    view, twin = view_of(scene, backend), view_of(scene, "torch", torch.float64)
    device = view.visible.device
    asked = questions(size_of(scene))
    actual = view.tally(*(t.to(device) for t in asked), NUM_A, NUM_B)
    expected = twin.tally(*asked[:2], asked[2].double(), NUM_A, NUM_B)
    assert actual.shape == (len(view.visible) + 1, NUM_A + 2 * NUM_B + 1)
    rows = torch.cat([view.visible.cpu(), torch.tensor([len(scene.means)])])
    table = expected.new_zeros(len(scene.means) + 1, actual.shape[1])
    table[torch.cat([twin.visible, rows[-1:]])] = expected
    torch.testing.assert_close(actual.cpu().double(), table[rows], rtol=1e-4, atol=2e-3)
    assert (actual[-1] > 0).any()


def tiles_of(view: TorchView, device: str) -> list[Tensor]:
    """A twin's view as gsplat has it, in whose tiles all Gaussians are listed."""
    conics = torch.stack([view.conics[:, 0, 0], view.conics[:, 0, 1], view.conics[:, 1, 1]], dim=1)
    tiles_y, tiles_x = (-(-n // 16) for n in (view.camera.height, view.camera.width))
    order, V = view.depths.argsort(stable=True).int(), len(view.depths)
    offsets = V * torch.arange(tiles_y * tiles_x, dtype=torch.int32).reshape(1, tiles_y, tiles_x)
    tensors = [
        (view.means2d + 0.5).float(),
        conics.float(),
        view.opacities.float(),
        offsets,
        order.repeat(offsets.numel()),
    ]
    return [t.to(device) for t in tensors]


@pytest.mark.parametrize("name", SCENES)
def test_tally_of_tiles_equals_twin(name: str, device: str) -> None:
    scene = SCENES[name]
    twin = view_of(scene, "torch", torch.float64)
    asked = questions(size_of(scene))
    actual = torch.ops.panoptic_mapper.tally_tiles(
        *tiles_of(twin, device), *(t.to(device) for t in asked), NUM_A, NUM_B
    )
    expected = twin.tally(*asked[:2], asked[2].double(), NUM_A, NUM_B)
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=1e-4, atol=2e-3)


def test_tallies_by_hand(device: str) -> None:
    """Two pixels, of which a Gaussian of opacity 0.5 makes up half; one names columns 1 and 0, the other only b's 2."""
    splat = [torch.tensor([[1.0, 0.5]]), torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([0.5])]
    lists = [torch.zeros(1, 1, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)]
    asked = [torch.tensor([[1, -1]]), torch.tensor([[0, 2]]), torch.tensor([[0.4, 0.8]])]
    tally = torch.ops.panoptic_mapper.tally_tiles(*(t.to(device) for t in (*splat, *lists, *asked)), 2, 3)
    expected = torch.tensor([0, 0.4, 0.4, 0, 0.8, 1, 0, 1, 1])
    torch.testing.assert_close(tally[1].cpu(), expected)
    torch.testing.assert_close(tally[0].cpu(), 0.5 * expected)


def test_layouts_and_columns_of_no_meaning_do_not_matter(device: str) -> None:
    tiles = tiles_of(view_of(SCENES["cloud"], "torch"), device)
    asked = [t.to(device) for t in questions(size_of(SCENES["cloud"]))]
    expected = torch.ops.panoptic_mapper.tally_tiles(*tiles, *asked, NUM_A, NUM_B)
    a, b, weights = (t.T.contiguous().T for t in asked)
    a[a >= NUM_A], b[b < 0] = 2**50, -(2**50)
    actual = torch.ops.panoptic_mapper.tally_tiles(*tiles, a, b, weights, NUM_A, NUM_B)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)  # a GPU adds in any order


def test_bad_arguments_raise(device: str) -> None:
    tiles = tiles_of(view_of(SCENES["cloud"], "torch"), device)
    asked = [t.to(device) for t in questions(size_of(SCENES["cloud"]))]
    for index, bad, message in (
        (0, tiles[0].double(), "means2d: expected Float"),
        (1, tiles[1][1:], "conics: expected sizes"),
        (3, tiles[3][:, :1], "tile_offsets: expected sizes"),
        (5, asked[0].int(), "a: expected Long"),
        (6, asked[1][1:], "b: expected sizes"),
        (7, asked[2][:, 1:], "weights: expected sizes"),
    ):
        args = [*tiles, *asked]
        args[index] = bad
        with pytest.raises((RuntimeError, ValueError), match=message):
            torch.ops.panoptic_mapper.tally_tiles(*args, NUM_A, NUM_B)
    with pytest.raises(ValueError, match="num_a"):
        torch.ops.panoptic_mapper.tally_tiles(*tiles, *asked, -1, NUM_B)


def test_opcheck(device: str) -> None:
    args = (*tiles_of(view_of(SCENES["exact tiles"], "torch"), device), *(t.to(device) for t in questions((16, 32))))
    utils = ("test_schema", "test_faketensor") if device == "cuda" else None  # atomics: the same only nearly
    torch.library.opcheck(
        torch.ops.panoptic_mapper.tally_tiles.default, (*args, NUM_A, NUM_B), **({"test_utils": utils} if utils else {})
    )


def test_opcheck_of_pairs() -> None:
    view = view_of(SCENES["exact tiles"], "cpu")
    args = (*view.lists[:7], *questions((16, 32)), NUM_A, NUM_B)  # type: ignore[attr-defined]
    torch.library.opcheck(torch.ops.panoptic_mapper.tally_pairs.default, args)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graph_and_no_synchronisation() -> None:
    ops.load()
    tiles = tiles_of(view_of(SCENES["cloud"], "torch"), "cuda")
    size = size_of(SCENES["cloud"])
    asked = [t.cuda() for t in questions(size)]

    def run() -> list[Tensor]:
        return [torch.ops.panoptic_mapper.tally_tiles(*tiles, *asked, NUM_A, NUM_B)]

    graph, (table,) = captured(run)
    for t, other in zip(asked, questions(size, seed=3), strict=True):
        t.copy_(other)
    graph.replay()
    torch.testing.assert_close(table, run()[0], rtol=1e-5, atol=1e-5)


def labels_of(view: ProjectedView, columns: PanopticColumns, num_queries: int) -> tuple[LabelRendering, list[Tensor]]:
    """Random labels of the visible Gaussians, and the leaves that they are made of."""
    g = torch.Generator().manual_seed(5)
    num_classes = columns.num_stuff + len(columns.thing_classes)
    shapes = ((len(view.visible), columns.first_query + num_queries), (len(view.visible), num_classes))
    leaves = [torch.randn(*shape, generator=g).requires_grad_() for shape in shapes]
    return LabelRendering(leaves[0].softmax(1), leaves[1].softmax(1), columns, view.blend), leaves


@pytest.mark.parametrize("num_queries", [0, 1, 6])
@pytest.mark.parametrize("is_thing", [[False, True, False, True, True], [False, False], [False, True]])
def test_losses_are_those_of_blended_logarithms_and_masks(is_thing: list[bool], num_queries: int) -> None:
    """The operator of label images is tested on its own."""
    scene, columns = SCENES["cloud"], PanopticColumns.of(torch.tensor(is_thing))
    view, (height, width) = view_of(scene, "cpu"), size_of(scene)
    labels, leaves = labels_of(view, columns, num_queries)
    g = torch.Generator().manual_seed(6)
    num_panoptic = columns.first_query + num_queries
    panoptic, semantic = (torch.randint(-1, n, (height, width), generator=g) for n in (num_panoptic, len(is_thing)))
    targets = LabelTargets(panoptic, semantic, torch.rand(height, width, generator=g))

    def gradients(losses: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(losses @ torch.tensor([1.7, -0.6, 0.4]), leaves, retain_graph=True))

    actual = voted_losses(view, labels, targets)
    logs = view.blend(floored_log(torch.cat([labels.distribution, columns.things_of(labels.class_probs)], dim=1)))
    expected, _ = torch.ops.panoptic_mapper.label_losses(
        labels.masks, logs, panoptic, semantic, targets.weights, columns.num_stuff
    )
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    assert (actual[:2] > 0).all()
    for a, e in zip(gradients(actual), gradients(expected), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5 * float(e.abs().max()))


def test_no_target_no_loss() -> None:
    scene, columns = SCENES["cloud"], PanopticColumns.of(torch.tensor([False, True, False]))
    view = view_of(scene, "cpu")
    labels, leaves = labels_of(view, columns, 2)
    nothing = torch.full(size_of(scene), -1)
    losses = voted_losses(view, labels, LabelTargets(nothing, nothing, torch.ones(size_of(scene))))
    assert losses.tolist() == [0, 0, 0]
    assert all((v == 0).all() for v in torch.autograd.grad(losses.sum(), leaves))


class OnePixel:
    """A view of one pixel with given weights [V]."""

    def __init__(self, weights: Tensor) -> None:
        self.depths, self.visible = weights, torch.arange(len(weights))

    def blend(self, values: Tensor) -> Tensor:
        return (self.depths @ values)[None, None]

    tally = TorchView.tally


def test_a_wrong_gaussian_is_told_though_others_explain_the_pixel() -> None:
    """In the logarithm of the blended probability it would have next to no gradient."""
    view = OnePixel(torch.tensor([0.5, 0.3]))
    columns = PanopticColumns.of(torch.tensor([False, False]))
    logits = torch.tensor([[0.0, 6.0, 0.0], [6.0, 0.0, 0.0]], requires_grad=True)  # the second one is wrong
    labels = LabelRendering(logits.softmax(1), torch.zeros(2, 2), columns, view.blend)
    column, nothing = torch.ones(1, 1, dtype=torch.int64), torch.full((1, 1), -1)
    _, told, _ = voted_losses(view, labels, LabelTargets(column, nothing, torch.ones(1, 1)))  # type: ignore[arg-type]
    by_hand = -0.5 * floored_log(labels.distribution[0, 1]) - 0.3 * floored_log(labels.distribution[1, 1])
    torch.testing.assert_close(told, by_hand)
    of_blended = -floored_log(labels.panoptic[0, 0, 1])
    by_vote, by_image = (torch.autograd.grad(x, logits, retain_graph=True)[0][1].norm() for x in (told, of_blended))
    assert by_vote > 10 * by_image
