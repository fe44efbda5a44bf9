"""The map: 3D Gaussians with colour, a semantic and an instance feature, and the label that each was last given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from panoptic_mapper import ops
from panoptic_mapper.config import Config, param
from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.parameter_table import ParameterTable, Rows
from panoptic_mapper.spherical_harmonics import degree_of_width, width_of_degree

SEMANTIC_DIM = 16
INSTANCE_DIM = 32
FRUSTUM_MARGIN = 0.15  # share of the image size by which a centre may lie outside and its footprint still matter
NEAR_M = 0.05

APPEARANCE_WIDTHS = {
    "means": 3,  # map frame, m
    "quats": 4,  # wxyz, not normalised
    "log_scales": 3,  # log of the standard deviations in m
    "opacity_logits": 1,
    "colors": 3,  # RGB, 0..1 (not clamped), the mean over all directions of view
}
LABEL_WIDTHS = {
    "semantics": SEMANTIC_DIM,
    "instances": INSTANCE_DIM,
}
WIDTHS = APPEARANCE_WIDTHS | LABEL_WIDTHS
HARMONICS = "harmonics"  # one more column where the SH degree is above 0: coefficients that turn with the view

BOOK = (
    "anchor",  # keyframe id
    "class_index",  # last semantic class
    "instance_id",  # last public object id, 0 = none
    "confidence_permille",  # probability of that label in 1/1000
    "free_space_hits",  # how often it was seen floating in space that a depth image says is empty
)


@dataclass(frozen=True)
class LearningRates(Config):
    """Adam's step sizes for the columns of the map."""

    means: float = param(8e-4, "centres, m per step", ge=0)
    quats: float = param(2e-3, "rotation quaternions", ge=0)
    log_scales: float = param(4.8e-2, "log standard deviations", ge=0)
    opacity_logits: float = param(3e-2, "opacity logits", ge=0)
    colors: float = param(8e-3, "RGB in 0..1", ge=0)
    harmonics_share: float = param(0.05, "rate of the higher SH bands as a share of that of colors", ge=0)
    semantics: float = param(2e-2, "semantic features", ge=0)
    instances: float = param(3e-2, "instance features", ge=0)


@dataclass(frozen=True)
class GaussianConfig(Config):
    """What a Gaussian is."""

    base: Literal["3dgs", "surfel"] = param(
        "3dgs", "shape of a Gaussian: an ellipsoid, or a flat disc with a normal", choices=("3dgs", "surfel")
    )
    sh_degree: int = param(0, "SH degree of the colours while frames arrive; 0 = the same from all sides", ge=0, le=3)


