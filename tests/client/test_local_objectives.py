"""Local objectives on quadratics, where every fixed point is known in closed form.

Site k minimises 1/2 (w - b_k)' A_k (w - b_k) with A_k diagonal, has n_k cases, and takes full
gradients; the pool minimises the mean weighted by cases, at sum(n A b) / sum(n A).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from her2_client.local_objectives import (
    OWN_LOSS,
    Applied,
    GradientMean,
    Objective,
    add_control,
    add_pull,
    leaving,
    next_control,
    tensors_like,
    vector_of,
    weights_to_use,
)
from her2_common.errors import TrainingError
from her2_common.model import GROUPS, build_model, get_groups, group_parameters
from her2_common.strategy import FedAvg
from her2_server.strategies.optimisers import fedavg, scaffold_control

CURVATURE = torch.tensor([[0.3, 2.0, 1.0], [3.0, 0.5, 1.0], [1.0, 1.0, 4.0]], dtype=torch.float64)
OPTIMA = torch.tensor([[1.0, -2.0, 0.5], [-1.0, 0.0, 3.0], [2.0, 1.0, 1.0]], dtype=torch.float64)
CASES = np.array([20, 100, 60])
WEIGHTS = torch.from_numpy(CASES / CASES.sum())[:, None]
POOLED = (WEIGHTS * CURVATURE * OPTIMA).sum(0) / (WEIGHTS * CURVATURE).sum(0)
RATE, STEPS = 0.1, 12


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def start_at(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().clone().to(torch.float64))


def backward(site: int, w: nn.Parameter) -> None:
    """Leaves the gradient of the site's loss where ``loss.backward()`` would."""
    w.grad = CURVATURE[site] * (w.detach() - OPTIMA[site])


def mean(vectors: list[Tensor]) -> Tensor:
    return (WEIGHTS * torch.stack(vectors)).sum(0)


# --- FedAvg's bias and SCAFFOLD's cure ----------------------------------------------------------


def test_many_local_steps_end_at_fedavg_s_known_bias() -> None:
    """K steps take a site to b + (1 - rate A)^K (w - b), so that the fixed point weighs site k by
    q_k = 1 - (1 - rate A_k)^K in the place of A_k."""
    w = torch.zeros(3, dtype=torch.float64)
    for _ in range(60):
        ends = []
        for site in range(3):
            local = start_at(w)
            optimiser = torch.optim.SGD([local], lr=RATE)
            for _ in range(STEPS):
                backward(site, local)
                optimiser.step()
            ends.append(local.detach())
        w = mean(ends)
    q = 1 - (1 - RATE * CURVATURE) ** STEPS
    biased = (WEIGHTS * q * OPTIMA).sum(0) / (WEIGHTS * q).sum(0)
    torch.testing.assert_close(w, biased, rtol=0, atol=1e-12)
    assert (w - POOLED).abs().max() > 0.1


def scaffold(rounds: int, *, absent: bool = False, by_mean: bool = False) -> Tensor:
    """SCAFFOLD's rounds; with ``absent`` one site after the other stays away for a round."""
    w = torch.zeros(3, dtype=torch.float64)
    c = torch.zeros(3, dtype=torch.float64)
    controls = [torch.zeros(3, dtype=torch.float64) for _ in range(3)]
    for number in range(rounds):
        present = [k for k in range(3) if not (absent and k == number % 4)]
        ends, moves = [], []
        for k in present:
            local = start_at(w)
            optimiser = torch.optim.SGD([local], lr=RATE)
            gradients = GradientMean([local])
            for _ in range(STEPS):
                backward(k, local)
                gradients.add(RATE)
                add_control([local], [c], [controls[k]])
                optimiser.step()
            if by_mean:
                following = gradients.result([controls[k]])[0]
            else:
                following = next_control([local], [w], [c], [controls[k]], STEPS * RATE)[0]
            ends.append(local.detach() - w)
            moves.append(following - controls[k])
            controls[k] = following
        shares = WEIGHTS[present] / WEIGHTS[present].sum()
        w = w + (shares * torch.stack(ends)).sum(0)
        c = c + WEIGHTS[present].sum() * (shares * torch.stack(moves)).sum(0)
    return w


@pytest.mark.parametrize("absent", [False, True], ids=["all", "one-absent"])
def test_scaffold_reaches_the_pooled_optimum(absent: bool) -> None:
    torch.testing.assert_close(scaffold(60, absent=absent), POOLED, rtol=0, atol=1e-9)


