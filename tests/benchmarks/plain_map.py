"""The plain formulation of the MAP model: what the fast one is measured and tested against.

The same network as ``her2_common.model.MapModel`` builds from a preset, written as a reader of the
papers would write it first:

- every encoder runs on every case, an absent modality is a zero image and is masked out of the
  mean and the loss afterwards;
- attention is a product, a softmax and a product; queries, keys and values have layers of their
  own; patches and strips are cut with ``permute``;
- the volume encoder is put together from MONAI's Swin blocks, which roll, cut and join;
- the features are a convolution at every position, then their mean;
- AdamW runs a parameter at a time.

``copy_weights`` gives it the weights of a ``MapModel``, so that the two can be compared.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks import PatchEmbed
from monai.networks.nets.swin_unetr import (
    PatchMergingV2,
    SwinTransformerBlock,
    compute_mask,
)
from torch import Tensor, nn

from her2_common import hovertrans, swin
from her2_common.cases import MODALITIES, Modality
from her2_common.model import CHANNELS, ConvEncoder, MapModel, Preset

# --- HoVer-Trans --------------------------------------------------------------------------------


class PlainAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        query, key, value = (
            layer(x).view(n, tokens, self.heads, -1).permute(0, 2, 1, 3)
            for layer in (self.query, self.key, self.value)
        )
        weights = (query @ key.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.project((weights @ value).transpose(1, 2).reshape(n, tokens, width))


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class PlainBlock(nn.Module):
    def __init__(self, width: int, grid: int, heads: int) -> None:
        super().__init__()
        self.grid = grid
        strip = grid * width
        self.norm_strips, self.norm_strips_mlp = nn.LayerNorm(strip), nn.LayerNorm(strip)
        self.attend_rows = PlainAttention(strip, heads)
        self.attend_columns = PlainAttention(strip, heads)
        self.mlp_rows, self.mlp_columns = mlp(strip), mlp(strip)
        self.norm_tell = nn.LayerNorm(width)
        self.tell_rows, self.tell_columns = nn.Linear(width, width), nn.Linear(width, width)
        self.norm_patches, self.norm_patches_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend_after_rows = PlainAttention(width, heads)
        self.attend_after_columns = PlainAttention(width, heads)
        self.mlp_h2v, self.mlp_v2h = mlp(width), mlp(width)

    def from_rows(self, rows: Tensor) -> Tensor:
        n, grid, _ = rows.shape
        patches = rows.reshape(n, grid, grid, -1).reshape(n, grid * grid, -1)
        return self.tell_rows(self.norm_tell(patches))

    def from_columns(self, columns: Tensor) -> Tensor:
        n, grid, _ = columns.shape
        patches = columns.reshape(n, grid, grid, -1).transpose(1, 2).reshape(n, grid * grid, -1)
        return self.tell_columns(self.norm_tell(patches))

    def forward(self, h2v: Tensor, v2h: Tensor, rows: Tensor, columns: Tensor) -> Any:
        rows = rows + self.attend_rows(self.norm_strips(rows))
        rows = rows + self.mlp_rows(self.norm_strips_mlp(rows))
        columns = columns + self.attend_columns(self.norm_strips(columns))
        columns = columns + self.mlp_columns(self.norm_strips_mlp(columns))

        h2v = h2v + self.from_rows(rows)
        h2v = h2v + self.attend_after_rows(self.norm_patches(h2v))
        h2v = h2v + self.from_columns(columns)
        h2v = h2v + self.attend_after_columns(self.norm_patches(h2v))
        h2v = h2v + self.mlp_h2v(self.norm_patches_mlp(h2v))

        v2h = v2h + self.from_columns(columns)
        v2h = v2h + self.attend_after_columns(self.norm_patches(v2h))
        v2h = v2h + self.from_rows(rows)
        v2h = v2h + self.attend_after_rows(self.norm_patches(v2h))
        v2h = v2h + self.mlp_v2h(self.norm_patches_mlp(v2h))
        return h2v, v2h, rows, columns


class PlainStage(nn.Module):
    def __init__(self, side: int, patch: int, dim: int, depth: int, heads: int, first: bool):
        super().__init__()
        self.side, self.patch, self.dim = side, patch, dim
        self.grid = grid = -(-side // patch)
        width = dim * patch * patch
        self.norm_embed = nn.LayerNorm(grid * width)
        self.first = first
        if first:
            self.patch_positions = nn.Parameter(torch.zeros(grid * grid, width))
            self.row_positions = nn.Parameter(torch.zeros(grid, grid * width))
            self.column_positions = nn.Parameter(torch.zeros(grid, grid * width))
        self.blocks = nn.ModuleList(PlainBlock(width, grid, heads) for _ in range(depth))
        self.join = nn.Sequential(
            *(nn.Conv2d(2 * dim, 4 * dim, 1), nn.GroupNorm(1, 4 * dim), nn.ReLU()),
            *(nn.Conv2d(4 * dim, 4 * dim, 3, padding=1), nn.GroupNorm(1, 4 * dim), nn.ReLU()),
            *(nn.Conv2d(4 * dim, 2 * dim, 1), nn.GroupNorm(1, 2 * dim), nn.ReLU()),
        )

    def as_map(self, patches: Tensor) -> Tensor:
        n, grid, patch, dim = len(patches), self.grid, self.patch, self.dim
        cells = patches.reshape(n, grid, grid, patch, patch, dim).permute(0, 5, 1, 3, 2, 4)
        return cells.reshape(n, dim, grid * patch, grid * patch)[:, :, : self.side, : self.side]

    def forward(self, maps: Tensor) -> Tensor:
        n, grid, patch = len(maps), self.grid, self.patch
        more = grid * patch - self.side
        maps = F.pad(maps, (0, more, 0, more))
        cells = maps.reshape(n, self.dim, grid, patch, grid, patch).permute(0, 2, 4, 3, 5, 1)
        patches = cells.reshape(n, grid * grid, -1)
        if self.first:
            patches = patches + self.patch_positions
        table = patches.reshape(n, grid, grid, -1)
        rows = self.norm_embed(table.reshape(n, grid, -1))
        columns = self.norm_embed(table.permute(0, 2, 1, 3).reshape(n, grid, -1))
        if self.first:
            rows, columns = rows + self.row_positions, columns + self.column_positions
        h2v = v2h = patches
        for block in self.blocks:
            h2v, v2h, rows, columns = block(h2v, v2h, rows, columns)
        return self.join(torch.cat([self.as_map(h2v), self.as_map(v2h)], dim=1))


class PlainHoVerTrans(nn.Module):
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
        c = channels
        self.stem = nn.Sequential(
            *(nn.Conv2d(c, 2 * c, 3, stride=2, padding=1), nn.GroupNorm(1, 2 * c), nn.ReLU()),
            *(nn.Conv2d(2 * c, 4 * c, 3, stride=2, padding=1), nn.GroupNorm(1, 4 * c), nn.ReLU()),
            *(nn.Conv2d(4 * c, dims[0], 3, padding=1), nn.GroupNorm(1, dims[0]), nn.ReLU()),
        )
        side = -(-size // 4)
        self.stages = nn.ModuleList()
        for i, dim in enumerate(dims):
            self.stages.append(PlainStage(side, patch, dim, depths[i], heads[i], first=i == 0))
            side = -(-side // 2)
        self.project = nn.Conv2d(2 * dims[-1], features, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        for i, stage in enumerate(self.stages):
            if i:
                maps = F.avg_pool2d(maps, 2, ceil_mode=True)
            maps = stage(maps)
        return self.project(maps).mean((2, 3))

    def load(self, fast: hovertrans.HoVerTrans) -> None:
        weights = dict(fast.state_dict())
        for name in list(weights):
            if name.endswith(".qkv.weight"):
                parts = weights.pop(name).chunk(3)
                for part, layer in zip(parts, ("query", "key", "value"), strict=True):
                    weights[name.replace("qkv", layer)] = part
        self.load_state_dict(weights)


# --- Swin ---------------------------------------------------------------------------------------


class PlainSwin(nn.Module):
    """MONAI's Swin blocks. The sides of all stages must be multiples of the window: MONAI lets
    the tokens that fill a window take part in attention, the fast encoder does not."""

    def __init__(
        self,
        channels: int,
        features: int,
        size: int,
        *,
        patch: int,
        embedding: int,
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        window: int,
    ) -> None:
        super().__init__()
        self.window = (window,) * 3
        self.shift = (window // 2,) * 3
        self.embed = PatchEmbed(patch, channels, embedding, norm_layer=None, spatial_dims=3)
        self.stages, self.merges = nn.ModuleList(), nn.ModuleList()
        side = size // patch
        for i, depth in enumerate(depths):
            if side % window:
                raise ValueError(f"expected a side that {window} divides, got {side}")
            side = -(-side // 2)
            width = embedding * 2**i
            self.stages.append(
                nn.ModuleList(
                    SwinTransformerBlock(
                        width,
                        heads[i],
                        self.window,
                        self.shift if b % 2 else (0, 0, 0),
                        mlp_ratio=4,
                        qkv_bias=True,
                    )
                    for b in range(depth)
                )
            )
            if i + 1 < len(depths):
                self.merges.append(PatchMergingV2(width, spatial_dims=3))
        self.norm = nn.LayerNorm(features)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).permute(0, 2, 3, 4, 1)  # (n, z, y, x, c)
        for i, blocks in enumerate(self.stages):
            if i:
                x = self.merges[i - 1](x)
            mask = None
            if x.shape[1] > self.window[0]:
                mask = compute_mask(x.shape[1:4], self.window, self.shift, x.device)
            for block in blocks:
                x = block(x, mask)
        return self.norm(x).mean((1, 2, 3))

    def load(self, fast: swin.Swin3d) -> None:
        with torch.no_grad():
            self.embed.proj.weight.copy_(fast.embed.weight.view_as(self.embed.proj.weight))
            self.embed.proj.bias.copy_(fast.embed.bias)
        self.norm.load_state_dict(fast.norm.state_dict())
        for plain, merge in zip(self.merges, fast.merges, strict=True):
            plain.norm.load_state_dict(merge.norm.state_dict())
            plain.reduction.load_state_dict(merge.reduce.state_dict())
        for blocks, stage in zip(self.stages, fast.stages, strict=True):
            for plain, block in zip(blocks, stage.blocks, strict=True):
                plain.norm1.load_state_dict(block.norm_attention.state_dict())
                plain.norm2.load_state_dict(block.norm_mlp.state_dict())
                plain.attn.qkv.load_state_dict(block.attention.qkv.state_dict())
                plain.attn.proj.load_state_dict(block.attention.project.state_dict())
                with torch.no_grad():
                    plain.attn.relative_position_bias_table.copy_(block.attention.bias_table)
                plain.mlp.linear1.load_state_dict(block.mlp[0].state_dict())
                plain.mlp.linear2.load_state_dict(block.mlp[2].state_dict())


# --- the model, its loss, its step --------------------------------------------------------------


def plain_encoder(modality: Modality, plan: Preset) -> nn.Module:
    kind, options = plan.encoders[modality]
    channels, features = CHANNELS[modality], plan.features
    if kind == "hovertrans":
        return PlainHoVerTrans(channels, features, plan.image_size, **options)
    if kind == "swin3d":
        return PlainSwin(channels, features, plan.volume_size, **options)
    dims = 3 if modality == "mri" else 2
    return ConvEncoder(channels, options["widths"], features, dims)


class PlainMap(nn.Module):
    def __init__(self, plan: Preset) -> None:
        super().__init__()
        self.mg = plain_encoder("mg", plan)
        self.us = plain_encoder("us", plan)
        self.mri = plain_encoder("mri", plan)
        self.clinical = nn.Linear(5, 2, bias=False)
        self.head = nn.Linear(plan.features, 2)

    def forward(self, images: dict[Modality, Tensor], present: Tensor, clinical: Tensor) -> Any:
        """Images of every case, (b, 3) which of them are real, clinical inputs (b, 5)."""
        features = torch.stack([self.get_submodule(m)(images[m]) for m in MODALITIES], dim=1)
        shares = present / present.sum(dim=1, keepdim=True)
        fused = (features * shares[:, :, None]).sum(dim=1)  # (b, d)
        single = self.head(features) + self.clinical(clinical)[:, None]  # (b, 3, 2)
        return self.head(fused) + self.clinical(clinical), single, features

    def load(self, model: MapModel) -> None:
        for modality in MODALITIES:
            plain, fast = self.get_submodule(modality), model.get_submodule(modality)
            if isinstance(plain, ConvEncoder):
                plain.load_state_dict(fast.state_dict())
            else:
                plain.load(fast)
        self.clinical.load_state_dict(model.clinical.state_dict())
        self.head.load_state_dict(model.head.state_dict())


def plain_loss(output: Any, present: Tensor, labels: Tensor) -> Tensor:
    fused, single, features = output
    loss = F.cross_entropy(fused, labels)
    for m in range(len(MODALITIES)):
        nats = F.cross_entropy(single[:, m], labels, reduction="none")
        loss = loss + (nats * present[:, m]).sum() / present[:, m].sum().clamp(min=1)
    for a, b in combinations(range(len(MODALITIES)), 2):
        both = present[:, a] * present[:, b]
        gap = (features[:, a] - features[:, b]).abs().mean(dim=-1)
        loss = loss + (gap * both).sum() / both.sum().clamp(min=1)
    return loss


def plain_optimiser(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False, fused=False)
