"""What a site may minimise instead of its own loss alone, one parameter group at a time.

An ``Objective`` is chosen by the run; ``train_round`` carries it out.

    FedProx        loss + mu/2 |w - w0|^2, w0 the round's starting weights
    SCAFFOLD       the gradient is corrected by how this site differs from all (control variates)
    Ditto          a second, personal model: loss + strength/2 |v - w0|^2, kept at the site
    fine-tuning    after the last round, the shared model is trained on here (Ditto, strength 0)
    private groups are trained here and stay here

All of them act between ``loss.backward()`` and ``optimiser.step()``, on the gradients of one
group's parameters; ``parameters`` are those of ``her2_common.model.group_parameters``, and every
other list of tensors is aligned with them (``tensors_like``). A parameter without a gradient, the
encoder of a modality that this batch lacks, gets none: an absent modality stays still.

SCAFFOLD, a round of site k and a group (Karimireddy et al., ICML 2020, algorithm 1, option II):

1. The server sends w0 and its control c. The site has its own control c_k; both begin as zeros.
2. Each step: g <- g + c - c_k (``add_control``), then the optimiser's step.
3. c_k' <- c_k - c + (w0 - w) / (sum of the steps' learning rates) (``next_control``).
4. The site sends w and c_k' - c_k, and keeps c_k'. The server averages both with the weights
   n[k, g] and moves c by its mean (``her2_server.strategies.optimisers.scaffold_control``).

With plain SGD step 3 gives the mean of the round's gradients, and full-batch training ends at the
pooled optimum however many local steps are made. With momentum, Adam or AdamW (w0 - w) is no sum
of gradients and has another unit: take the mean itself (``GradientMean``), which is the same
number under SGD. SCAFFOLD is then a heuristic, without the proof: the correction passes through
the optimiser's own scaling.

The caller's duty: what is kept here (c_k, v) is training state. A round that is repeated after a
crash must begin from what was kept when it first began, so keep it by round, two rounds long, and
never overwrite the older before the server has gone on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from her2_common.errors import TrainingError

Parameters = Sequence[nn.Parameter]
Tensors = Sequence[Tensor]


def tensors_like(vector: np.ndarray, parameters: Parameters) -> list[Tensor]:
    """A group's flat vector (as it is sent) as tensors of its parameters' shapes.

    Raises:
        TrainingError: it has another length than the parameters together.
    """
    sizes = [parameter.numel() for parameter in parameters]
    if vector.shape != (sum(sizes),):
        raise TrainingError(f"expected {sum(sizes)} values of a group, got shape {vector.shape}")
    pieces = torch.split(torch.from_numpy(vector.copy()), sizes)
    return [
        piece.to(parameter).view_as(parameter)
        for piece, parameter in zip(pieces, parameters, strict=True)
    ]


def vector_of(tensors: Tensors) -> np.ndarray:
    """Tensors as one flat float32 vector, as it is sent: the inverse of ``tensors_like``."""
    vector: np.ndarray = torch.cat([t.detach().float().cpu().flatten() for t in tensors]).numpy()
    return vector


# --- FedProx and Ditto --------------------------------------------------------------------------


@torch.no_grad()
def add_pull(parameters: Parameters, anchor: Tensors, strength: float) -> None:
    """g <- g + strength (w - anchor): the gradient of strength/2 |w - anchor|^2.

    FedProx: ``strength`` is mu and ``anchor`` the round's starting weights. The model that is sent
    drifts less from the others'; with many local steps on 1/2 (w - b)' A (w - b) it ends at
    (A + mu I)^-1 (A b + mu w0).

    Ditto: ``parameters`` are those of the personal model v, which has an optimiser of its own,
    ``strength`` is lambda and ``anchor`` the shared weights of the round. 0 trains alone, a large
    one stays at the shared model. The shared model is trained beside it, without this pull.

    Sources: Li et al., Federated optimization in heterogeneous networks (FedProx), MLSys 2020,
    algorithm 2; Li et al., Ditto: fair and robust federated learning through personalization, ICML
    2021, algorithm 1.

    >>> w = nn.Parameter(torch.tensor([3.0]))
    >>> w.grad = torch.tensor([1.0])
    >>> add_pull([w], [torch.tensor([1.0])], strength=0.5)
    >>> w.grad
    tensor([2.])
    """
    for parameter, centre in zip(parameters, anchor, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter - centre, alpha=strength)


# --- SCAFFOLD -----------------------------------------------------------------------------------


@torch.no_grad()
def add_control(parameters: Parameters, server: Tensors, site: Tensors) -> None:
    """g <- g + c - c_k, with ``server`` the control c and ``site`` the control c_k (step 2)."""
    for parameter, c, c_k in zip(parameters, server, site, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(c - c_k)


@torch.no_grad()
def next_control(
    parameters: Parameters, start: Tensors, server: Tensors, site: Tensors, rate: float
) -> list[Tensor]:
    """c_k' = c_k - c + (w0 - w) / rate, option II (step 3); for plain SGD alone.

    ``start`` is w0, ``parameters`` hold w after the round. ``rate`` is the sum of the learning
    rates of the steps that moved this group: K times the rate where it is constant and no batch
    lacks the modality. 0, where there was no step, leaves c_k as it was.

    Raises:
        ValueError: ``rate`` is negative.
    """
    if rate < 0:
        raise ValueError(f"expected a sum of learning rates of at least 0, got {rate}")
    if rate == 0:
        return [c_k.clone() for c_k in site]
    return [
        c_k - c + (w0 - parameter.detach()) / rate
        for parameter, w0, c, c_k in zip(parameters, start, server, site, strict=True)
    ]


class GradientMean:
    """The mean of a group's gradients over a round, weighted by the steps' learning rates.

    It is c_k' of step 3 in the gradient's own unit, whatever the optimiser. ``add`` comes after
    ``loss.backward()`` and before ``add_control``: the gradient of the site's own loss. It holds
    one more copy of the group.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._sums = [torch.zeros_like(parameter) for parameter in parameters]
        self._rate = 0.0

    @torch.no_grad()
    def add(self, rate: float) -> None:
        """Take in the gradients that the parameters hold, of a step with this learning rate."""
        if all(parameter.grad is None for parameter in self._parameters):
            return  # this batch lacks the modality: no step
        for total, parameter in zip(self._sums, self._parameters, strict=True):
            if parameter.grad is not None:
                total.add_(parameter.grad, alpha=rate)
        self._rate += rate

    def result(self, site: Tensors) -> list[Tensor]:
        """The mean; ``site`` (c_k as it was) where there was no step."""
        if self._rate == 0:
            return [c_k.clone() for c_k in site]
        return [total / self._rate for total in self._sums]


