"""The HoVer-Trans encoder: strips across and strips down the image guide what patches say.

1. A stem of three convolutions brings the image to a quarter of its side and ``dims[0]`` channels.
2. In each of four stages the feature map is cut into patches; a row of patches, end to end, is a
   horizontal strip, a column a vertical strip. Blocks of transformers follow: the strips of each
   direction attend to one another; patches attend to patches in two branches, one told first by
   the horizontal strips and then by the vertical ones (h2v), one the other way round (v2h).
3. The two branches are joined by a convolution block, to twice the channels; the map is halved.
4. A 3x3 convolution to the features of the MAP model, and the mean over all positions.

Source: Mo et al., "HoVer-Trans: Anatomy-aware HoVer-Transformer for ROI-free Breast Cancer
Diagnosis in Ultrasound Images", IEEE TMI 2023 (arXiv 2205.08390), figure 2; step 4 is the MAP
paper's. Deviations:

- Normalisation over one case (GroupNorm of one group) where the source has BatchNorm, which keeps
  running statistics: these would mix sites and cases. The learned scale and shift are the same.
- A strip is stored patch after patch, not pixel row after pixel row. That relabels the inputs of
  the layers that read a strip; the functions that the network can learn are the same.
- No stochastic depth: it draws random numbers inside the step, and a case's augmentation here
  depends on its own seed alone.
- Left out: the relative positions and strip projections that the public code of the source
  creates but never uses. They are the 2.1 M by which its count exceeds the one here.
"""

from __future__ import annotations

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from her2_common.attention import attend
from her2_common.layers import draw, draw_linear, perceptron
from her2_common.types import Features, Images

STEM_STRIDE: Final = 4
"""The first stage works at this fraction of the image's side."""