def test_the_gradient_s_mean_is_option_ii_under_sgd() -> None:
    for rounds in (1, 2, 5):
        torch.testing.assert_close(
            scaffold(rounds, by_mean=True), scaffold(rounds), rtol=0, atol=1e-12
        )


def test_scaffold_with_the_server_s_own_functions_in_float32() -> None:
    """What is sent is a flat float32 vector; the server's step and control are its own."""
    w, c = np.zeros(3, np.float32), np.zeros(3, np.float32)
    kept = [np.zeros(3, np.float32) for _ in range(3)]
    for _ in range(80):
        changes, moves = [], []
        for k in range(3):
            local = start_at(torch.from_numpy(w))
            start, server, site = (tensors_like(v, [local]) for v in (w, c, kept[k]))
            for _ in range(STEPS):
                backward(k, local)
                add_control([local], server, site)
                with torch.no_grad():
                    local -= RATE * local.grad
            following = vector_of(next_control([local], start, server, site, STEPS * RATE))
            changes.append(vector_of([local]).astype(float) - w)
            moves.append(following.astype(float) - kept[k])
            kept[k] = following
        w, _ = fedavg(w, np.average(changes, axis=0, weights=CASES), {}, FedAvg())
        c = scaffold_control(c, np.average(moves, axis=0, weights=CASES), share=1.0)
    np.testing.assert_allclose(w, POOLED.numpy(), rtol=0, atol=2e-6)
    np.testing.assert_allclose(c, np.average(kept, axis=0, weights=CASES), rtol=0, atol=1e-5)


def test_under_adamw_option_ii_has_another_unit_and_the_mean_has_not() -> None:
    """Adam's steps are about as long as the rate, however small the gradient."""
    local = start_at(OPTIMA[0] + 1e-4)
    start, zero = local.detach().clone(), torch.zeros(3, dtype=torch.float64)
    optimiser = torch.optim.AdamW([local], lr=1e-6, weight_decay=0.0)
    gradients = GradientMean([local])
    for _ in range(10):
        backward(0, local)
        gradients.add(1e-6)
        optimiser.step()
    true = CURVATURE[0] * 1e-4
    torch.testing.assert_close(gradients.result([zero])[0], true, rtol=0.1, atol=0)
    by_steps = next_control([local], [start], [zero], [zero], 1e-5)[0]
    assert (by_steps / true).min() > 1000


def test_a_learning_rate_that_changes_weighs_the_steps() -> None:
    """With rates r_i, option II is sum(r_i g_i) / sum(r_i): here both ways, and by hand."""
    local = start_at(torch.zeros(3))
    start, c, c_k = local.detach().clone(), torch.ones(3).double(), torch.full((3,), 0.5).double()
    gradients, by_hand, rates = GradientMean([local]), torch.zeros(3).double(), [0.3, 0.2, 0.05]
    for rate in rates:
        backward(1, local)
        assert local.grad is not None
        by_hand += rate * local.grad
        gradients.add(rate)
        add_control([local], [c], [c_k])
        with torch.no_grad():
            local -= rate * local.grad
    by_hand /= sum(rates)
    torch.testing.assert_close(gradients.result([c_k])[0], by_hand)
    torch.testing.assert_close(next_control([local], [start], [c], [c_k], sum(rates))[0], by_hand)


def test_a_round_without_a_step_leaves_the_control_as_it_was() -> None:
    local = start_at(torch.zeros(2))
    c, c_k = torch.ones(2).double(), torch.tensor([3.0, -1.0]).double()
    gradients = GradientMean([local])
    gradients.add(0.1)  # no gradient: the batch lacked the modality
    for kept in (gradients.result([c_k]), next_control([local], [local], [c], [c_k], 0.0)):
        assert kept[0] is not c_k
        torch.testing.assert_close(kept[0], c_k, rtol=0, atol=0)
    with pytest.raises(ValueError, match="at least 0"):
        next_control([local], [local], [c], [c_k], -1.0)


# --- FedProx and Ditto --------------------------------------------------------------------------


def minimise(site: int, begin: Tensor, anchor: Tensor, strength: float, steps: int = 500) -> Tensor:
    w = start_at(begin)
    for _ in range(steps):
        backward(site, w)
        add_pull([w], [anchor], strength)
        with torch.no_grad():
            w -= 0.9 / (4.0 + strength) * w.grad
    return w.detach()


