"""The server's step: the mean change of a group moves its weights.

Each function is ``(start, change, state, settings) -> (new, state)`` and changes none of its
arguments. ``start`` (n,) float32 holds the group's weights at the start of the round, ``change``
(n,) the sites' mean change (value minus start). The change takes the place of minus the gradient:
a change that is added with rate 1 is plain averaging.

``state`` holds what the optimiser remembers of this group, {} before its first step: float32
vectors as long as the group, which go into the checkpoint. Computed in float64 and rounded once,
every coordinate by itself with +, -, *, / and square roots alone, so that a group may be given
whole or in blocks, and resumed, without a different bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from her2_common.strategy import (
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    ServerStep,
)

State = Mapping[str, np.ndarray]


def fedavg(
    start: np.ndarray, change: np.ndarray, state: State, settings: FedAvg
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """w <- w + rate * change; with rate 1 the mean of the sites' weights. Remembers nothing.

    Source: McMahan et al., Communication-efficient learning of deep networks from decentralized
    data, AISTATS 2017, algorithm 1.

    >>> new, _ = fedavg(np.float32([1.0]), np.array([0.5]), {}, FedAvg())
    >>> float(new[0])
    1.5
    """
    return _moved(start, settings.server_learning_rate * np.asarray(change, np.float64)), {}


def fedavgm(
    start: np.ndarray, change: np.ndarray, state: State, settings: FedAvgM
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """v <- momentum * v + change; w <- w + rate * v. Remembers ``velocity`` (v, 0 at first).

    A change that stays the same is in the end taken 1 / (1 - momentum) times: twice by default.

    Source: Hsu, Qi and Brown, Measuring the effects of non-identical data distribution for
    federated visual classification, 2019 (with the opposite sign of the change).
    """
    velocity = settings.momentum * _remembered(state, "velocity", start, 0.0) + change
    new = _moved(start, settings.server_learning_rate * velocity)
    return new, {"velocity": velocity.astype(np.float32)}


def fedadam(
    start: np.ndarray, change: np.ndarray, state: State, settings: FedAdam
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """m <- beta1 m + (1 - beta1) change; v <- beta2 v + (1 - beta2) change**2;
    w <- w + rate * m / (sqrt(v) + tau). Remembers ``first`` (m, 0 at first) and ``second``
    (v, tau**2 at first).

    There is no correction for the zeros at the start, unlike Adam's: tau**2 stands there instead.

    Source: Reddi et al., Adaptive federated optimization, ICLR 2021, algorithm 2.
    """
    square = np.square(np.asarray(change, np.float64))
    second = _remembered(state, "second", start, settings.tau**2)
    second = settings.beta2 * second + (1 - settings.beta2) * square
    return _adaptive(start, change, state, second, settings)


def fedyogi(
    start: np.ndarray, change: np.ndarray, state: State, settings: FedYogi
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """As ``fedadam``, with v <- v - (1 - beta2) change**2 sign(v - change**2).

    The second moment moves by an amount that does not depend on itself, so that one large change
    is not forgotten faster than small ones lower it.

    Source: Reddi et al., Adaptive federated optimization, ICLR 2021, algorithm 2.
    """
    square = np.square(np.asarray(change, np.float64))
    second = _remembered(state, "second", start, settings.tau**2)
    second = second - (1 - settings.beta2) * square * np.sign(second - square)
    return _adaptive(start, change, state, second, settings)


def optimise(
    start: np.ndarray, change: np.ndarray, state: State, settings: ServerStep
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The step that ``settings`` names."""
    match settings:
        case FedAvg():
            return fedavg(start, change, state, settings)
        case FedAvgM():
            return fedavgm(start, change, state, settings)
        case FedAdam():
            return fedadam(start, change, state, settings)
        case FedYogi():
            return fedyogi(start, change, state, settings)


def scaffold_control(control: np.ndarray, change: np.ndarray, share: float) -> np.ndarray:
    """SCAFFOLD's control of the server after a round: c <- c + share * change, float32.

    ``control`` (n,) is c, zeros at first; ``change`` (n,) the mean of the sites' changes of their
    controls, with the weights n[k, g] that the weights' mean has; ``share`` the part of all the
    group's cases that took part (1: all sites answered). c then stays the mean of all sites'
    controls, those of absent sites included.

    Source: Karimireddy et al., SCAFFOLD, ICML 2020, algorithm 1, where sites weigh
    alike and ``share`` is |S| / N.

    Raises:
        ValueError: ``share`` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"expected a share in (0, 1], got {share}")
    return _moved(control, share * np.asarray(change, np.float64))


def _adaptive(
    start: np.ndarray,
    change: np.ndarray,
    state: State,
    second: np.ndarray,
    settings: FedAdam | FedYogi,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    first = settings.beta1 * _remembered(state, "first", start, 0.0)
    first = first + (1 - settings.beta1) * np.asarray(change, np.float64)
    move = settings.server_learning_rate * first / (np.sqrt(second) + settings.tau)
    remembered = {"first": first.astype(np.float32), "second": second.astype(np.float32)}
    return _moved(start, move), remembered


def _remembered(state: State, name: str, start: np.ndarray, initial: float) -> np.ndarray:
    if name in state:
        return state[name].astype(np.float64)
    return np.full(start.shape, initial, np.float64)


def _moved(start: np.ndarray, move: np.ndarray) -> np.ndarray:
    new: np.ndarray = (start.astype(np.float64) + move).astype(np.float32)
    return new