class GaussianMap:
    """N Gaussians. All that is per Gaussian changes through `append`, `duplicate` and `keep`, so rows stay aligned.

    Labels have a table of their own, since not every step optimises them.
    """

    def __init__(self, rates: LearningRates, device: torch.device, config: GaussianConfig | None = None):
        self.config = config or GaussianConfig()
        self._rates = rates
        self.appearance = ParameterTable(APPEARANCE_WIDTHS, vars(rates), device)
        self.labels = ParameterTable(LABEL_WIDTHS, vars(rates), device)
        self._book = torch.zeros(0, len(BOOK), dtype=torch.int32, device=device)
        self.revision = 0  # counts the changes of which rows there are
        self.raise_sh_degree(self.config.sh_degree)
        self.scale_rates(1.0, 1.0)

    def __len__(self) -> int:
        return len(self.appearance)

    def __getitem__(self, name: str) -> Tensor:
        """A learnable column [N, width] or a bookkeeping column [N] int32 (see `BOOK`), as a view of all rows."""
        return self._book[: len(self), BOOK.index(name)] if name in BOOK else self._table_of(name)[name]

    @property
    def device(self) -> torch.device:
        return self.appearance.device

    @property
    def widths(self) -> dict[str, int]:
        """The learnable columns."""
        return self.appearance.widths | self.labels.widths

    @property
    def nbytes(self) -> int:
        return self.appearance.nbytes + self.labels.nbytes + self._book.nbytes

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics of the colours."""
        return degree_of_width(self.appearance.widths.get(HARMONICS, 0))

    def raise_sh_degree(self, degree: int) -> None:
        """Gives the colours more bands, which are 0 at first; a lower degree than the present one changes nothing."""
        if degree > self.sh_degree:
            rate = self._rates.harmonics_share * self._rates.colors
            self.appearance.widen(HARMONICS, width_of_degree(degree), rate)

    def scale_rates(self, means: float, others: float) -> None:
        """Sets the learning rates to shares of the configured ones: that of the centres, and of other shape and colour.

        Those of label features stay.
        """
        rates, flat = self._rates, self.config.base == "surfel"
        scales = others * rates.log_scales
        self.appearance.set_rates(
            means=means * rates.means,
            quats=others * rates.quats,
            log_scales=[scales, scales, 0.0 if flat else scales],  # a surfel's thickness is not learned
            opacity_logits=others * rates.opacity_logits,
            colors=others * rates.colors,
        )
        if self.sh_degree > 0:
            self.appearance.set_rates(**{HARMONICS: others * rates.harmonics_share * rates.colors})

    def ids_in_frustum(self, T_camera_map: Tensor, camera: PinholeCamera, limits: Tensor | None = None) -> Tensor:
        """Rows [V] whose centre projects into the slightly widened image: the candidates of a view.

        Args:
            T_camera_map: [4, 4] map to camera frame.
            camera: of the view.
            limits: depths beyond which nothing is seen, of `occlusion.depth_limits`; None = everything is a candidate.
        """
        return self.ids_in_frustums([(T_camera_map, camera, limits)])[0]

    def ids_in_frustums(self, views: Sequence[tuple[Tensor, PinholeCamera, Tensor | None]]) -> list[Tensor]:
        """The candidates of several views, see `ids_in_frustum`; a GPU is waited for once."""
        ops.load()
        kernels, means = torch.ops.panoptic_mapper, self["means"]
        masks = torch.stack(
            [
                kernels.frustum_mask(means, T, *camera.numbers, FRUSTUM_MARGIN, NEAR_M, limits)
                for T, camera, limits in views
            ]
        )
        counts = masks.sum(1).tolist()
        places = masks.flatten().nonzero_static(size=sum(counts))[:, 0].split(counts)
        return [place - view * len(self) for view, place in enumerate(places)]

    def append(self, columns: dict[str, Tensor], anchor: int) -> None:
        """Adds Gaussians [n, width] by column, bound to the keyframe `anchor`; they start without a label."""
        self._append_rows(columns)
        new = self._book.new_zeros(len(self) - len(self._book), len(BOOK))
        new[:, BOOK.index("anchor")] = anchor
        self._book = torch.cat([self._book, new])

    def duplicate(self, ids: Tensor, changed: dict[str, Tensor]) -> None:
        """Adds copies of the rows `ids` [n], label and anchor included, with other values in the columns `changed`."""
        self._append_rows({name: self[name][ids] for name in self.widths} | changed)
        self._book = torch.cat([self._book, self._book[ids]])

    def keep(self, mask: Tensor) -> None:
        """Drops the Gaussians where `mask` [N] is False."""
        kept = mask.nonzero()[:, 0]
        if len(kept) == len(self):
            return
        self.revision += 1
        self.appearance.keep(kept)
        self.labels.keep(kept)
        self._book = self._book[kept]

    def set_rows(self, ids: Tensor, **columns: Tensor) -> None:
        """Overwrites learnable columns of the rows `ids` [n], see `ParameterTable.set_rows`."""
        for name, values in columns.items():
            self._table_of(name).set_rows(ids, **{name: values})

    def restore(self, columns: dict[str, Tensor], book: dict[str, Tensor]) -> None:
        """Fills an empty map with saved learnable and bookkeeping columns."""
        if HARMONICS in columns:
            self.raise_sh_degree(degree_of_width(columns[HARMONICS].shape[1]))
        self.append(columns, anchor=0)
        for name, values in book.items():
            self[name][:] = values.to(self._book)

    def _append_rows(self, columns: dict[str, Tensor]) -> None:
        """Adds rows to the table; higher bands of the colours that are not given, or are of a lower degree, are 0."""
        self.revision += 1
        width = self.appearance.widths.get(HARMONICS, 0)
        if width > 0:
            given = columns.get(HARMONICS, columns["colors"].new_zeros(len(columns["colors"]), 0))
            columns = columns | {HARMONICS: torch.nn.functional.pad(given, (0, width - given.shape[1]))}
        labels = {name: columns[name] for name in self.labels.widths}
        self.labels.append(**labels)
        self.appearance.append(**{name: values for name, values in columns.items() if name not in labels})

    def _table_of(self, name: str) -> ParameterTable:
        return self.labels if name in self.labels.widths else self.appearance


def splat_inputs(rows: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a rasteriser takes of gathered rows: means [V, 3], quats [V, 4], scales [V, 3] m, opacities [V] in 0..1."""
    return rows["means"], rows["quats"], rows["log_scales"].exp(), rows["opacity_logits"][:, 0].sigmoid()