@pytest.mark.parametrize("mu", [0.0, 0.01, 1.0, 50.0])
def test_the_pulled_optimum_is_in_closed_form(mu: float) -> None:
    anchor = torch.tensor([0.5, 0.5, -0.5], dtype=torch.float64)
    expected = (CURVATURE[0] * OPTIMA[0] + mu * anchor) / (CURVATURE[0] + mu)
    torch.testing.assert_close(minimise(0, anchor, anchor, mu), expected, rtol=0, atol=1e-9)


def test_fedprox_s_federation_ends_at_its_fixed_point() -> None:
    """Solved exactly, site k answers w + s_k (b_k - w) with s_k = A_k / (A_k + mu): the fixed point
    weighs by n s in the place of n A. The larger mu, the nearer it is to the pooled optimum."""
    distance = []
    for mu in (1.0, 2.0):
        w = torch.zeros(3, dtype=torch.float64)
        for _ in range(40):
            w = mean([minimise(k, w, w, mu, steps=80) for k in range(3)])
        s = CURVATURE / (CURVATURE + mu)
        closed = (WEIGHTS * s * OPTIMA).sum(0) / (WEIGHTS * s).sum(0)
        torch.testing.assert_close(w, closed, rtol=0, atol=1e-7)
        distance.append(float((w - POOLED).norm()))
    assert distance[1] < 0.9 * distance[0]


def test_ditto_lies_between_the_shared_model_and_training_alone() -> None:
    """strength 0 is this site's own optimum (fine-tuning to the end), a large one the shared
    model; beside it the shared model is trained as if nothing were personal."""
    shared = POOLED
    alone = minimise(1, shared, shared, 0.0)
    torch.testing.assert_close(alone, OPTIMA[1], rtol=0, atol=1e-9)
    near = minimise(1, OPTIMA[1], shared, 1e6, steps=60)
    torch.testing.assert_close(near, shared, rtol=0, atol=1e-4)
    distance = [
        float((minimise(1, shared, shared, s) - shared).norm()) for s in (0.0, 0.1, 1.0, 10.0)
    ]
    assert distance == sorted(distance, reverse=True)
    assert len(set(distance)) == 4


@settings(deadline=None, max_examples=40)
@given(
    strength=st.floats(0, 100),
    values=st.lists(st.floats(-10, 10), min_size=3, max_size=3),
    anchor=st.lists(st.floats(-10, 10), min_size=3, max_size=3),
)
def test_the_pull_is_the_gradient_of_its_term(
    strength: float, values: list[float], anchor: list[float]
) -> None:
    centre = torch.tensor(anchor, dtype=torch.float64)
    ours, by_autograd = (start_at(torch.tensor(values, dtype=torch.float64)) for _ in range(2))
    backward(2, ours)
    add_pull([ours], [centre], strength)
    loss = 0.5 * (CURVATURE[2] * (by_autograd - OPTIMA[2]) ** 2).sum()
    loss = loss + strength / 2 * (by_autograd - centre).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, by_autograd.grad, rtol=1e-12, atol=1e-12)


# --- an absent modality, and the model's groups -------------------------------------------------


def test_a_parameter_without_a_gradient_stays_still() -> None:
    w = start_at(torch.ones(2))
    other = torch.zeros(2, dtype=torch.float64)
    optimiser = torch.optim.AdamW([w], lr=0.1, weight_decay=0.5)
    add_pull([w], [other], 1.0)
    add_control([w], [other + 1], [other])
    optimiser.step()
    assert w.grad is None
    assert w.tolist() == [1, 1]


def test_lists_must_be_aligned() -> None:
    w = start_at(torch.ones(2))
    with pytest.raises(ValueError, match="zip"):
        add_pull([w], [], 1.0)
    with pytest.raises(ValueError, match="zip"):
        add_control([w], [torch.ones(2)], [])


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_s_vector_and_its_tensors_are_the_same_numbers(group: str) -> None:
    model = build_model("compact", seed=1)
    parameters = group_parameters(model, group)
    vector = get_groups(model, [group])[group]
    tensors = tensors_like(vector, parameters)
    for tensor, parameter in zip(tensors, parameters, strict=True):
        assert torch.equal(tensor, parameter)
        assert tensor.data_ptr() != parameter.data_ptr()
    assert vector_of(tensors).tobytes() == vector.tobytes()
    with pytest.raises(TrainingError, match=r"expected \d+ values of a group"):
        tensors_like(vector[:-1], parameters)


# --- what stays at the site ---------------------------------------------------------------------