class Attention(nn.Module):
    """Multi-head self-attention among the tokens of a case."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, tokens, width) to the same shape."""
        n, count, width = tokens.shape
        # (n, tokens, 3 width) -> three of (n, heads, tokens, width / heads)
        qkv = self.qkv(tokens).view(n, count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(query, key, value)
        projected: Tensor = self.project(mixed.transpose(1, 2).reshape(n, count, width))
        return projected


class Block(nn.Module):
    """One HoVer-Trans block on a grid of g x g patches of ``patch_width`` numbers each."""

    def __init__(self, patch_width: int, grid: int, heads: int) -> None:
        super().__init__()
        strip_width = grid * patch_width
        self.norm_strips = nn.LayerNorm(strip_width)
        self.attend_rows = Attention(strip_width, heads)
        self.attend_columns = Attention(strip_width, heads)
        self.norm_strips_mlp = nn.LayerNorm(strip_width)
        self.mlp_rows = perceptron(strip_width)
        self.mlp_columns = perceptron(strip_width)

        self.norm_tell = nn.LayerNorm(patch_width)
        self.tell_rows = nn.Linear(patch_width, patch_width)
        self.tell_columns = nn.Linear(patch_width, patch_width)

        self.norm_patches = nn.LayerNorm(patch_width)
        self.attend_after_rows = Attention(patch_width, heads)
        self.attend_after_columns = Attention(patch_width, heads)
        self.norm_patches_mlp = nn.LayerNorm(patch_width)
        self.mlp_h2v = perceptron(patch_width)
        self.mlp_v2h = perceptron(patch_width)

    def forward(
        self, h2v: Tensor, v2h: Tensor, rows: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``h2v`` and ``v2h`` are (n, g * g, w), ``rows`` and ``columns`` (n, g, g * w)."""
        n, grid, strip_width = rows.shape
        rows = rows + self.attend_rows(self.norm_strips(rows))
        rows = rows + self.mlp_rows(self.norm_strips_mlp(rows))
        columns = columns + self.attend_columns(self.norm_strips(columns))
        columns = columns + self.mlp_columns(self.norm_strips_mlp(columns))

        # What the strips tell each patch; both branches hear the same, so it is worked out once.
        patches = (n, grid, grid, strip_width // grid)
        from_rows = self.tell_rows(self.norm_tell(rows.view(patches))).flatten(1, 2)
        from_columns = self.tell_columns(self.norm_tell(columns.view(patches)))
        from_columns = from_columns.transpose(1, 2).flatten(1, 2)  # (n, g * g, w), row by row

        h2v = h2v + from_rows
        h2v = h2v + self.attend_after_rows(self.norm_patches(h2v))
        h2v = h2v + from_columns
        h2v = h2v + self.attend_after_columns(self.norm_patches(h2v))
        h2v = h2v + self.mlp_h2v(self.norm_patches_mlp(h2v))

        v2h = v2h + from_columns
        v2h = v2h + self.attend_after_columns(self.norm_patches(v2h))
        v2h = v2h + from_rows
        v2h = v2h + self.attend_after_rows(self.norm_patches(v2h))
        v2h = v2h + self.mlp_v2h(self.norm_patches_mlp(v2h))
        return h2v, v2h, rows, columns


class Stage(nn.Module):
    """Cut a map into patches and strips, run the blocks, join the branches to 2 ``dim`` channels.

    ``side`` is that of the map in pixels. If the patch does not divide it, zeros fill the last
    patches and are cut off again at the end.
    """

    def __init__(
        self, side: int, patch: int, dim: int, *, depth: int, heads: int, positions: bool
    ) -> None:
        super().__init__()
        self.side, self.patch, self.dim = side, patch, dim
        self.grid = grid = math.ceil(side / patch)
        width = dim * patch * patch
        self.norm_embed = nn.LayerNorm(grid * width)
        self.patch_positions: nn.Parameter | None = None
        self.row_positions: nn.Parameter | None = None
        self.column_positions: nn.Parameter | None = None
        if positions:
            self.patch_positions = nn.Parameter(torch.empty(grid * grid, width))
            self.row_positions = nn.Parameter(torch.empty(grid, grid * width))
            self.column_positions = nn.Parameter(torch.empty(grid, grid * width))
        for table in (self.patch_positions, self.row_positions, self.column_positions):
            draw(table)
        self.blocks = nn.ModuleList(Block(width, grid, heads) for _ in range(depth))
        self.join = nn.Sequential(
            *conv_norm_relu(2 * dim, 4 * dim, kernel=1),
            *conv_norm_relu(4 * dim, 4 * dim, kernel=3),
            *conv_norm_relu(4 * dim, 2 * dim, kernel=1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(n, dim, side, side) to (n, 2 dim, side, side)."""
        n, grid, patch, dim = len(maps), self.grid, self.patch, self.dim
        missing = grid * patch - self.side
        if missing:
            maps = F.pad(maps, (0, missing, 0, missing))
        # (n, dim, g, p, g, p) -> (n, g, g, p, p, dim) -> (n, g * g, w)
        cells = maps.reshape(n, dim, grid, patch, grid, patch)
        patches = cells.permute(0, 2, 4, 3, 5, 1).reshape(n, grid * grid, -1)
        if self.patch_positions is not None:
            patches = patches + self.patch_positions
        table = patches.view(n, grid, grid, -1)
        rows = self.norm_embed(table.flatten(2))  # (n, g, g * w): a row's patches, left to right
        columns = self.norm_embed(table.transpose(1, 2).flatten(2))  # a column's, top to bottom
        if self.row_positions is not None and self.column_positions is not None:
            rows = rows + self.row_positions
            columns = columns + self.column_positions
        h2v = v2h = patches
        for block in self.blocks:
            h2v, v2h, rows, columns = block(h2v, v2h, rows, columns)
        # two of (n, g * g, p * p * dim) -> (n, g, g, p, p, 2 dim) -> (n, side, side, 2 dim)
        both = torch.stack([h2v, v2h], 2).view(n, grid, grid, 2, patch, patch, dim)
        joined = both.permute(0, 1, 4, 2, 5, 3, 6).reshape(n, grid * patch, grid * patch, 2 * dim)
        joined = joined[:, : self.side, : self.side]
        merged: Tensor = self.join(joined.permute(0, 3, 1, 2))  # channels last in memory
        return merged


def conv_norm_relu(before: int, after: int, *, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A convolution, a normalisation over the whole case, ReLU."""
    convolution = nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2)
    return [convolution, nn.GroupNorm(1, after), nn.ReLU(inplace=True)]


class HoVerTrans(nn.Module):
    """The encoder. ``size`` is the side of its images in pixels: a strip's width follows from it.

    ``dims``, ``depths`` and ``heads`` have an entry a stage; ``heads`` must divide ``dims``.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        size: int,
        *,
        dims: tuple[int, ...],
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        patch: int,
    ) -> None:
        super().__init__()
        self.size = size
        self.stem = nn.Sequential(
            *conv_norm_relu(channels, 2 * channels, kernel=3, stride=2),
            *conv_norm_relu(2 * channels, STEM_STRIDE * channels, kernel=3, stride=2),
            *conv_norm_relu(STEM_STRIDE * channels, dims[0], kernel=3),
        )
        side = math.ceil(size / STEM_STRIDE)
        stages: list[nn.Module] = []
        for i, (dim, depth, head) in enumerate(zip(dims, depths, heads, strict=True)):
            stages.append(Stage(side, patch, dim, depth=depth, heads=head, positions=i == 0))
            side = math.ceil(side / 2)
        self.stages = nn.ModuleList(stages)
        self.project = nn.Conv2d(2 * dims[-1], features, 3, padding=1)
        self.apply(draw_linear)

    def forward(self, images: Images) -> Features:
        """(n, channels, size, size) to (n, features).

        Raises:
            ValueError: the images have another size than the encoder.
        """
        if images.shape[-2:] != (self.size, self.size):
            got = " x ".join(str(side) for side in images.shape[-2:])
            raise ValueError(f"expected images of {self.size} x {self.size} pixels, got {got}")
        maps = self.stem(images.contiguous(memory_format=torch.channels_last))
        for i, stage in enumerate(self.stages):
            if i:
                maps = F.avg_pool2d(maps, 2, ceil_mode=True)
            maps = stage(maps)
        return mean_of_convolution(maps, self.project)


def mean_of_convolution(maps: Tensor, convolution: nn.Conv2d) -> Tensor:
    """The mean over positions of a 3x3 convolution of (n, c, side, side): (n, features).

    Both are linear, so the mean is taken first: one product a case instead of one a position.
    """
    windows = F.unfold(maps, 3, padding=1).mean(-1)  # (n, c * 9)
    return F.linear(windows, convolution.weight.flatten(1), convolution.bias)
