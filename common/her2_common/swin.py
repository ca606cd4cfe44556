"""The 3-D Swin encoder: attention within small windows of a volume, shifted from block to block.

1. The volume is cut into cubes of ``patch`` voxels a side; each becomes a token.
2. In each stage, blocks attend within windows of ``window`` tokens a side; every second block's
   windows are shifted by half a window. A mask keeps apart what the shift brings together from
   opposite faces, and whatever was added to fill the last windows.
3. Between stages the eight tokens of each 2 x 2 x 2 cube become one, of twice the width.
4. Normalisation, and the mean over all tokens.

Source: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
ICCV 2021; the 3-D form is MONAI's SwinTransformer, whose numbers this encoder reproduces (tests).
All eight sub-volumes are merged, in the order of MONAI's ``mergingv2``.

The tokens of a stage stay in the order of their windows. Everything but attention treats each
token alone, so a block costs one reordering where the usual formulation rolls, cuts and joins the
volume twice.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from her2_common.layers import draw, draw_linear, perceptron
from her2_common.types import Features, Images

APART: Final = -100.0
"""Added to the attention score of two tokens that must not see each other (as in Swin). Finite,
so that a token that may see none, one of the filling, gives no NaN."""


class WindowPlan(NamedTuple):
    """How the tokens of a volume stand in windows.

    ``order`` (tokens,) is the place in the volume of each token in the order of the windows,
    ``inverse`` the way back. ``mask`` (windows, t, t) is to be added to scores; None: no need.
    """

    order: Tensor
    inverse: Tensor
    mask: Tensor | None


@cache
def window_plan(side: int, real: int, window: int, shift: int, device: torch.device) -> WindowPlan:
    """The windows of a cube of ``side`` tokens, of which the first ``real`` along each axis exist.

    Axis by axis, token i of the shifted cube is token (i + shift) modulo side.
    """
    place = (torch.arange(side) + shift) % side
    # Along an axis: 0 for the body, 1 where a shifted window joins the far face with the near one.
    region = torch.zeros(side, dtype=torch.int64)
    if shift:
        region[-window:] = 1
        region[-shift:] = 2
    tokens = windowed(cube(place, side), window)  # (windows, t)
    regions = windowed(cube(region, 3), window)
    exists = windowed(cube((place < real).long(), 2), window) == 7  # along all three axes
    allowed = (regions[:, :, None] == regions[:, None, :]) & exists[:, None, :]
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, APART)
    order = tokens.flatten()
    return WindowPlan(
        order.to(device),
        order.argsort().to(device),
        None if bool(allowed.all()) else mask.to(device),
    )


def cube(axis: Tensor, base: int) -> Tensor:
    """(side, side, side) of the numbers whose three digits in ``base`` are those of ``axis``."""
    return (axis[:, None, None] * base + axis[None, :, None]) * base + axis[None, None, :]


def windowed(values: Tensor, window: int) -> Tensor:
    """(side, side, side) to (windows, window ** 3)."""
    count = len(values) // window
    cells = values.view(count, window, count, window, count, window)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(count**3, window**3)


@cache
def relative_places(window: int, device: torch.device) -> Tensor:
    """(t * t,): for each pair of a window's tokens, the row of the table of relative positions."""
    span = 2 * window - 1
    axis = torch.arange(window)
    offset = axis[:, None] - axis[None, :] + window - 1  # (window, window)
    # Axes: z, y, x of the first token, then of the second.
    z = offset[:, None, None, :, None, None]
    y = offset[None, :, None, None, :, None]
    x = offset[None, None, :, None, None, :]
    places = (z * span + y) * span + x
    return places.reshape(-1).to(device)


class _Reorder(torch.autograd.Function):
    """Tokens (n, t, c) in another order; the gradient goes back by the inverse order.

    The gradient of plain indexing adds up, slowly and on a GPU in no fixed order, what a
    permutation only needs to move.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return tokens.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(1, inverse), None, None


def reorder(tokens: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Tokens (n, t, c) in another order; ``inverse`` is the way back."""
    moved: Tensor = _Reorder.apply(tokens, order, inverse)  # type: ignore[no-untyped-call]
    return moved