@given(
    trained=st.lists(st.sampled_from(GROUPS), unique=True), private=st.sets(st.sampled_from(GROUPS))
)
def test_what_leaves_is_what_was_trained_and_is_not_private(
    trained: list[str], private: set[str]
) -> None:
    left = leaving(trained, private)
    assert set(left) == set(trained) - private
    assert list(left) == [group for group in trained if group in left]


def test_a_private_group_goes_on_from_the_site_s_own_weights() -> None:
    received = {g: np.full(2, 1.0, np.float32) for g in ("us", "mri", "head")}
    kept = {g: np.full(2, 5.0, np.float32) for g in ("us", "mri")}

    def firsts(own: set[str], received: dict[str, np.ndarray] = received) -> dict[str, float]:
        return {g: float(v[0]) for g, v in weights_to_use(received, kept, own).items()}

    assert firsts({"mri"}) == {"us": 1, "mri": 5, "head": 1}
    assert firsts({"us", "mri", "head"}) == {"us": 5, "mri": 5, "head": 1}  # Ditto
    assert firsts(set()) == {"us": 1, "mri": 1, "head": 1}  # fine-tuning
    assert firsts({"mri"}, {"head": received["head"]}) == {"mri": 5, "head": 1}
    with pytest.raises(TrainingError, match="group mri: expected kept weights of shape"):
        weights_to_use(received, {"mri": np.zeros(3, np.float32)}, {"mri"})


def test_a_private_group_ends_at_its_own_optimum_and_the_others_at_the_pooled_one() -> None:
    """Two groups that share no term: one stays with each site, one is averaged."""
    shared = torch.zeros(3, dtype=torch.float64)
    kept = {k: torch.zeros(3, dtype=torch.float64) for k in range(3)}
    for _ in range(800):
        ends = []
        for k in range(3):
            groups = {"us": start_at(shared), "mri": start_at(kept[k])}
            for w in groups.values():
                backward(k, w)
            torch.optim.SGD(groups.values(), lr=RATE).step()
            sent = leaving(groups, private={"mri"})
            assert sent == ("us",)
            ends.append(groups["us"].detach())
            kept[k] = groups["mri"].detach()
        shared = mean(ends)  # one full-gradient step a site: the pooled optimum
    torch.testing.assert_close(shared, POOLED, rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.stack(list(kept.values())), OPTIMA, rtol=0, atol=1e-9)


def test_fine_tuning_of_the_head_leaves_the_rest_to_the_bit() -> None:
    model = build_model("compact", seed=2)
    groups = {g: group_parameters(model, g) for g in GROUPS}
    before = {g: v.tobytes() for g, v in get_groups(model, GROUPS).items()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    loss = sum(p.square().sum() + p.sum() for ps in groups.values() for p in ps)
    assert isinstance(loss, Tensor)
    loss.backward()  # type: ignore[no-untyped-call]
    Applied(Objective(tuned=("head",)), groups).before_step(0.1)
    optimiser.step()
    after = {g: v.tobytes() for g, v in get_groups(model, GROUPS).items()}
    assert {g for g in GROUPS if before[g] != after[g]} == {"head"}


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_an_objective_is_its_parts() -> None:
    """Pull and controls on a gradient, and the next control: by hand."""
    w = {"us": [start_at(torch.tensor([3.0, -1.0]))], "head": [start_at(torch.tensor([2.0]))]}
    vector = np.float32
    objective = Objective(
        pull=0.5,
        anchor={"us": vector([1.0, 1.0])},
        controls={"head": (vector([0.25]), vector([1.0]))},
    )
    applied = Applied(objective, w)
    for rate, gradient in ((0.1, 1.0), (0.3, 5.0)):
        w["us"][0].grad, w["head"][0].grad = doubles(1.0, 1.0), doubles(gradient)
        applied.before_step(rate)
        assert w["us"][0].grad.tolist() == [1.0 + 0.5 * 2.0, 1.0 + 0.5 * -2.0]
        assert w["head"][0].grad.tolist() == [gradient + 0.25 - 1.0]
    assert applied.next_controls().keys() == {"head"}
    assert applied.next_controls()["head"] == pytest.approx((0.1 * 1 + 0.3 * 5) / 0.4)


def test_the_run_s_own_loss_is_left_alone() -> None:
    w = {"us": [start_at(torch.tensor([3.0]))]}
    w["us"][0].grad = doubles(1.5)
    applied = Applied(OWN_LOSS, w)
    applied.before_step(0.1)
    assert w["us"][0].grad.tolist() == [1.5]
    assert applied.next_controls() == {}