# --- all of it in one round ---------------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """What a round adds to the site's own loss; as it is, nothing.

    ``pull`` draws the groups of ``anchor`` towards it (FedProx, Ditto). ``controls`` are c and c_k
    of the groups that they correct (SCAFFOLD). Only the groups of ``tuned`` move (None: all). Flat
    vectors by group.
    """

    pull: float = 0.0
    anchor: Mapping[str, np.ndarray] = field(default_factory=dict)
    controls: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    tuned: tuple[str, ...] | None = None


OWN_LOSS: Final = Objective()


class Applied:
    """An objective at work on a model."""

    def __init__(self, objective: Objective, groups: Mapping[str, Parameters]) -> None:
        self._pull = objective.pull
        self._anchors = {
            g: tensors_like(v, groups[g]) for g, v in objective.anchor.items() if objective.pull
        }
        self._controls = {
            g: (tensors_like(c, groups[g]), tensors_like(c_k, groups[g]))
            for g, (c, c_k) in objective.controls.items()
        }
        self._means = {g: GradientMean(groups[g]) for g in self._controls}
        still = [] if objective.tuned is None else [g for g in groups if g not in objective.tuned]
        self._still = [parameter for g in still for parameter in groups[g]]
        self._groups = groups

    def before_step(self, rate: float) -> None:
        """Change the gradients of a step with this learning rate."""
        for parameter in self._still:
            parameter.grad = None  # the optimiser passes over it
        for group, anchor in self._anchors.items():
            add_pull(self._groups[group], anchor, self._pull)
        for group, (c, c_k) in self._controls.items():
            self._means[group].add(rate)
            add_control(self._groups[group], c, c_k)

    def next_controls(self) -> dict[str, np.ndarray]:
        """The next c_k of each group that has a control."""
        return {g: vector_of(m.result(self._controls[g][1])) for g, m in self._means.items()}


# --- what stays at the site ---------------------------------------------------------------------


def leaving(trained: Iterable[str], private: Collection[str]) -> tuple[str, ...]:
    """The groups that a site may send: those that it trained, but for the private ones.

    A private group is averaged with nobody. It is trained from this site's own last weights
    (``weights_to_use``), and the server, which never gets it, keeps its first values.

    Source: Li et al., FedBN, ICLR 2021, which keeps the batch normalisation at the site. This
    model has no layer with running statistics; what is kept here is a whole group.

    >>> leaving(("us", "mri", "head"), private={"mri"})
    ('us', 'head')
    """
    return tuple(group for group in trained if group not in private)


def weights_to_use(
    received: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray], own: Collection[str]
) -> dict[str, np.ndarray]:
    """The weights that training begins from: the groups of ``own`` as the site kept them, all
    others, and those that it has not kept yet, as they were received.

    ``own`` is, by use: the private groups; all groups for Ditto's personal model; none for
    fine-tuning. A group that the site has kept need not be received.

    Raises:
        TrainingError: a kept group has another shape than the received one.
    """
    weights = dict(received)
    for group in kept.keys() & set(own):
        if group in received and kept[group].shape != received[group].shape:
            raise TrainingError(
                f"group {group}: expected kept weights of shape {received[group].shape}, "
                f"got {kept[group].shape}",
                hint="they belong to another model; delete what this site kept of the run",
            )
        weights[group] = kept[group]
    return weights