class WindowAttention(nn.Module):
    """Multi-head attention among the tokens of a window, with a learned bias a relative place."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 3, heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        draw(self.bias_table)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """(n, windows * t, width) in the order of the windows, to the same shape."""
        n, count, width = tokens.shape
        t, heads = self.window**3, self.heads
        places = relative_places(self.window, tokens.device)
        bias = self.bias_table[places].view(t, t, heads).permute(2, 0, 1)  # (heads, t, t)
        if mask is not None:
            bias = bias + mask[:, None]  # (windows, heads, t, t)
        # (n, windows * t, 3 width) -> three of (n, windows, heads, t, width / heads)
        qkv = self.qkv(tokens).view(n, count // t, t, 3, heads, width // heads)
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
        mixed = attend(query, key, value, bias)
        projected: Tensor = self.project(mixed.transpose(2, 3).reshape(n, count, width))
        return projected


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attention with a bias that is learned: (..., t, width) three times to the same shape.

    ``scaled_dot_product_attention``, except on a CPU: its fused kernel there gives no gradient to
    a bias, and what it falls back to is twice as slow as the product, softmax and product.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    mixed: Tensor = scores.add_(bias).softmax(-1) @ value
    return mixed


class Block(nn.Module):
    """One Swin block: window attention, then a perceptron, each on top of what was there."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, window)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = perceptron(width)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """(n, tokens, width) in the order of the windows, to the same shape."""
        tokens = tokens + self.attention(self.norm_attention(tokens), mask)
        told: Tensor = self.mlp(self.norm_mlp(tokens))
        return tokens + told


class Stage(nn.Module):
    """The blocks at one resolution; ``forward`` takes and gives volumes of tokens."""

    def __init__(self, width: int, *, depth: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(Block(width, heads, window) for _ in range(depth))

    def forward(self, volume: Tensor) -> Tensor:
        """(n, side, side, side, width) to the same shape."""
        n, real, width = len(volume), volume.shape[1], volume.shape[-1]
        side = math.ceil(real / self.window) * self.window
        if side > real:
            more = side - real
            volume = F.pad(volume, (0, 0, 0, more, 0, more, 0, more))
        tokens = volume.reshape(n, side**3, width)
        # A single window needs no shift: there is nothing beyond it.
        shift = self.window // 2 if side > self.window else 0
        stood: WindowPlan | None = None
        for i, block in enumerate(self.blocks):
            plan = window_plan(side, real, self.window, shift if i % 2 else 0, volume.device)
            if stood is None:
                tokens = reorder(tokens, plan.order, plan.inverse)
            elif stood is not plan:
                back, forth = stood.inverse[plan.order], plan.inverse[stood.order]
                tokens = reorder(tokens, back, forth)
            tokens, stood = block(tokens, plan.mask), plan
        if stood is not None:
            tokens = reorder(tokens, stood.inverse, stood.order)
        return tokens.view(n, side, side, side, width)[:, :real, :real, :real]


class Merge(nn.Module):
    """Each 2 x 2 x 2 tokens become one: all eight, side by side, normalised and projected."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8 * width)
        self.reduce = nn.Linear(8 * width, 2 * width, bias=False)

    def forward(self, volume: Tensor) -> Tensor:
        """(n, side, side, side, width) to (n, side / 2, ..., 2 width), an odd side rounded up."""
        odd = volume.shape[1] % 2
        if odd:
            volume = F.pad(volume, (0, 0, 0, 1, 0, 1, 0, 1))
        n, half, width = len(volume), volume.shape[1] // 2, volume.shape[-1]
        # (n, s, s, s, c) -> (n, s/2, 2, s/2, 2, s/2, 2, c) -> (n, s/2, s/2, s/2, 8 c)
        pairs = volume.reshape(n, half, 2, half, 2, half, 2, width)
        eight = pairs.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)
        merged: Tensor = self.reduce(self.norm(eight))
        return merged


class Swin3d(nn.Module):
    """The encoder, for cubes whose side is a multiple of ``patch``.

    ``depths`` and ``heads`` have an entry a stage. The width doubles from stage to stage, and the
    last one's is the number of features.

    Raises:
        ValueError: ``features`` is not the width of the last stage.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        *,
        patch: int,
        embedding: int,
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        window: int,
    ) -> None:
        super().__init__()
        widths = [embedding * 2**i for i in range(len(depths))]
        if widths[-1] != features:
            raise ValueError(f"expected {widths[-1]} features, the last width, got {features}")
        self.patch = patch
        self.embed = nn.Linear(channels * patch**3, embedding)
        self.stages = nn.ModuleList(
            Stage(width, depth=depth, heads=head, window=window)
            for width, depth, head in zip(widths, depths, heads, strict=True)
        )
        self.merges = nn.ModuleList(Merge(width) for width in widths[:-1])
        self.norm = nn.LayerNorm(features)
        self.apply(draw_linear)

    def forward(self, images: Images) -> Features:
        """(n, channels, side, side, side) to (n, features)."""
        n, channels, patch = len(images), images.shape[1], self.patch
        side = images.shape[-1] // patch
        # (n, c, z, p, y, p, x, p) -> (n, z, y, x, c, p, p, p) -> (n, z, y, x, c * p * p * p)
        cells = images.reshape(n, channels, side, patch, side, patch, side, patch)
        volume = self.embed(cells.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4))
        for i, stage in enumerate(self.stages):
            if i:
                volume = self.merges[i - 1](volume)
            volume = stage(volume)
        pooled: Tensor = self.norm(volume).mean((1, 2, 3))
        return pooled
