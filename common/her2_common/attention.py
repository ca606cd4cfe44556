"""Attention without a bias, whose gradient on a CPU takes half the time of torch's own.

The fused kernel of torch spends four fifths of a training step's attention in its backward pass,
where it multiplies matrices of a few columns (the width of a head: 8 in HoVer-Trans). Here the
backward pass is written as products whose long side comes last, a few heads at a time, so that the
scores stay in the cache and are never kept:

1. Forward: torch's fused kernel, which also gives the log of each row's sum of exponentials.
2. Backward, with S = q k' w^-1/2 - log sum, P = exp(S), D = g v' - sum(g o): the subtractions are
   one more column of the products. The gradients are dv = P' g, dq = (P D) k w^-1/2 and
   dk = (P D)' q w^-1/2.

Source: Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness",
NeurIPS 2022, algorithm 4 (the recomputation of P from the log sum).
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_NUMBERS: Final = 1 << 21
"""Scores worked on at a time: 8 MB in float32, twice, are within a server's last cache (measured:
half and twice as many are slower, or the same)."""

FEWEST_TOKENS: Final = 128
"""With fewer, torch's own backward pass is as fast (measured: 64 the same, 16 faster)."""


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention, (n, heads, tokens, width) three times to the same shape.

    The numbers of ``scaled_dot_product_attention``, within the rounding of float32.
    """
    ours = (
        query.device.type == "cpu"
        and query.dtype == torch.float32
        and query.shape[2] >= FEWEST_TOKENS
        and torch.is_grad_enabled()
        and query.requires_grad
    )
    if not ours:
        return F.scaled_dot_product_attention(query, key, value)
    mixed: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return mixed


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # torch is pinned to one release: the name of the kernel beneath the public function holds.
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        mixed, log_sum = kernel(query, key, value)
        ctx.save_for_backward(query, key, value, mixed, log_sum)
        out: Tensor = mixed
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, mixed, log_sum = ctx.saved_tensors
        n, heads, tokens, width = query.shape
        units, scale = n * heads, width**-0.5
        one = query.new_ones(units, tokens, 1)
        log_sum = log_sum.reshape(units, tokens, 1)
        inner = (gradient * mixed).sum(-1).reshape(units, tokens, 1)

        def flat(x: Tensor) -> Tensor:
            return x.reshape(units, tokens, width)

        # Rows with their subtrahend (units, tokens, width + 1), columns (units, width + 1, tokens).
        q_rows = torch.cat([flat(query) * scale, -log_sum], -1)
        g_rows = torch.cat([flat(gradient), -inner], -1)
        k_columns = torch.cat([flat(key), one], -1).mT.contiguous()
        v_columns = torch.cat([flat(value), one], -1).mT.contiguous()
        q_columns = q_rows.mT[:, :width].contiguous()
        g_columns = g_rows.mT[:, :width].contiguous()

        # (units, width, tokens): the long side last.
        dq, dk, dv = (torch.empty_like(q_columns) for _ in range(3))
        at_once = min(max(BLOCK_NUMBERS // tokens**2, 1), units)
        work = query.new_empty(2, at_once, tokens, tokens)
        for start in range(0, units, at_once):
            part = slice(start, min(start + at_once, units))
            p, d = work[:, : part.stop - start]
            torch.bmm(q_rows[part], k_columns[part], out=p)
            torch.exp(p, out=p)
            torch.bmm(g_columns[part], p, out=dv[part])
            torch.bmm(g_rows[part], v_columns[part], out=d)
            d.mul_(p)
            torch.bmm(k_columns[part, :width], d.mT, out=dq[part])
            torch.bmm(q_columns[part], d, out=dk[part])  # q is scaled already
        dq.mul_(scale)
        shape = (n, heads, tokens, width)
        return dq.mT.reshape(shape), dk.mT.reshape(shape), dv.mT.reshape(shape)
