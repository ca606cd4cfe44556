"""Attention with its own backward pass: the numbers of the plain formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from her2_common import attention
from her2_common.attention import FEWEST_TOKENS, attend

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) @ value


def gradients(
    function: Attend, inputs: list[Tensor], upstream: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    leaves = [x.detach().clone().to(dtype).requires_grad_() for x in inputs]
    function(*leaves).backward(upstream.to(dtype))
    return [leaf.grad.double() for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("tokens", [FEWEST_TOKENS, 200])
@pytest.mark.parametrize("block", [1, 2 * 200**2, 1 << 30])
@pytest.mark.parametrize("spread", [1.0, 8.0])  # 8: nearly all weight on one token
def test_values_and_gradients_are_those_of_the_formula(
    tokens: int, block: int, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the formula in float64; heads one by one, some at a time (5 heads of two cases: the
    last part is smaller), all at once."""
    monkeypatch.setattr(attention, "BLOCK_NUMBERS", block)
    generator = torch.Generator().manual_seed(tokens)
    inputs = [spread * torch.randn(2, 5, tokens, 8, generator=generator) for _ in range(3)]
    upstream = torch.randn(2, tokens, 5, 8, generator=generator).transpose(1, 2)
    mixed = attend(*(x.clone().requires_grad_() for x in inputs)).detach().double()
    formula = plain(*(x.double() for x in inputs))
    assert (mixed - formula).norm() < 1e-5 * formula.norm()
    found = gradients(attend, inputs, upstream, torch.float32)
    expected = gradients(plain, inputs, upstream, torch.float64)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() < 2e-5 * theirs.norm()


def test_our_backward_pass_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def runs(tokens: int, **options: object) -> bool:
        x = torch.randn(1, 1, tokens, 8, requires_grad=True).to(**options)  # type: ignore[call-overload]
        return "_Attention" in type(attend(x, x, x).grad_fn).__name__

    assert runs(FEWEST_TOKENS)
    assert not runs(FEWEST_TOKENS - 1)
    assert not runs(FEWEST_TOKENS, dtype=torch.float64)
    with torch.no_grad():
        x = torch.randn(1, 1, FEWEST_TOKENS, 8, requires_grad=True)
        assert attend(x, x, x).grad_fn is None


def test_the_same_bits_again() -> None:
    inputs = list(torch.randn(3, 2, 2, 150, 8, generator=torch.Generator().manual_seed(1)))
    upstream = torch.ones(2, 2, 150, 8)
    first = gradients(attend, inputs, upstream, torch.float32)
    again = gradients(attend, inputs, upstream, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
