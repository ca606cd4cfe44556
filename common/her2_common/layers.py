"""Parts that the transformer encoders share."""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

EXPANSION: Final = 4
"""The hidden layer of every two-layer perceptron is this many times as wide as its input."""

INITIAL_SPREAD: Final = 0.02
"""Standard deviation of the first weights of linear layers and positions (ViT, Swin, HoVer-Trans).
The sources cut the normal distribution off at +-2, a hundred times the spread: that is, nowhere."""


def perceptron(width: int) -> nn.Sequential:
    """Two linear layers, four times as wide between them."""
    return nn.Sequential(
        nn.Linear(width, EXPANSION * width), nn.GELU(), nn.Linear(EXPANSION * width, width)
    )


def draw(parameter: Tensor | None) -> None:
    """Draw the first values of a weight or a table of positions; None is passed over."""
    if parameter is not None:
        nn.init.normal_(parameter, std=INITIAL_SPREAD)


def draw_linear(module: nn.Module) -> None:
    """For ``Module.apply``: draw the weights of linear layers, with biases of zero."""
    if isinstance(module, nn.Linear):
        draw(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
